//! What is broken on a node, in the simulator. A fault leaves the node's daemon alone unless it says otherwise.

use std::collections::BTreeSet;
use std::time::Duration;

use leaderd_core::ids::NodeName;
use serde::{Deserialize, Serialize};
use wgctl_plan::{Family, InterfaceName};

use super::World;
use super::disk::FullDisk;
use super::foreign::Foreign;
use super::hostile::{HostileBehaviour, HostileNode};
use super::link::Weather;

/// The faults of one node, as they are now.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The machine is off: nothing in, nothing out, no daemon.
    pub crashed: bool,
    /// New flows into the overlay are dropped on the way out; old ones pass (Kilo issue #489).
    pub vxlan_new_flows: bool,
    /// Everything into the overlay is dropped on the way out.
    pub vxlan_all: bool,
    /// Into the overlay towards these nodes everything is dropped (a stale FDB entry).
    pub ghosts: BTreeSet<NodeName>,
    /// Nothing is forwarded; the node itself answers.
    pub forwarding_off: bool,
    /// Forwarded packets longer than this are dropped silently.
    pub mtu: Option<u16>,
    /// Forwarded packets of these sizes, both ends included, are dropped silently.
    pub sizes: Option<(u16, u16)>,
    /// New flows that come in by the LAN are not forwarded into a tunnel; replies are (a stateful firewall).
    pub outward_new_flows: bool,
    /// Packets forwarded into the location are sent back where they came from.
    pub route_loop: bool,
    /// Packets from another location that are forwarded into this one get the node's own address as their source.
    pub source_nat: bool,
    /// The tunnels are gone, and the daemon sees that.
    pub wireguard_down: bool,
    /// No packets to and from other locations.
    pub wan_cut: bool,
    /// Share of packets lost on this node's WAN, each way, 0 to 1.
    pub wan_loss: f64,
    /// The node's WAN is slower by this, each way.
    pub wan_delay: Duration,
    /// No packets to and from nodes of the same location.
    pub lan_cut: bool,
    /// The machine loses its power right after the next write, before the daemon hears of it.
    pub disk_crash: bool,
    /// The same after this many more writes.
    pub power_cut: Option<u32>,
    pub disk_full: Option<FullDisk>,
    /// Each write takes this much longer.
    pub disk_slow: Duration,
    /// An attacker controls the node.
    pub hostile: Option<HostileNode>,
    /// The whole machine stands still: daemon and kernel. Packets wait at it, as many as its device holds.
    pub frozen: bool,
    /// What comes in by the planes of these slots is not forwarded (`net.ipv4.conf.wgl0.forwarding=0`).
    pub planes_off: BTreeSet<u8>,
    /// Nothing of this family is forwarded.
    pub family_off: Option<Family>,
    /// Control connections within the location fail; packets pass.
    pub lan_control_cut: bool,
    /// No packets of the overlay to and from other nodes of the location; control connections pass.
    pub lan_packets_cut: bool,
    /// These devices have no carrier.
    pub links_down: BTreeSet<InterfaceName>,
    /// Rules and routes of other tools.
    pub foreign: Vec<Foreign>,
}

/// A fault that can begin and end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fault {
    NodeCrash,
    /// The machine is off, and comes back with an empty store.
    DiskLoss,
    /// The machine goes off between a write to its disk and the acknowledgement.
    DiskCrash,
    VxlanNewFlows,
    VxlanAll,
    FdbGhost(NodeName),
    ForwardingOff,
    MtuBlackhole(u16),
    /// Packets of these sizes are not forwarded, both ends included.
    SizeWindow(u16, u16),
    /// New flows that come in by the LAN are not forwarded into a tunnel; replies are.
    OutwardNewFlows,
    RouteLoop,
    SourceNat,
    WireguardDown,
    WanCut,
    WanLoss(f64),
    /// Milliseconds that the WAN is slower, each way.
    WanLatency(u32),
    LanCut,
    /// Direct packets from the node to this one are lost; the other way they pass.
    OneWay(NodeName),
    DaemonKill,
    DaemonPause,
    /// No room for more, or for hard states alone.
    DiskFull {
        hard_states_fit: bool,
    },
    /// Milliseconds that each write takes longer.
    DiskSlow(u32),
    /// The machine loses its power after this many more writes, between the last of them and its acknowledgement.
    PowerCut(u32),
    /// An attacker controls the node. When the fault ends, the node is set up anew, with an empty store.
    Hostile(HostileBehaviour),
    /// No direct packet passes between the two, either way.
    PairCut(NodeName),
    /// Weather on the direct path from the node to this one; the other way it stays as it is.
    Weather(NodeName, Weather),
    /// What comes in by the plane of this slot is not forwarded.
    PlaneOff(u8),
    /// Nothing of this family is forwarded.
    FamilyOff(Family),
    /// The machine stands still, daemon and kernel, and goes on late.
    MachinePause,
    /// Control connections within the location fail; packets pass.
    LanControlCut,
    /// Packets within the location fail; control connections pass.
    LanPacketsCut,
    /// A device loses its carrier. The kernel deletes the nexthop objects on it, and what uses them; when the carrier is back the daemon
    /// programs them again.
    LinkDown(InterfaceName),
    /// A rule or a route of another tool.
    Foreign(Foreign),
}

impl World {
    /// Begins or ends a fault.
    pub fn fault(&mut self, node: &NodeName, fault: &Fault, on: bool) {
        self.fault_changed = self.now().mono;
        let Some(f) = self.faults.get_mut(node) else { return };
        match fault {
            Fault::VxlanNewFlows => f.vxlan_new_flows = on,
            Fault::VxlanAll => f.vxlan_all = on,
            Fault::FdbGhost(of) if on => drop(f.ghosts.insert(of.clone())),
            Fault::FdbGhost(of) => drop(f.ghosts.remove(of)),
            Fault::ForwardingOff => f.forwarding_off = on,
            Fault::MtuBlackhole(mtu) => f.mtu = on.then_some(*mtu),
            Fault::SizeWindow(from, to) => f.sizes = on.then_some((*from, *to)),
            Fault::OutwardNewFlows => f.outward_new_flows = on,
            Fault::RouteLoop => f.route_loop = on,
            Fault::SourceNat => f.source_nat = on,
            Fault::WanCut => f.wan_cut = on,
            Fault::WanLoss(share) => f.wan_loss = if on { *share } else { 0.0 },
            Fault::WanLatency(ms) => {
                f.wan_delay = Duration::from_millis(if on { u64::from(*ms) } else { 0 });
            }
            Fault::LanCut => f.lan_cut = on,
            Fault::OneWay(to) => self.cut(node, to, on),
            Fault::PairCut(to) => {
                self.cut(node, to, on);
                self.cut(to, node, on);
            }
            Fault::Weather(to, weather) => {
                let path = (node.clone(), to.clone());
                if on {
                    self.weather.insert(path, *weather);
                } else {
                    self.weather.remove(&path);
                }
            }
            Fault::PlaneOff(slot) => {
                match on {
                    true => f.planes_off.insert(*slot),
                    false => f.planes_off.remove(slot),
                };
                self.check_routes(node);
            }
            Fault::FamilyOff(family) => f.family_off = on.then_some(*family),
            Fault::LanControlCut => f.lan_control_cut = on,
            Fault::LanPacketsCut => f.lan_packets_cut = on,
            Fault::Foreign(foreign) => {
                match on {
                    true => f.foreign.push(foreign.clone()),
                    false => f.foreign.retain(|other| other != foreign),
                }
                self.check_routes(node);
            }
            Fault::LinkDown(dev) if on => {
                f.links_down.insert(dev.clone());
                self.lose_carrier(node, dev);
            }
            Fault::LinkDown(dev) => {
                f.links_down.remove(dev);
                self.repair_drift(node);
            }
            Fault::MachinePause => self.freeze(node, on),
            Fault::WireguardDown => {
                f.wireguard_down = on;
                self.report_local_facts(node);
            }
            Fault::NodeCrash => self.crash(node, on),
            Fault::DiskLoss => {
                self.crash(node, on);
                if on {
                    self.lose_disk(node);
                }
            }
            Fault::DiskCrash => {
                f.disk_crash = on;
                if !on && f.crashed {
                    self.crash(node, false);
                }
            }
            Fault::DiskFull { hard_states_fit } => {
                let full = if *hard_states_fit { FullDisk::HardStates } else { FullDisk::Nothing };
                f.disk_full = on.then_some(full);
                self.store_what_fits(node);
            }
            Fault::DiskSlow(ms) => {
                f.disk_slow = Duration::from_millis(if on { u64::from(*ms) } else { 0 });
            }
            Fault::PowerCut(after) => {
                f.power_cut = on.then_some(*after);
                if !on && f.crashed {
                    self.crash(node, false);
                }
            }
            Fault::Hostile(behaviour) => self.take_over(node, behaviour, on),
            Fault::DaemonKill if on => self.kill_daemon(node),
            Fault::DaemonKill if self.faults[node].crashed || self.core(node).is_some() => {}
            Fault::DaemonKill => self.start_daemon(node),
            Fault::DaemonPause => self.pause_daemon(node, on),
        }
    }

    fn cut(&mut self, from: &NodeName, to: &NodeName, on: bool) {
        let cut = (from.clone(), to.clone());
        if on {
            self.cuts.insert(cut);
        } else {
            self.cuts.remove(&cut);
        }
    }
}
