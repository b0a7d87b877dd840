//! Which events of the mesh become Kubernetes Events: those newer than the last one that the pool's status records. Cut-offs and long
//! detours become Events with their conditions.

use super::relays;
use crate::fault::MoveReason;
use crate::ids::{LocationName, NodeName};
use crate::kubernetes::pool_status::{ClusterEvent, LastFailover, PoolStatus};
use crate::kubernetes::view::Pool;
use crate::state::{Event, EventKind};

/// Most Events at a time: the newest.
const MAX_NEW: usize = 10;

/// Returns the Events to emit with a new status. A pool's first status emits nothing about the past (only what lasts), and neither does one whose numbers
/// are higher than the mesh's (its stores were reset).
pub(in crate::kubernetes) fn new_events(
    pool: &Pool,
    location: &LocationName,
    before: &PoolStatus,
    after: &PoolStatus,
    events: &[Event],
) -> Vec<ClusterEvent> {
    let of_relays = relays::events(pool, before, after);
    if before.last_event == 0 {
        return of_relays;
    }
    let new = |e: &&Event| e.location == *location && e.seq > before.last_event;
    let new: Vec<&Event> = events.iter().filter(new).collect();
    let mut all: Vec<ClusterEvent> =
        new[new.len().saturating_sub(MAX_NEW)..].iter().map(|e| cluster_event(pool, e)).collect();
    if let (Some(was), Some(is)) = (&before.last_failover, &after.last_failover)
        && was.epoch == is.epoch
        && was.blackout_millis.is_none()
        && let Some(blackout) = is.blackout_millis
    {
        all.push(verified(pool, is, blackout));
    }
    all.extend(of_relays);
    all
}

fn cluster_event(pool: &Pool, e: &Event) -> ClusterEvent {
    let reason = match (e.kind, e.cause) {
        (EventKind::Failover, _) => "Failover",
        (EventKind::Move, Some(MoveReason::Promoted)) => "Promotion",
        (EventKind::Move, Some(MoveReason::Drained)) => "Drain",
        (EventKind::Move, Some(MoveReason::FailBack)) => "FailBack",
        (EventKind::Move, _) => "Move",
        (EventKind::FailStatic, _) => "FailStatic",
        (EventKind::Operator, _) => "Operator",
        (EventKind::Notice, _) => "Notice",
    };
    let mut message = format!("{} #{}: {}", e.location, e.seq, e.summary);
    if e.is_decision() {
        let list = |n: &[NodeName]| match n {
            [] => "none".to_owned(),
            all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        let (from, to) = (list(&e.leaders_before), list(&e.leaders_after));
        let cause = e.cause.map(|c| format!(", cause {c}")).unwrap_or_default();
        message += &format!(" ({from} → {to}, epoch {}{cause}", e.epoch);
        if let Some(blackout) = e.blackout {
            message += &format!(", blackout {} ms", blackout.as_millis());
        }
        message += ")";
    }
    ClusterEvent {
        pool: pool.name.clone(),
        pool_uid: pool.uid.clone(),
        node: e.leaders_after.first().map(ToString::to_string),
        warning: matches!(e.kind, EventKind::Failover | EventKind::FailStatic),
        reason: reason.to_owned(),
        message,
    }
}

fn verified(pool: &Pool, failover: &LastFailover, blackout: u64) -> ClusterEvent {
    let to = failover.to.as_deref().unwrap_or("the new leader");
    let message = format!(
        "the observers see the workload through {to} again (epoch {}): blackout {blackout} ms",
        failover.epoch
    );
    ClusterEvent {
        pool: pool.name.clone(),
        pool_uid: pool.uid.clone(),
        node: failover.to.clone(),
        warning: false,
        reason: "FailoverVerified".to_owned(),
        message,
    }
}
