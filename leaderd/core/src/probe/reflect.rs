//! The Session-Reflector: answers authenticated STAMP requests of the mesh's nodes, and no others.
//!
//! It is stateful (RFC 8762 §4.3): per session, a pair of sending node and SSID, it counts what it answers, so that the
//! sender can tell loss on the way there from loss on the way back. A session spans every path between the two nodes:
//! what was lost on one path shows in the count that comes back over another. The same state refuses replays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use wgctl_plan::WgPublicKey;

use crate::ids::{NodeIndex, NodeName};
use crate::mesh::Mesh;
use crate::time::{Instant, Now};

use super::keys::ProbeKeys;
use super::stamp::{
    AUTHENTICATED_LEN, ERROR_ESTIMATE, Location, Ntp, ReflectorPacket, SenderPacket, StampError,
};

/// Most sessions remembered; the one idle longest goes first. A thousand observers with a few sessions each fit.
const MAX_SESSIONS: usize = 8192;
/// Sessions of one peer: one for each address that it probes here, and those of its last few starts. It pushes out its own only.
const MAX_SESSIONS_PER_PEER: usize = 32;
/// A sender that starts again counts from zero: believed when its (authenticated) clock has moved on by so much since
/// the newest of the session (NTP units: 2⁻³² s).
const RESTART_GAP: u64 = 1 << 32;

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reject {
    #[error("from an address that is no node's")]
    UnknownSource,
    #[error("its sender is no node")]
    UnknownSender,
    #[error("too short for an authenticated STAMP packet")]
    Truncated,
    #[error("the HMAC is wrong")]
    BadHmac,
    #[error("seen before")]
    Replayed,
}

impl Reject {
    /// As in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownSource => "unknown-source",
            Self::UnknownSender => "unknown-sender",
            Self::Truncated => "truncated",
            Self::BadHmac => "bad-hmac",
            Self::Replayed => "replayed",
        }
    }
}

#[derive(Debug)]
struct Session {
    /// Sequence numbers `newest - i` that were seen, bit i.
    seen: u128,
    newest: u32,
    newest_timestamp: Ntp,
    answered: u32,
    used: Instant,
}

/// Answers probes. Feed it every request; send what it returns.
#[derive(Debug)]
pub struct Reflector {
    mesh: Arc<Mesh>,
    me: NodeName,
    keys: ProbeKeys,
    by_index: BTreeMap<NodeIndex, WgPublicKey>,
    by_address: BTreeMap<IpAddr, WgPublicKey>,
    sessions: BTreeMap<(WgPublicKey, u16), Session>,
    /// The sessions by last use, to find the one idle longest.
    idle: BTreeSet<(Instant, WgPublicKey, u16)>,
}

impl Reflector {
    pub fn new(mesh: Arc<Mesh>, me: NodeName, keys: ProbeKeys) -> Self {
        let mut reflector = Self {
            mesh: mesh.clone(),
            me,
            keys,
            by_index: BTreeMap::new(),
            by_address: BTreeMap::new(),
            sessions: BTreeMap::new(),
            idle: Default::default(),
        };
        reflector.set_mesh(mesh);
        reflector
    }

    pub fn set_mesh(&mut self, mesh: Arc<Mesh>) {
        let others = || mesh.nodes.values().filter(|n| n.name != self.me);
        self.by_index = others().map(|n| (n.index, n.wireguard_key)).collect();
        self.by_address =
            others().flat_map(|n| mesh.probed_at(n).map(|a| (a, n.wireguard_key))).collect();
        let known: BTreeSet<WgPublicKey> = self.by_index.values().copied().collect();
        self.keys.retain(|k| known.contains(k));
        self.sessions.retain(|(k, _), _| known.contains(k));
        self.idle.retain(|(_, k, _)| known.contains(k));
        self.mesh = mesh;
    }

    /// Returns the reply's bytes, as long as the request. The request itself names its sender, and so the key, as its source may
    /// have been rewritten; only a request of an older release, which names none, is known by its source.
    ///
    /// # Errors
    ///
    /// Why the request gets no answer.
    pub fn handle(
        &mut self,
        now: Now,
        from: SocketAddr,
        local: SocketAddr,
        ttl: u8,
        bytes: &[u8],
    ) -> Result<Vec<u8>, Reject> {
        let peer = match SenderPacket::sender(bytes) {
            Some(index) => self.by_index.get(&index).copied().ok_or(Reject::UnknownSender)?,
            None => self.owner(from.ip()).ok_or(Reject::UnknownSource)?,
        };
        if bytes.len() < AUTHENTICATED_LEN {
            return Err(Reject::Truncated);
        }
        let key = self.keys.with(&peer);
        let request = SenderPacket::decode(bytes, Some(&key)).map_err(|e| match e {
            StampError::Truncated(_) => Reject::Truncated,
            StampError::BadHmac => Reject::BadHmac,
        })?;
        let seq = self.count(now.mono, peer, &request)?;
        let stamp = Ntp::from(now.wall);
        let reply = ReflectorPacket {
            seq,
            timestamp: stamp,
            ssid: request.ssid,
            received: stamp,
            sender_seq: request.seq,
            sender_timestamp: request.timestamp,
            sender_error: ERROR_ESTIMATE,
            sender_ttl: ttl,
            location: Some(Location { source: from, port: local.port() }),
        };
        Ok(reply.encode(Some(&key), bytes))
    }

    fn owner(&self, ip: IpAddr) -> Option<WgPublicKey> {
        match self.mesh.inner.read(ip) {
            Some((_, index)) => self.by_index.get(&index).copied(),
            None => self.by_address.get(&ip).copied(),
        }
    }

    /// Forgets the session that is idle longest: of this peer if it has many, else of all peers if there are too many.
    fn make_room(&mut self, peer: WgPublicKey) {
        let own = || self.sessions.range((peer, 0)..=(peer, u16::MAX));
        let oldest = if own().count() >= MAX_SESSIONS_PER_PEER {
            own().min_by_key(|(_, s)| s.used).map(|((_, ssid), s)| (s.used, peer, *ssid))
        } else {
            self.idle.first().copied().filter(|_| self.sessions.len() >= MAX_SESSIONS)
        };
        if let Some(oldest) = oldest {
            self.idle.remove(&oldest);
            self.sessions.remove(&(oldest.1, oldest.2));
        }
    }

    /// Returns this answer's number in its session.
    ///
    /// # Errors
    ///
    /// `Replayed`: the request came before.
    fn count(
        &mut self,
        now: Instant,
        peer: WgPublicKey,
        request: &SenderPacket,
    ) -> Result<u32, Reject> {
        let id = (peer, request.ssid);
        if !self.sessions.contains_key(&id) {
            self.make_room(peer);
        }
        let fresh = || Session {
            seen: 0,
            newest: request.seq,
            newest_timestamp: request.timestamp,
            answered: 0,
            used: now,
        };
        let session = self.sessions.entry(id).or_insert_with(fresh);
        if request.seq > session.newest {
            let shift = request.seq - session.newest;
            session.seen = session.seen.checked_shl(shift).unwrap_or(0);
            session.newest = request.seq;
        }
        let back = session.newest - request.seq;
        let known = back >= u128::BITS || session.seen & (1 << back) != 0;
        if known {
            if request.timestamp.0 < session.newest_timestamp.0.saturating_add(RESTART_GAP) {
                return Err(Reject::Replayed);
            }
            *session = Session { used: session.used, ..fresh() };
        }
        // Of one that was overtaken as well: else it could come again and pass for a restart.
        session.newest_timestamp = session.newest_timestamp.max(request.timestamp);
        session.seen |= 1 << (session.newest - request.seq);
        self.idle.remove(&(session.used, peer, request.ssid));
        session.used = now;
        self.idle.insert((now, peer, request.ssid));
        let number = session.answered;
        session.answered = number.wrapping_add(1);
        Ok(number)
    }
}
