//! The conditions of a pool, as `metav1.Condition`s: a condition's time changes only when its status does.

use super::relays::{CUT_OFF, KnownPairs, LONG_DETOUR};
use super::rfc3339;
use crate::kubernetes::kilo::{KiloState, kilo_state};
use crate::kubernetes::pool_status::{
    CandidateReport, Condition, DEGRADED, FORWARDING, PoolStatus,
};
use crate::kubernetes::render::RenderedPool;
use crate::kubernetes::view::{ClusterView, Pool, Steering, names};
use crate::status::LocationStatus;
use crate::time::WallTime;

/// Reason of a pool that has no effect until a person changes something.
const REFUSED: &str = "Refused";

/// Status, reason, message.
pub(super) type Verdict = (&'static str, &'static str, String);

/// Returns the conditions Ready, Steered, Quorum, Degraded, CutOff, LongDetour and Stalled. All other fields of `status` are filled in.
pub(super) fn all(
    view: &ClusterView,
    pool: &Pool,
    found: &RenderedPool,
    (known, pairs): (Option<&LocationStatus>, Option<&KnownPairs<'_>>),
    before: &PoolStatus,
    status: &PoolStatus,
    now: WallTime,
) -> Vec<Condition> {
    let kept = |kind: &str| before.conditions.iter().find(|c| c.kind == kind);
    let mut all = Vec::new();
    let mut push = |kind: &str, verdict: Option<Verdict>| {
        let was = kept(kind);
        let (is, reason, message) = match (verdict, was) {
            (Some((s, r, m)), _) => (s.to_owned(), r.to_owned(), m),
            // Not known here: keep it.
            (None, Some(was)) => (was.status.clone(), was.reason.clone(), was.message.clone()),
            (None, None) => (
                "Unknown".into(),
                "NotYetKnown".into(),
                "no daemon of the location has reported yet".into(),
            ),
        };
        let since = was.filter(|w| w.status == is).map(|w| w.last_transition_time.clone());
        all.push(Condition {
            kind: kind.to_owned(),
            status: is,
            reason,
            message,
            last_transition_time: since.unwrap_or_else(|| rfc3339(now)),
            observed_generation: pool.generation,
        });
    };
    push("Ready", ready(found, known, status));
    push("Steered", known.map(|l| steered(view, found, l)));
    push("Quorum", known.and_then(quorum));
    push("Degraded", known.map(|_| degraded(status)));
    push(CUT_OFF, pairs.and_then(KnownPairs::cut_off));
    push(LONG_DETOUR, pairs.and_then(KnownPairs::long_detour));
    // Tools that wait for Ready need not wait while this condition exists (kstatus); it exists only while it is true.
    if let Some((_, reason, why)) = ready(found, known, status).filter(|r| r.1 == REFUSED) {
        push("Stalled", Some(("True", reason, why)));
    }
    all
}

fn ready(
    found: &RenderedPool,
    known: Option<&LocationStatus>,
    status: &PoolStatus,
) -> Option<Verdict> {
    if found.location.is_none() {
        let why = status.problems.first().cloned();
        let message = why.unwrap_or_else(|| "the pool names no location of the mesh".to_owned());
        return Some(("False", REFUSED, message));
    }
    known?;
    let Some(leader) = &status.leader else {
        return Some(("False", "NoLeader", "no leader was elected yet".to_owned()));
    };
    let about = status.candidates.iter().find(|c| c.node == *leader);
    Some(match about.filter(|c| c.verdict == DEGRADED) {
        Some(c) => {
            let cause = c.cause.as_deref().unwrap_or("cause unknown");
            (
                "False",
                "LeaderDegraded",
                format!("{leader} leads, but does not forward well ({cause})"),
            )
        }
        None => ("True", "Leading", format!("{leader} leads")),
    })
}

fn steered(view: &ClusterView, found: &RenderedPool, l: &LocationStatus) -> Verdict {
    if found.steering == Steering::Native {
        return ("True", "Native", "leaderd's routes carry the workload".to_owned());
    }
    if found.steering == Steering::Observe {
        let message =
            "steering is observe: nothing is changed, and events say what would have been done";
        return ("False", "Observing", message.to_owned());
    }
    if found.beside_observed {
        let message =
            "Kilo's annotations are left alone while the steering of another location is observe";
        return ("False", "Observing", message.to_owned());
    }
    let annotation = names::KILO_LEADER;
    match kilo_state(view, l) {
        KiloState::Done(node) => {
            ("True", "Annotated", format!("Kilo's annotation names {node} as leader"))
        }
        KiloState::Pending => {
            ("False", "Pending", "Kilo's annotations have yet to be changed".to_owned())
        }
        KiloState::Undecided => {
            ("Unknown", "Undecided", "no decision is in force to annotate for Kilo".to_owned())
        }
        KiloState::Gone(node) => {
            ("False", "NodeGone", format!("{node} leads, but is no longer a node of the location"))
        }
        KiloState::ByHand(nodes) => {
            let nodes = nodes.join(", ");
            let message = format!(
                "annotation {annotation} of {nodes} was set by hand and is left alone: Kilo may follow it instead of the decision; \
                 remove it to let leaderd steer"
            );
            ("False", "AnnotatedByHand", message)
        }
        KiloState::Newer { node, epoch } => {
            let message = format!(
                "{node} shows epoch {epoch}, the decision is {}: if leaderd's stores were reset, or the node was in another \
                 location, set annotation {} of {node} to 0",
                l.epoch,
                names::EPOCH
            );
            ("False", "NewerEpoch", message)
        }
    }
}

fn quorum(l: &LocationStatus) -> Option<Verdict> {
    if l.fallback || l.quorum == Some(false) {
        let message =
            "most voters of the location are unreachable: it can make no decision".to_owned();
        return Some(("False", "Lost", message));
    }
    l.quorum.map(|_| ("True", "Reached", "most voters of the location are connected".to_owned()))
}

fn degraded(status: &PoolStatus) -> Verdict {
    let candidates = || status.candidates.iter().filter(|c| c.refused.is_none());
    let fault = |c: &CandidateReport| {
        format!("{} ({})", c.node, c.cause.as_deref().unwrap_or("cause unknown"))
    };
    let failing: Vec<_> = candidates().filter(|c| c.verdict == DEGRADED).collect();
    let standbys: Vec<_> = candidates().filter(|c| !c.leading).collect();
    let healthy = standbys.iter().any(|c| c.verdict == FORWARDING && c.blocked_by.is_empty());
    let all: Vec<String> = failing.iter().map(|c| fault(c)).collect();
    if failing.iter().any(|c| c.leading) {
        let reason = if healthy { "LeaderDegraded" } else { "FailStatic" };
        let then =
            if healthy { "" } else { "; no standby is known to do better, so nothing moves" };
        return ("True", reason, format!("degraded: {}{then}", all.join(", ")));
    }
    if !failing.is_empty() {
        return ("True", "StandbyDegraded", format!("degraded: {}", all.join(", ")));
    }
    if !standbys.is_empty() && !healthy {
        let message = "no standby could take over: see blockedBy of each candidate".to_owned();
        return ("True", "NoStandby", message);
    }
    ("False", "Healthy", "no candidate is known to be degraded".to_owned())
}
