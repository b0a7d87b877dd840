//! The scenarios that come with the program, so that it works away from its sources.

macro_rules! catalogue {
    ($($name:literal),* $(,)?) => {
        /// Name and text of each.
        pub const SCENARIOS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../../tests/scenarios/", $name, ".toml")))),*];
    };
}

catalogue![
    "kilo-489",
    "cilium-489",
    "cilium-planned",
    "fabric-489",
    "fabric-direct",
    "flannel-489",
    "flannel-planned",
    "all-sick",
    "daemon-kill",
    "daemon-pause",
    "dual-stack",
    "fdb-ghost",
    "fdb-ghost-held",
    "flapping-fault",
    "forwarding-off",
    "ipv6-forwarding",
    "lan-partition",
    "location-cut",
    "member-down",
    "mtu-blackhole",
    "node-crash",
    "observer-sick",
    "planned-promotion",
    "quorum-lost",
    "raft-leader-crash",
    "route-loop",
    "service-blackhole",
    "service-down",
    "slow-paths",
    "source-nat",
    "standby-sick",
    "sysctl-forwarding",
    "three-locations",
    "two-nodes-witness",
    "vxlan-all",
    "wan-brownout",
    "wan-cut",
    "wan-latency",
    "wan-loss",
    "wireguard-down",
];
