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
    "489-stateful",
    "all-sick",
    "daemon-kill",
    "daemon-pause",
    "dual-stack",
    "fdb-ghost",
    "fdb-ghost-held",
    "flapping-fault",
    "flow-hash",
    "forwarding-off",
    "ipv6-forwarding",
    "lan-partition",
    "location-cut",
    "member-down",
    "mtu-blackhole",
    "no-workload-address",
    "node-crash",
    "observer-sick",
    "outward-new-flows",
    "overridden",
    "overridden-all",
    "pair-dead",
    "pair-dead-three",
    "pair-one-way",
    "plane-forwarding-off",
    "planned-promotion",
    "planned-stateful",
    "quorum-lost",
    "raft-leader-crash",
    "relay-loss",
    "route-loop",
    "router-address",
    "service-blackhole",
    "size-window",
    "slow-paths",
    "source-nat",
    "standby-pair-dead-489",
    "standby-pods-stateful",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_file_comes_with_the_program() {
        let files =
            std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/scenarios"));
        let names = files.unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<String> =
            names.filter_map(|n| Some(n.strip_suffix(".toml")?.to_owned())).collect();
        files.sort();
        let mut known: Vec<&str> = SCENARIOS.iter().map(|(name, _)| *name).collect();
        known.sort();
        assert_eq!(files, known);
    }
}
