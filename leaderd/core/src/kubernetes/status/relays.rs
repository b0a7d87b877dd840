//! What a pool's status says of relay pairs: is the location cut off from another one, and does a detour last.

use super::conditions::Verdict;
use crate::ids::{LocationName, NodeName};
use crate::kubernetes::pool_status::{ClusterEvent, Condition, PoolStatus};
use crate::kubernetes::tasks::Running;
use crate::kubernetes::view::Pool;
use crate::status::RelayPairStatus;

/// Condition of a location without a good tunnel to another one.
pub(super) const CUT_OFF: &str = "CutOff";
/// Condition of a location with a detour older than 15 minutes.
pub(super) const LONG_DETOUR: &str = "LongDetour";

/// What this daemon knows of a location's relay pairs.
#[derive(Debug)]
pub(super) struct KnownPairs<'a> {
    location: &'a LocationName,
    /// With the other location of each.
    pairs: Vec<(&'a LocationName, &'a RelayPairStatus)>,
    /// These are all.
    complete: bool,
}

/// Returns what this daemon knows of the relay pairs of a location. Only a candidate knows tunnels: those of its own location with each
/// other one.
pub(super) fn known_pairs<'a>(
    location: &'a LocationName,
    running: Running<'a>,
) -> Option<KnownPairs<'a>> {
    let (status, mesh) = (running.status, running.mesh);
    mesh.node(&status.node)?.slot?;
    let own = status.location == *location;
    let pairs = status.relay_pairs.iter();
    let pairs = match own {
        true => pairs.map(|p| (&p.location, p)).collect(),
        false => pairs.filter(|p| p.location == *location).map(|p| (&status.location, p)).collect(),
    };
    let complete = own || mesh.locations.len() == 2;
    Some(KnownPairs { location, pairs, complete })
}

impl KnownPairs<'_> {
    /// `None`: not known here, as in all that follows.
    pub(super) fn cut_off(&self) -> Option<Verdict> {
        let cut_off = self.pairs.iter().filter(|(_, p)| p.cut_off);
        let from: Vec<&str> = cut_off.map(|(other, _)| other.as_str()).collect();
        if !from.is_empty() {
            let message = format!(
                "no tunnel between {} and {} is known to be good",
                self.location,
                from.join(", ")
            );
            return Some(("True", "NoGoodTunnel", message));
        }
        let message = "no other location is known to be out of reach".to_owned();
        self.complete.then_some(("False", "Reached", message))
    }

    pub(super) fn long_detour(&self) -> Option<Verdict> {
        let long = self.pairs.iter().filter(|(_, p)| p.long && p.detour);
        let all: Vec<String> = long.map(|(other, p)| detour(other, p)).collect();
        if !all.is_empty() {
            let message = format!("for more than 15 minutes {}", all.join("; "));
            return Some(("True", "LeadersTunnelFails", message));
        }
        let message = "no detour has lasted for 15 minutes".to_owned();
        self.complete.then_some(("False", "NoLongDetour", message))
    }
}

/// In words that do not change while the detour lasts.
fn detour(other: &LocationName, pair: &RelayPairStatus) -> String {
    let list = |n: &[NodeName]| n.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
    let why = pair.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    format!("{} and {} carry the traffic with {other}{why}", list(&pair.near), list(&pair.far))
}

/// Returns the Events about conditions that a new status changes.
pub(super) fn events(pool: &Pool, before: &PoolStatus, after: &PoolStatus) -> Vec<ClusterEvent> {
    let find = |status: &PoolStatus, kind: &str| -> Option<Condition> {
        status.conditions.iter().find(|c| c.kind == kind).cloned()
    };
    let about = |(kind, ended): (&str, &str)| {
        let is = find(after, kind)?;
        let was = find(before, kind).is_some_and(|c| c.status == "True");
        let (warning, reason) = match (was, is.status.as_str()) {
            (false, "True") => (true, kind),
            (true, "False") => (false, ended),
            _ => return None,
        };
        Some(ClusterEvent {
            pool: pool.name.clone(),
            pool_uid: pool.uid.clone(),
            node: None,
            warning,
            reason: reason.to_owned(),
            message: format!("{}: {}", pool.spec.location, is.message),
        })
    };
    [(CUT_OFF, "Reached"), (LONG_DETOUR, "DetourEnded")].into_iter().filter_map(about).collect()
}
