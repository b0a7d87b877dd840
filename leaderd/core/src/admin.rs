//! What an operator may ask a daemon, and what it answers: JSON over HTTP on a Unix socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`](crate::status::Status) |
//! | `GET /v1/events` | `[Event]` of every location, oldest first |
//! | `GET /v1/relay-changes` | [`RelayChanges`](crate::status::RelayChanges): those that this node has seen since it started, the last 256 |
//! | `GET /v1/relays/A/B` | [`RelayExplanation`](crate::status::RelayExplanation) for two locations, or two nodes; 409 with `Refused` where this node does not know: the text says where to ask |
//! | `GET /v1/network` | [`Network`](wgctl_plan::Network) that the daemon wants on this node |
//! | `POST /v1/command` with an [`AdminRequest`] | [`AdminResponse`]: 200, or 409 with `Refused` |

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, LocationName, NodeName};
use crate::text::shortened;
use crate::wire::limits::MAX_TEXT;

/// Longest freeze that has an end: ten years. A longer one needs no end.
pub const MAX_FREEZE: Duration = Duration::from_secs(10 * 366 * 86_400);

/// How long a command may take, from the daemon that takes it in to the commit and back. Every daemon on its way counts from
/// when the command came, so the first one gives up first.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(12);
/// How long a client of a daemon waits: the daemon's own answer comes first.
pub const CLIENT_DEADLINE: Duration = Duration::from_secs(15);
/// Commands that a daemon has under way at once; further ones are refused.
pub const MAX_COMMANDS: usize = 64;

/// A command of the operator. It goes to the raft leader of the location it is about, wherever that is.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminRequest {
    /// Make this candidate the leader of its location, without loss. Refused if it is not known to forward, unless `force`.
    Promote {
        node: NodeName,
        force: bool,
    },
    Drain {
        node: NodeName,
    },
    Undrain {
        node: NodeName,
    },
    Freeze {
        location: LocationName,
        duration: Option<Duration>,
    },
    Unfreeze {
        location: LocationName,
    },
}

/// Longest name of a user that is kept, in characters.
pub(crate) const MAX_USER: usize = 64;

/// Who gave a command.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Author {
    pub node: NodeName,
    /// Who it was on that node, as that node says: `uid 0`, `kubernetes`.
    pub user: Option<String>,
    /// The node of the location that passed the command on, if the author's node could not reach the raft leader itself.
    pub through: Option<NodeName>,
}

impl Author {
    pub fn new(node: NodeName, user: Option<String>) -> Self {
        Self { node, user, through: None }.bounded()
    }

    /// True for what [`Self::bounded`] leaves as it is.
    pub fn is_bounded(&self) -> bool {
        self.user
            .as_ref()
            .is_none_or(|u| u.chars().count() <= MAX_USER && !u.contains(char::is_control))
    }

    /// The same with what its node says of the user cut to a line of printable characters.
    pub fn bounded(mut self) -> Self {
        let printable = |u: String| u.chars().filter(|c| !c.is_control()).take(MAX_USER).collect();
        self.user = self.user.map(printable);
        self
    }
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user} on ")?;
        }
        write!(f, "{}", self.node)?;
        match &self.through {
            Some(through) => write!(f, ", says {through}"),
            None => Ok(()),
        }
    }
}

/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminResponse {
    /// Committed. `epoch` is the location's epoch now.
    Done { location: LocationName, epoch: Epoch, message: String },
    /// Not done, and why, and what to do.
    Refused { message: String },
}

impl AdminResponse {
    /// To a command that had no answer in time, about this location as far as that is known.
    pub fn unanswered(location: Option<&LocationName>) -> Self {
        let of = location.map(|l| format!(" of {l}")).unwrap_or_default();
        let message = format!(
            "no answer from a raft leader{of} within {} s: the location may have no quorum, and the command may still be carried out; \
             see `wgctl status`",
            COMMAND_DEADLINE.as_secs()
        );
        Self::Refused { message }
    }

    /// With a message that fits a frame.
    pub fn shortened(self) -> Self {
        // The ellipsis has three bytes; all else that we say is ASCII.
        let short = |message: String| shortened(&message, MAX_TEXT - 2);
        match self {
            Self::Done { location, epoch, message } => {
                Self::Done { location, epoch, message: short(message) }
            }
            Self::Refused { message } => Self::Refused { message: short(message) },
        }
    }
}
