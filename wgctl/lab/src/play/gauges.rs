//! The meters of a scenario: one pair of ends or several.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::cni::Cni;
use crate::meter::{
    CONNECTS_IN_TIME, End, Lane, Meter, Meters, Rewritten, TICK, longest_outage, wall_micros,
};
use crate::report::{Blackout, MeterResult, Packets, Tally};
use crate::scenario::Between;
use crate::world::World;

/// Share of new TCP connections that may be late where they open: a machine with two cores is late now and then.
const LATE: f64 = 0.1;
/// With more, the source ports of one are used again before connection tracking has forgotten them.
const MOST: usize = 4;

/// The meters between one pair of ends.
#[derive(Debug)]
struct Gauge {
    /// Names of the two nodes.
    nodes: [String; 2],
    between: Between,
    meters: Meters,
}

/// Running meters; the first pair of ends is the main one.
#[derive(Debug)]
pub struct Gauges(Vec<Gauge>);

/// Counts that cannot be split by time afterwards, of each pair of ends, at one moment.
#[derive(Debug, Default)]
pub struct Account(Vec<Rewritten>);

impl Gauges {
    pub fn start(world: &World) -> Result<Self> {
        let spec = &world.scenario.meter;
        let (size, every) = (spec.size.unwrap_or(128), spec.every.map_or(TICK, |e| e.0));
        let pairs = world.topology.metered_pairs(&world.scenario)?;
        let between = spec.between();
        let all = pairs.iter().flat_map(|pair| between.iter().map(move |b| (*pair, *b)));
        let all: Vec<((usize, usize), Between)> = all.collect();
        if all.len() > MOST {
            bail!("{} pairs of ends to meter at once; {MOST} are the most", all.len());
        }
        let mut out = Vec::new();
        for (i, ((from, to), between)) in all.iter().enumerate() {
            let (a_is_pod, b_is_pod) = between.pods();
            let a = end(world, *from, a_is_pod, b_is_pod);
            let b = end(world, *to, b_is_pod, a_is_pod);
            let (lane, ends) = (Lane::new(i, all.len()), [&a, &b]);
            let mut meters = Meters::start_in(lane, ends, size, every)?;
            if spec.tcp {
                meters = meters.with_tcp(lane, ends)?;
            }
            let nodes = [from, to].map(|n| world.nodes[*n].node.name.clone());
            out.push(Gauge { nodes, between: *between, meters });
        }
        Ok(Self(out))
    }

    pub fn main(&self) -> &Meters {
        &self.0[0].meters
    }

    pub fn all(&self) -> impl Iterator<Item = &Meters> {
        self.0.iter().map(|g| &g.meters)
    }

    /// Whether new TCP connections opened in time, by the latest that can be judged, where TCP is metered.
    pub fn tcp_opens(&self, window: Duration) -> bool {
        let now = wall_micros();
        let judged = (window + CONNECTS_IN_TIME).as_micros() as u64;
        self.all().filter_map(|m| m.tcp(now.saturating_sub(judged), now)).all(|tcp| {
            let c = tcp.connect;
            c.begun > 0 && c.late as f64 <= c.begun as f64 * LATE
        })
    }

    /// All losses so far, for people.
    pub fn losses(&self) -> String {
        let now = wall_micros();
        let each = self.0.iter().map(|Gauge { between, meters: m, .. }| {
            let [new, old] = [Meter::NewFlows, Meter::Established].map(|k| m.tally(k, 0, now));
            let (lost, sent) = (new.lost, new.sent);
            format!(
                "{between}: {lost} of {sent} new flows, {} of {} of the established one lost",
                old.lost, old.sent
            )
        });
        each.collect::<Vec<_>>().join("; ")
    }

    pub fn account(&self) -> Account {
        Account(self.all().map(Meters::rewritten).collect())
    }

    /// Returns each pair's result for a span of time, and whether it lost packets until the end of it.
    pub fn results(&self, before: &Account, since: u64, until: u64) -> Vec<(MeterResult, bool)> {
        let each = self.0.iter().zip(&before.0).map(|(gauge, rewritten)| {
            let Gauge { nodes, between, meters } = gauge;
            let mut open = false;
            let mut outage = |m: Meter| {
                let all = meters.streams(m).map(|s| longest_outage(&s, since, until));
                open |= all.iter().any(|o| o.unfinished);
                all.iter().map(|o| o.length).max().unwrap_or(0) as f64 / 1e3
            };
            let blackout_ms = Blackout {
                new_flows: outage(Meter::NewFlows),
                established: outage(Meter::Established),
            };
            let tally = |m| {
                let t = meters.tally(m, since, until);
                Tally { sent: t.sent, lost: t.lost }
            };
            let packets = Packets {
                new_flows: tally(Meter::NewFlows),
                established: tally(Meter::Established),
            };
            let tcp = meters.tcp(since, until);
            open |= tcp.is_some_and(|t| t.connect.unfinished);
            let (nodes, between) = (nodes.clone(), *between);
            let rewritten = meters.rewritten().since(rewritten);
            (MeterResult { nodes, between, blackout_ms, packets, rewritten, tcp }, open)
        });
        each.collect()
    }
}

/// A node or its pod as a meter's end.
fn end(world: &World, node: usize, pod: bool, peer_is_pod: bool) -> End<'_> {
    let n = &world.nodes[node];
    let cni = world.cni(node);
    let [a, b, c, _] = n.node.pod().octets();
    if pod {
        let mut end = End::of(&n.pod, n.pod_address(world.scenario.meter.ipv6));
        if cni != Cni::None && !peer_is_pod {
            // To what is no pod of the cluster, the CNI gives the packets an address of the node, by its own rules.
            end.known.addresses.push(n.node.lan().into());
        }
        end
    } else {
        let mut end = End::of(&n.ns, n.node.lan().into());
        // The kernel and the CNI choose among the node's addresses.
        end.known.within = peer_is_pod.then_some([a, b, c]);
        end
    }
}
