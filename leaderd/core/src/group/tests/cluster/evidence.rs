//! What nodes say in hellos, and observers in reports.

use std::time::Duration;

use super::{Cluster, name};
use crate::capability::Capabilities;
use crate::fault::Fault;
use crate::ids::{Epoch, NodeName, Slot};
use crate::io::LocalFacts;
use crate::relay_pair::TunnelRow;
use crate::verdict::{EvidenceRow, ProbeClass, Report, SlotReport, Verdict};
use crate::wire::Hello;

impl Cluster {
    pub(super) fn hellos(&mut self) {
        let now = self.now();
        let nodes: Vec<NodeName> = self.groups.keys().cloned().collect();
        for from in &nodes {
            let group = &self.groups[from];
            let local = self.mesh.nodes[from].location.as_str() == "cloud";
            let reaches = self.mesh.candidates_of(&"cloud".parse().unwrap());
            let hello = Hello {
                capabilities: self.capabilities.get(from).copied().unwrap_or(Capabilities::OURS),
                node: from.clone(),
                generation: group.mesh.generation,
                mesh_hash: [0; 8],
                decision: group.state().decision.clone().filter(|_| local),
                raft_leader: group.raft_leader().filter(|_| group.has_quorum(now)).cloned(),
                broken: self.broken.get(from).copied(),
                reaches: reaches
                    .into_iter()
                    .filter(|(_, n)| !self.cut.contains(&(from.clone(), n.name.clone())))
                    .map(|(s, _)| s)
                    .collect(),
                digest: Vec::new(),
                proof: Default::default(),
                remote: Vec::new(),
            };
            for to in nodes.iter().filter(|n| *n != from) {
                if !self.cut.contains(&(from.clone(), to.clone())) {
                    self.groups.get_mut(to).unwrap().handle_hello(now, &hello);
                }
            }
            let facts = LocalFacts {
                broken: self.broken.get(from).map(|c| (*c, "broken".into())),
                backend: "kernel".into(),
            };
            self.groups.get_mut(from).unwrap().handle_local_facts(now, &facts);
        }
        nodes.iter().for_each(|n| self.drain(n));
    }

    /// All observers report what they see now.
    pub fn report_now(&mut self) {
        let now = self.now();
        self.seq += 1;
        for observer in self.observers.clone() {
            let slots = self.mesh.ranking(&"cloud".parse().unwrap()).into_iter().map(|slot| {
                let verdict = self
                    .verdicts
                    .get(&(observer.clone(), slot))
                    .cloned()
                    .unwrap_or(Verdict::Forwarding);
                let lost = u32::from(verdict.is_degraded());
                SlotReport {
                    first_loss: verdict.is_degraded().then_some(now.wall),
                    suspected: verdict.is_degraded().then_some(now.wall),
                    rtt: Some(Duration::from_millis(20)),
                    path_mtu: Some(1420),
                    evidence: vec![EvidenceRow {
                        class: ProbeClass::NewFlow,
                        target: None,
                        address: None,
                        port: None,
                        sent: 4,
                        lost,
                        time_exceeded: 0,
                    }],
                    ..SlotReport::new(slot, verdict, now.wall)
                }
            });
            let report = Report {
                observer: observer.clone(),
                location: "cloud".parse().unwrap(),
                seq: self.seq,
                epoch: self.claims.get(&observer).copied().unwrap_or(Epoch(0)),
                abstains: false,
                full_rate: true,
                slots: slots.collect(),
            };
            let candidates: Vec<NodeName> = self.groups.keys().cloned().collect();
            for to in candidates {
                self.groups.get_mut(&to).unwrap().handle_report(now, report.clone());
                self.drain(&to);
            }
        }
    }

    /// These observers call a slot degraded from now on, and say so.
    pub fn report_failure(&mut self, slot: u8, observers: &[&str]) {
        for observer in observers {
            let verdict = Verdict::Degraded { cause: Fault::NewFlow, direction: None };
            self.verdicts.insert((name(observer), Slot(slot)), verdict);
        }
        self.report_now();
    }

    pub fn report_dead_tunnel(&mut self, slot: u8, observer: &str) {
        let verdict = Verdict::Degraded { cause: Fault::TunnelDown, direction: None };
        self.verdicts.insert((name(observer), Slot(slot)), verdict);
        self.report_now();
    }

    /// These relay at `home` from now on, by its decision.
    pub fn relays_of_home(&mut self, slots: &[u8]) {
        let (now, home) = (self.now(), "home".parse().unwrap());
        let slots: Vec<Slot> = slots.iter().map(|s| Slot(*s)).collect();
        for node in self.groups.keys().cloned().collect::<Vec<_>>() {
            self.groups.get_mut(&node).unwrap().handle_relays(now, &home, &slots, &slots);
            self.drain(&node);
        }
    }

    /// The candidate in this slot says this of its tunnels to `home`.
    pub fn row_to_home(&mut self, slot: u8, row: TunnelRow) {
        let (now, home) = (self.now(), "home".parse().unwrap());
        for node in self.groups.keys().cloned().collect::<Vec<_>>() {
            self.groups.get_mut(&node).unwrap().handle_tunnel_row(now, &home, Slot(slot), row);
            self.drain(&node);
        }
    }

    pub fn heal(&mut self) {
        self.verdicts.clear();
        self.report_now();
    }
}
