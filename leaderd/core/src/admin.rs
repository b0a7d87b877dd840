//! What an operator may ask a daemon, and what it answers: JSON over HTTP on a Unix socket.
//!
//! `GET /v1/status` → [`crate::status::Status`]; `GET /v1/events` → `[Event]` of every location, oldest first;
//! `POST /v1/command` with an [`AdminRequest`] → [`AdminResponse`] (200, or 409 with `Refused`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, LocationName, NodeName};
use crate::wire::limits::{MAX_TEXT, shortened};

/// Longest freeze that has an end: ten years. Whoever wants more freezes without one.
pub const MAX_FREEZE: Duration = Duration::from_secs(10 * 366 * 86_400);

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
