//! What is done to the mesh, and why each system notices or does not.

use std::time::Duration;

use anyhow::Result;
use wgctl_lab::Scenario;

use super::systems::Contender;

/// Bytes of the meters' IP packets, unless a case is about large ones.
const SMALL: u16 = 128;
const LARGE: u16 = 1300;
/// How long a case is played at most, from the fault on.
const WINDOW: Duration = Duration::from_secs(15);

/// The mesh of every case: two locations of two gateways and a member, VXLAN in each, 20 ms between them.
pub fn scenario(size: u16) -> Result<Scenario> {
    Scenario::parse(
        "peers",
        &format!(
            "title = \"side by side\"\nlocation = \"cloud\"\n[locations.onprem]\ncandidates = 2\nmembers = 1\n\
             [locations.cloud]\ncandidates = 2\nmembers = 1\n[meter]\nsize = {size}\n"
        ),
    )
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Case {
    VxlanNewFlows,
    ForwardingOff,
    SysctlForwarding,
    MtuBlackhole,
    FdbGhostHeld,
    RouteLoop,
    VxlanAll,
    LanPartition,
    WireguardDown,
    WanCut,
    NodeCrash,
    WanLoss,
    WanLatency,
    PlannedMove,
    Brownout,
}

/// What a case does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Deed {
    /// A fault of the lab, with its argument, on the gateway that carries the traffic.
    Fault(&'static str, Option<&'static str>),
    /// Every path loses this share of packets, each way.
    Everywhere(f64),
    /// An operator moves the traffic away.
    HandOver,
}

impl Case {
    /// In an order in which what may go unnoticed comes first: the next case can then be played in the same world.
    pub const ALL: [Self; 15] = [
        Self::VxlanNewFlows,
        Self::ForwardingOff,
        Self::SysctlForwarding,
        Self::MtuBlackhole,
        Self::FdbGhostHeld,
        Self::RouteLoop,
        Self::VxlanAll,
        Self::LanPartition,
        Self::WireguardDown,
        Self::WanCut,
        Self::NodeCrash,
        Self::WanLoss,
        Self::WanLatency,
        Self::PlannedMove,
        Self::Brownout,
    ];

    pub fn key(self) -> &'static str {
        match self {
            Self::VxlanNewFlows => "vxlan-new-flows",
            Self::ForwardingOff => "forwarding-off",
            Self::SysctlForwarding => "sysctl-forwarding",
            Self::MtuBlackhole => "mtu-blackhole",
            Self::FdbGhostHeld => "fdb-ghost-held",
            Self::RouteLoop => "route-loop",
            Self::VxlanAll => "vxlan-all",
            Self::LanPartition => "lan-partition",
            Self::WireguardDown => "wireguard-down",
            Self::WanCut => "wan-cut",
            Self::NodeCrash => "node-crash",
            Self::WanLoss => "wan-loss",
            Self::WanLatency => "wan-latency",
            Self::PlannedMove => "planned-move",
            Self::Brownout => "brownout",
        }
    }

    pub fn deed(self) -> Deed {
        match self {
            Self::MtuBlackhole => Deed::Fault(self.key(), Some("1000")),
            Self::WanLoss => Deed::Fault(self.key(), Some("40")),
            Self::WanLatency => Deed::Fault(self.key(), Some("60")),
            Self::PlannedMove => Deed::HandOver,
            Self::Brownout => Deed::Everywhere(0.1),
            _ => Deed::Fault(self.key(), None),
        }
    }

    pub fn about(self) -> &'static str {
        match self {
            Self::VxlanNewFlows => {
                "the gateway drops new VXLAN flows, old ones and ping pass (Kilo #489)"
            }
            Self::ForwardingOff => "the gateway forwards nothing, and answers for itself",
            Self::MtuBlackhole => {
                "the gateway swallows packets over 1,000 bytes; the meters send 1,300"
            }
            Self::SysctlForwarding => {
                "another tool sets `ip_forward` of the gateway to 0, which answers for itself"
            }
            Self::FdbGhostHeld => {
                "the gateway's VXLAN packets go to an address that is gone, and writing its FDB again does not help"
            }
            Self::RouteLoop => "packets to the nodes behind the gateway loop on it",
            Self::VxlanAll => "no VXLAN packet leaves or enters the gateway",
            Self::LanPartition => "the gateway's LAN cable is pulled, its uplink works",
            Self::WireguardDown => "the gateway's tunnels are set down",
            Self::WanCut => "the gateway's uplink is cut, its LAN works",
            Self::NodeCrash => "the gateway loses power",
            Self::WanLoss => "the gateway's uplink loses 40% each way",
            Self::WanLatency => {
                "the gateway's uplink becomes 60 ms slower each way: no gateway should change"
            }
            Self::PlannedMove => "an operator moves the traffic to the other gateway",
            Self::Brownout => "every path loses 10% each way: no gateway should change",
        }
    }

    pub fn size(self) -> u16 {
        if self == Self::MtuBlackhole { LARGE } else { SMALL }
    }

    /// How long the meters run before. An established flow must have been seen to be one, and leaderd's own long-lived probes
    /// send a packet a second.
    pub fn peace(self) -> Duration {
        Duration::from_secs(if self == Self::VxlanNewFlows { 4 } else { 1 })
    }

    /// The whole window is played even when traffic flows again: it may go back to where it was bad.
    pub fn to_the_end(self) -> bool {
        matches!(self, Self::WanLoss | Self::WanLatency | Self::Brownout)
    }

    /// How long a system is waited for. Kilo's rule needs minutes by design, and gets the time where it would act at all.
    pub fn window(self, who: Contender) -> Duration {
        match (who, self) {
            (Contender::Kilo, Self::NodeCrash) => Duration::from_secs(100),
            (Contender::Kilo, Self::WireguardDown) => Duration::from_secs(35),
            _ => WINDOW,
        }
    }

    /// The best a system can do is to leave everything where it is.
    pub fn must_not_move(self) -> bool {
        matches!(self, Self::WanLatency | Self::Brownout)
    }
}
