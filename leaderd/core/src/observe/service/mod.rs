//! Real services, asked through every path at once: what they say about the candidates.
//!
//! A *round* asks one service through every path at the same moment. A path fails a round only where another path passed it,
//! so a service that is down fails through all of them and says nothing. It also counts only where packets of the other
//! classes, sent after it, came back through the path: what they lose as well is theirs to judge. At the first failure a burst
//! of rounds follows (`requests`), and the same sequential test as for packets decides (`health`).
//!
//! All of it is kept apart from the samples of the other classes: a service has its own pace, and its own reasons to be slow.

mod health;
mod requests;

use std::time::Duration;

use crate::fault::Fault;
use crate::mesh::Mesh;
use crate::time::Instant;
use crate::verdict::{EvidenceRow, ProbeClass};

use super::index::{IndexVec, PathIdx, ServiceIdx};
use super::location::LocationWatch;

pub use health::ServiceHealth;

/// How long a candidate must have served all services before it has recovered; rounds older than this count no more.
const RECOVERY: Duration = Duration::from_secs(2);
const STALE: Duration = Duration::from_secs(30);

/// What the services say against a candidate.
#[derive(Debug, Clone, Copy)]
pub struct ServiceFault {
    pub cause: Fault,
    pub from: Instant,
    pub suspected: Option<Instant>,
    /// When the last exchange that passed before it had begun.
    pub ok_before: Option<Instant>,
}

impl LocationWatch {
    /// The services of the mesh file, with nothing known of them yet.
    pub fn services_of(
        mesh: &Mesh,
        watch: &Self,
        now: Instant,
    ) -> IndexVec<ServiceIdx, ServiceHealth> {
        let location = mesh.locations.get(&watch.location);
        let services = location.into_iter().flat_map(|l| &l.services).filter_map(|s| {
            let node = mesh.node_behind(&watch.location, s.address.ip())?;
            let candidate = watch.paths.position(|p| node.slot == Some(p.slot));
            Some(ServiceHealth::new(s.clone(), node, candidate, watch.paths.len(), now))
        });
        services.collect()
    }

    /// The worst that the services say against a candidate, if a test reaches its threshold.
    pub fn service_fault(&self, p: PathIdx, threshold: f64, mtu: u16) -> Option<ServiceFault> {
        let alive = self.paths[p].life.any_reply();
        let faults = self.services.iter().filter_map(|s| {
            let sum = s.test(p, alive);
            (sum.value() >= threshold).then_some((sum.value(), s, sum.from()?))
        });
        let (_, s, from) = faults.max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(s.fault(p, alive, from, mtu))
    }

    /// A candidate that services degraded serves all of them again.
    pub fn services_recovered(&self, now: Instant, p: PathIdx, interval: Duration) -> bool {
        let path = &self.paths[p];
        if now.since(path.verdict.since()) < RECOVERY {
            return false;
        }
        let stale = STALE.max(interval * 4);
        self.services.iter().all(|s| s.has_recovered(now, p, path.life.any_reply(), stale))
    }

    /// Forgets what services said against a candidate.
    pub fn clear_service_rounds(&mut self, p: PathIdx) {
        self.services.iter_mut().for_each(|s| s.clear(p));
    }

    /// How many services answer through a candidate, and how many were asked through it.
    pub fn services_up(&self, p: PathIdx) -> (u8, u8) {
        let passed = self.services.iter().filter_map(|s| s.passed_last(p));
        passed.fold((0, 0), |(up, of), passed| (up + u8::from(passed), of + 1))
    }

    /// Evidence of class `service` since `from`: one row over all services, and one for each that failed.
    pub fn service_rows(&self, p: PathIdx, from: Instant) -> Vec<EvidenceRow> {
        let alive = self.paths[p].life.any_reply();
        let row = |s: Option<&ServiceHealth>, counts: (u32, u32)| EvidenceRow {
            class: ProbeClass::Service,
            target: s.map(|s| s.node().clone()),
            address: s.map(|s| s.service().address.ip()),
            port: s.map(|s| s.service().address.port()),
            sent: counts.0,
            lost: counts.1,
            time_exceeded: 0,
        };
        let counts: Vec<_> = self.services.iter().map(|s| (s, s.count(p, alive, from))).collect();
        let all = counts.iter().fold((0, 0), |sum, (_, c)| (sum.0 + c.0, sum.1 + c.1));
        let failed = counts.iter().filter(|(_, c)| c.1 > 0).map(|(s, c)| row(Some(*s), *c));
        let mut rows = vec![row(None, all)];
        rows.extend(failed);
        rows.retain(|r| r.sent > 0);
        rows
    }
}
