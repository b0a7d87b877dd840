//! Frames of the control channel (QUIC), between authenticated nodes: a version byte, and a [`Frame`] in postcard.
//!
//! A newer daemon may add bytes behind any frame, and send kinds of frames that this one does not know: the bytes are
//! skipped, the frames are counted and dropped. All else that changes a frame needs a new version, which is spoken only
//! where both sides understand it (`docs/compatibility.md`).

pub(crate) mod bounded;
pub mod limits;

use std::net::IpAddr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::admin::{AdminRequest, AdminResponse, Author};
use crate::capability::Capabilities;
use crate::fault::Fault;
use crate::ids::{Epoch, Generation, LocationName, NodeName, Slot};
use crate::proof::{Proof, Signed};
use crate::relay_pair::{Detour, TunnelRow};
use crate::state::{Decision, Event};
use crate::status::CandidateStatus;
use crate::time::{Duration, WallTime};
use crate::verdict::Report;

use limits::{MAX_ADDRESSED, MAX_DECISIONS, MAX_DETOURS, MAX_LOCATIONS, MAX_SLOTS};

/// First byte of every frame.
pub const FRAME_VERSION: u8 = 3;

/// How many kinds of frames this daemon knows: the variants of [`Frame`].
const KINDS: u32 = 14;

/// Longest frame, in bytes: for a Raft snapshot, which is [`crate::state::MAX_STATE`] at most. Other kinds have limits of their own,
/// see [`Frame::limit`].
pub const MAX_FRAME: usize = 4 << 20;

/// What one node sends to another.
///
/// Written by position: new kinds go at the end, none is moved or removed, and no field of one is added, moved or removed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Frame {
    /// A `raft::eraftpb::Message` of a location's group, in protobuf.
    Raft {
        location: LocationName,
        message: Vec<u8>,
    },
    /// From an observer to the candidates of the location it is about.
    Report(Report),
    /// Who leads: from a node of the location to its nodes and to the candidates of all others, until acknowledged.
    Announce {
        decision: Decision,
        proof: Proof,
        event: Option<Box<Event>>,
    },
    /// The sender has programmed this epoch (or a later one) of this location.
    Ack {
        location: LocationName,
        epoch: Epoch,
        programmed_at: WallTime,
    },
    /// As-workload probes pass under this epoch: from an observer to the candidates of the location.
    Verified {
        location: LocationName,
        epoch: Epoch,
        at: WallTime,
        blackout_micros: Option<u64>,
    },
    /// Every second, to every node that one has a connection with; nodes of other locations take turns where they are many.
    Hello(Hello),
    /// A report, ack or verification that reached a candidate, passed on to a raft leader that may not hear it itself: one
    /// without tunnels here (a member, a witness), or one whose tunnel the observer does not call well.
    Relayed {
        from: NodeName,
        #[serde(deserialize_with = "relayable")]
        frame: Box<Frame>,
    },
    /// An operator's command for another location, and its answer.
    Forward {
        id: u64,
        author: Author,
        request: AdminRequest,
    },
    Forwarded {
        id: u64,
        response: AdminResponse,
    },
    /// Where nodes answer probes, none where they hold no such address: the sender itself, and those of whom it heard that the
    /// receiver has no connection with. Daemons of before this frame refuse it, and keep what the mesh file says; it is not in
    /// the hello, as they would refuse that whole.
    Addresses(
        #[serde(deserialize_with = "bounded::list::<_, _, MAX_ADDRESSED>")]
        Vec<(NodeName, Vec<IpAddr>)>,
    ),
    /// From a candidate to the plain members of its location, with every hello: other locations that Kilo steers as well and that its
    /// routes do not carry to, by which mesh file (the first eight bytes of its hash). Not sent before it has programmed any. Older
    /// releases refuse this frame, and carry as they did.
    Uncarried {
        mesh_hash: [u8; 8],
        #[serde(deserialize_with = "bounded::list::<_, _, MAX_LOCATIONS>")]
        locations: Vec<LocationName>,
    },
    /// Between the voters of a location: what the sender has signed of a decision, by each set of voters that it knows.
    Signed {
        location: LocationName,
        epoch: Epoch,
        signatures: Vec<Signed>,
    },
    /// From a candidate, while a tunnel between its location and this other one is in trouble: to the candidates of both, and to the
    /// voters of its own. Older releases refuse this frame, and send through the leaders.
    Tunnels {
        location: LocationName,
        /// What the sender has measured itself.
        row: TunnelRow,
        /// What the other location's candidates told it. For its own location only.
        #[serde(deserialize_with = "bounded::list::<_, _, MAX_SLOTS>")]
        heard: Vec<(Slot, TunnelRow)>,
    },
    /// From a candidate to the members of its location, with every hello and when they change: the relay pairs that are not the two
    /// leaders. Older releases refuse this frame, and send to their leader.
    Detours(#[serde(deserialize_with = "bounded::list::<_, _, MAX_DETOURS>")] Vec<Detour>),
}

/// The frames that are relayed, written by position: at their places in [`Frame`]. Frames within frames would be read by recursion, and a
/// peer could nest them until the stack is used up: nothing else may stand in a [`Frame::Relayed`].
#[derive(Deserialize)]
enum Relayable {
    Raft,
    Report(Report),
    Announce,
    Ack { location: LocationName, epoch: Epoch, programmed_at: WallTime },
    Verified { location: LocationName, epoch: Epoch, at: WallTime, blackout_micros: Option<u64> },
}

fn relayable<'de, D: Deserializer<'de>>(from: D) -> Result<Box<Frame>, D::Error> {
    Ok(Box::new(match Relayable::deserialize(from)? {
        Relayable::Report(report) => Frame::Report(report),
        Relayable::Ack { location, epoch, programmed_at } => {
            Frame::Ack { location, epoch, programmed_at }
        }
        Relayable::Verified { location, epoch, at, blackout_micros } => {
            Frame::Verified { location, epoch, at, blackout_micros }
        }
        Relayable::Raft | Relayable::Announce => {
            return Err(D::Error::custom("a frame that is not relayed"));
        }
    }))
}

/// Between two hellos to a peer.
pub const HELLO_INTERVAL: Duration = Duration::from_secs(1);
/// A node that has said no hello for this long is not counted on.
pub const HELLO_STALE: Duration = Duration::from_millis(3500);

/// A sign of life, with what the sender knows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub node: NodeName,
    /// What the sender's version of leaderd understands.
    pub capabilities: Capabilities,
    pub generation: Generation,
    /// First eight bytes of the mesh file's hash.
    pub mesh_hash: [u8; 8],
    /// What the sender has programmed for its own location.
    pub decision: Option<Decision>,
    /// The proof of that decision; empty if it has none.
    pub proof: Proof,
    /// The raft leader of the sender's location, if it knows one; without one the location has no quorum (for it).
    pub raft_leader: Option<NodeName>,
    /// Set by a candidate that knows that it cannot relay.
    pub broken: Option<Fault>,
    /// Slots of its own location whose candidates it can reach over the LAN.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_SLOTS>")]
    pub reaches: Vec<Slot>,
    /// From the raft leader, to the nodes of its own location: what `wgctl status` shows there.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_SLOTS>")]
    pub digest: Vec<CandidateStatus>,
    /// From a leader of the location to its plain members: decisions of other locations, a few in each hello.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_DECISIONS>")]
    pub remote: Vec<Decision>,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame of {0} bytes, its kind has {1} at most")]
    TooLong(usize, usize),
    #[error("empty frame")]
    Empty,
    #[error("frame version {0}, this daemon speaks {FRAME_VERSION}")]
    Version(u8),
    /// A newer daemon's.
    #[error("kind of frame {0}, this daemon knows {KINDS}")]
    UnknownKind(u32),
    #[error("malformed frame")]
    Malformed,
}

impl Frame {
    /// Returns the name of this kind in counters and logs.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Raft { .. } => "raft",
            Self::Report(_) => "report",
            Self::Announce { .. } => "announce",
            Self::Ack { .. } => "ack",
            Self::Verified { .. } => "verified",
            Self::Hello(_) => "hello",
            Self::Relayed { .. } => "relayed",
            Self::Forward { .. } => "forward",
            Self::Forwarded { .. } => "forwarded",
            Self::Addresses(_) => "addresses",
            Self::Uncarried { .. } => "uncarried",
            Self::Signed { .. } => "signed",
            Self::Tunnels { .. } => "tunnels",
            Self::Detours(_) => "detours",
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![FRAME_VERSION]).expect("a frame is plain data")
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let body = match bytes.split_first() {
            None => return Err(FrameError::Empty),
            Some((&FRAME_VERSION, body)) => body,
            Some((&version, _)) => return Err(FrameError::Version(version)),
        };
        let longest = body.first().map_or(MAX_FRAME, |kind| Self::longest(*kind));
        if bytes.len() > longest {
            return Err(FrameError::TooLong(bytes.len(), longest));
        }
        match postcard::take_from_bytes(body) {
            Ok((frame, _added_by_a_newer_daemon)) => Ok(frame),
            Err(_) => Err(match postcard::take_from_bytes::<u32>(body) {
                Ok((kind @ KINDS.., _)) => FrameError::UnknownKind(kind),
                _ => FrameError::Malformed,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_a_newer_daemon_adds_behind_a_frame_are_skipped() {
        let frame = Frame::Ack {
            location: "cloud".parse().unwrap(),
            epoch: Epoch(1),
            programmed_at: WallTime(2),
        };
        let bytes = [frame.encode(), vec![7; 100]].concat();
        assert_eq!(Frame::decode(&bytes), Ok(frame));
    }

    #[test]
    fn a_newer_daemons_kind_of_frame_is_distinguished_from_a_damaged_one() {
        let addresses = Frame::Addresses(Vec::new()).encode();
        let uncarried = Frame::Uncarried { mesh_hash: [0; 8], locations: Vec::new() }.encode();
        let signed = Frame::Signed {
            location: "cloud".parse().unwrap(),
            epoch: Epoch(1),
            signatures: Vec::new(),
        };
        let detours = Frame::Detours(Vec::new()).encode();
        let last = addresses[1].max(uncarried[1]).max(signed.encode()[1]).max(detours[1]);
        assert_eq!(u32::from(last) + 1, KINDS, "KINDS counts the variants");
        let decode = |kind: u8| Frame::decode(&[FRAME_VERSION, kind, 1, 2, 3]);
        assert_eq!(decode(last + 1), Err(FrameError::UnknownKind(KINDS)));
        assert_eq!(decode(127), Err(FrameError::UnknownKind(127)));
        assert_eq!(decode(last), Err(FrameError::Malformed));
        assert_eq!(Frame::decode(&[FRAME_VERSION]), Err(FrameError::Malformed));
        let another = [FRAME_VERSION + 1, 0];
        assert_eq!(Frame::decode(&another), Err(FrameError::Version(FRAME_VERSION + 1)));
    }

    #[test]
    fn frames_relayed_within_relayed_frames_are_refused_however_deep() {
        let name = |s: &str| -> NodeName { s.parse().unwrap() };
        let ack = Frame::Ack {
            location: "cloud".parse().unwrap(),
            epoch: Epoch(1),
            programmed_at: WallTime(2),
        };
        let relayed = Frame::Relayed { from: name("cloud-1"), frame: Box::new(ack) };
        assert_eq!(Frame::decode(&relayed.encode()), Ok(relayed.clone()));
        let twice = Frame::Relayed { from: name("cloud-1"), frame: Box::new(relayed) };
        assert_eq!(Frame::decode(&twice.encode()), Err(FrameError::Malformed));
        let mut deep = vec![FRAME_VERSION];
        while deep.len() < limits::MAX_MESSAGE - 3 {
            deep.extend([6, 1, b'a']);
        }
        assert_eq!(Frame::decode(&deep), Err(FrameError::Malformed));
    }
}
