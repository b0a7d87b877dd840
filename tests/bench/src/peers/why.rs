//! Why each kind of system notices a fault or does not, in a sentence each.

use super::cases::Case;

/// Of leaderd, BFD with BGP, VRRP, Kilo's rule.
pub fn why(case: Case) -> [&'static str; 4] {
    match case {
        Case::VxlanNewFlows => [
            "Its probes of new flows go through every gateway to workloads, as the dead packets do.",
            "BFD over the tunnel sees the tunnel, and BFD over the overlay is one old flow: both pass what the fault passes.",
            "Adverts over the overlay are one old flow, and the ping ends at the far gateway.",
            "The node checks in.",
        ],
        Case::ForwardingOff => [
            "Probes are forwarded to workloads, or here are not.",
            "BFD and BGP are spoken by the gateway itself; what it forwards is not in question.",
            "Adverts and ping are answered by the gateway itself.",
            "The node checks in.",
        ],
        Case::SysctlForwarding => [
            "The gateway says so itself, and probes through it end.",
            "BFD and BGP are spoken by the gateway itself; what it forwards is not in question.",
            "Adverts and ping are answered by the gateway itself.",
            "The node checks in.",
        ],
        Case::MtuBlackhole => [
            "One class of probes is as large as the workloads' MTU and may not be fragmented.",
            "BFD packets are small, and the gateway does not forward its own.",
            "Adverts and ping are small, and the gateway does not forward its own.",
            "The node checks in.",
        ],
        Case::FdbGhostHeld => [
            "Probes to workloads die with the packets.",
            "BFD over the overlay ends, and members use the other gateway.",
            "The master's adverts no longer arrive, and the backup takes over.",
            "The node checks in.",
        ],
        Case::RouteLoop => [
            "Probes to workloads loop as well, and time-exceeded names the cause.",
            "BFD and BGP are about the gateway's own addresses, which are not in the loop.",
            "Adverts and ping are about the gateway's own addresses, which are not in the loop.",
            "The node checks in.",
        ],
        Case::VxlanAll => [
            "Probes to workloads behind the gateway end.",
            "BFD over the overlay ends, and members use the other gateway.",
            "Adverts no longer arrive, and the backup takes over.",
            "The node checks in.",
        ],
        Case::LanPartition => [
            "Probes to workloads behind the gateway end.",
            "BFD over the overlay ends, and members use the other gateway.",
            "Adverts no longer arrive, and the backup takes over.",
            "The node checks in.",
        ],
        Case::WireguardDown => [
            "The gateway says so itself, and its daemon sets the links up again.",
            "The sessions over the tunnels end, the gateway withdraws its routes, and members use the other one; the link stays down.",
            "The master looks at its device every second and gives up; the new one sets its own tunnel up and needs a handshake.",
            "The next application of the topology, up to 30 s later, sets the link up again.",
        ],
        Case::WanCut => [
            "Probes through the gateway end; a wholly silent path is given 130 ms more than a bad one.",
            "The sessions over the tunnels end, the gateway withdraws its routes, and members use the other one.",
            "The master gives up after five lost pings of the far end, one a second.",
            "The node checks in: the driver gives it a way to the API server that no fault cuts. Without one it is leader until its check-in is 60 s old.",
        ],
        Case::NodeCrash => [
            "Probes through the gateway end, on both sides; a wholly silent path is given 130 ms more than a bad one.",
            "Both BFD sessions, over the tunnel and over the overlay, end after three intervals.",
            "Adverts end, and the backup takes over after three of them; then it needs a handshake.",
            "The node is leader until its check-in is 60 s old, and each node notices at its own timer of 30 s.",
        ],
        Case::WanLoss => [
            "Losses are counted and held against the standby's.",
            "Three packets in a row are lost soon; sessions come back between losses, and traffic with them.",
            "Five pings in a row must fail, one a second, which at 64% loss of the round trip is a matter of luck.",
            "The node checks in, over whatever is left.",
        ],
        Case::WanLatency => [
            "Slower is not broken; replies that come late count as late.",
            "A pause of 60 ms each way is shorter than three intervals.",
            "Pings come back later.",
            "The node checks in.",
        ],
        Case::PlannedMove => [
            "Both gateways forward during the change: a route moves, and no tunnel does.",
            "Graceful shutdown makes the routes unattractive while the old way still forwards; no tunnel moves.",
            "Break before make, but quick: the old tunnel goes, the new one needs a handshake, which one side alone begins.",
            "Break before make: the peers are replaced on both sides. Where both begin the handshake within 10 ms each drops the other's, and retries 5 s later; traffic as dense as the meters' keeps both in step. With real Kilo and less traffic 4.9 s were measured.",
        ],
        Case::Brownout => [
            "The standby loses as much as the leader, so no gateway would be better.",
            "Three in a row get lost now and then, and BFD compares with nothing.",
            "Adverts stay in the location; five lost pings in a row are rare.",
            "The node checks in.",
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_one_cell_of_a_table() {
        for sentence in Case::ALL.into_iter().flat_map(why) {
            assert!(sentence.ends_with('.') && !sentence.contains(['|', '\n']), "{sentence}");
        }
    }
}
