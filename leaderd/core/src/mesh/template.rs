//! The example that `wgctl mesh init` writes: two locations, three and two candidates, a witness, all of it valid.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Public keys for one node of the example.
#[derive(Debug, Clone, Copy)]
pub struct ExampleKeys {
    pub wireguard: [u8; 32],
    pub control: [u8; 32],
}

/// A node of the example; without a slot it has no endpoint either.
struct Example {
    name: &'static str,
    location: &'static str,
    slot: Option<(u8, &'static str)>,
    address: &'static str,
    prefix: &'static str,
}

const fn node(
    name: &'static str,
    location: &'static str,
    slot: Option<(u8, &'static str)>,
    address: &'static str,
    prefix: &'static str,
) -> Example {
    Example { name, location, slot, address, prefix }
}

const NODES: [Example; 6] = [
    node("home-0", "home", Some((0, "home-0.example.net")), "192.168.1.10", "10.42.0.0/24"),
    node("home-1", "home", Some((1, "home-1.example.net")), "192.168.1.11", "10.42.1.0/24"),
    node("cloud-0", "cloud", Some((0, "203.0.113.10")), "10.0.0.10", "10.43.0.0/24"),
    node("cloud-1", "cloud", Some((1, "203.0.113.11")), "10.0.0.11", "10.43.1.0/24"),
    node("cloud-2", "cloud", Some((2, "203.0.113.12")), "10.0.0.12", "10.43.2.0/24"),
    node("cloud-3", "cloud", None, "10.0.0.13", "10.43.3.0/24"),
];

/// The number of nodes in the example, and of keys that it needs.
pub const EXAMPLE_NODES: usize = NODES.len();

const HEAD: &str = r#"# A mesh of two locations. The same file goes to every node, as /etc/leaderd/mesh.toml.
#
#   1. Change locations, nodes, addresses and prefixes to yours.
#   2. On every node run `wgctl keygen --out /etc/leaderd/keys` and put the two lines that it prints into that node's
#      table, in place of `wireguard_key` and `control_key`. (Those here are examples: nobody has their secret halves.)
#   3. Run `wgctl mesh validate mesh.toml`: it names every mistake with its line.
#
# With every later change count `generation` up; nodes show which generation they run.
# docs/configuration.md explains every field.

[mesh]
name = "example"
generation = 1
# Addresses that leaderd itself uses inside of the tunnels: a /16 that nobody else uses. Never change it in a mesh that runs.
inner_cidr = "169.254.0.0/16"
# Candidates listen on this UDP port, and on one more for every further slot: open 51900 to 51902 to the other locations.
base_port = 51900
# The largest packet (in bytes) that a workload may send through the mesh.
mtu = 1420

# How eagerly to probe and to move. All of it has defaults; these are the two you may want to know.
[policy]
probe_interval = "100ms"
false_failovers_per_year = 0.01

# leaderd carries traffic between the nodes of this location in a VXLAN overlay of its own.
# Others: "direct" (nodes reach each other's workloads over the LAN), "cni" (a CNI such as Cilium does it).
[locations.home]
overlay = "vxlan"
# Two nodes alone cannot outvote a dead one. A candidate of another location votes here too, and never leads here.
witnesses = ["cloud-0"]

[locations.cloud]
overlay = "vxlan"
# Real services behind the candidates, to be asked through each of them (a TCP connect, or an HTTP request):
# services = [{ address = "10.43.3.20:5432" }, { address = "10.43.3.21:8080", http = "/healthz", body = 4000 }]
"#;

/// Returns the example as text. It passes [`super::parse`] with any distinct keys.
pub fn example(keys: &[ExampleKeys; EXAMPLE_NODES]) -> String {
    let mut text = HEAD.to_owned();
    for (n, (node, keys)) in NODES.iter().zip(keys).enumerate() {
        let Example { name, location, slot, address, prefix } = node;
        if n == 0 {
            text += "\n# A node with a slot is a candidate: it may lead its location, and needs an endpoint that others reach.";
            text +=
                "\n# Slots and indices are for good: never give one that was used to another node.";
        } else if slot.is_none() {
            text += "\n# A node without a slot is a member: it reaches other locations through the leader of its own.";
        }
        text += &format!("\n[nodes.{name}]\nlocation = \"{location}\"\nindex = {}\n", n + 1);
        if let Some((slot, endpoint)) = slot {
            text += &format!("slot = {slot}\nendpoint = \"{endpoint}\"\n");
        }
        text += &format!("address = \"{address}\"\nprefixes = [\"{prefix}\"]\n");
        text += &format!("wireguard_key = \"{}\"\n", STANDARD.encode(keys.wireguard));
        text += &format!("control_key = \"{}\"\n", STANDARD.encode(keys.control));
    }
    text
}
