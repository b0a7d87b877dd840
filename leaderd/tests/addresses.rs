//! Which addresses the daemon finds on a host, and how soon it sees changes: real devices in a network namespace.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leaderd_core::ids::NodeName;
use leaderd_core::io::Input;
use leaderd_core::mesh::Mesh;
use tokio::sync::{mpsc, watch};

const INSIDE: &str = "LEADERD_TEST_INSIDE";

fn mesh(prefixes: &str) -> Arc<Mesh> {
    let key = |n: u8| STANDARD.encode([n; 32]);
    let text = format!(
        "[mesh]\nname = \"a\"\ngeneration = 1\ninner_cidr6 = \"fd4c:eade:0:1::/112\"\n[locations.home]\noverlay = \"external\"\n\
         [nodes.home-0]\nlocation = \"home\"\nindex = 1\nslot = 0\naddress = \"192.0.2.1\"\nendpoint = \"192.0.2.1\"\n\
         prefixes = [{prefixes}]\nwireguard_key = \"{}\"\ncontrol_key = \"{}\"\n",
        key(1),
        key(101)
    );
    Arc::new(leaderd_core::mesh::parse(&text).unwrap_or_else(|e| panic!("{e:?}")))
}

#[track_caller]
fn ip(lines: &str) {
    for line in lines.lines() {
        let out = Command::new("ip").args(line.split_whitespace()).output().unwrap();
        assert!(out.status.success(), "ip {line}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

/// What is told next: device and address of each.
async fn told(inputs: &mut mpsc::Receiver<Input>) -> Vec<String> {
    let next = tokio::time::timeout(Duration::from_secs(10), inputs.recv()).await;
    match next.expect("it is told within seconds") {
        Some(Input::Addresses(held)) => {
            held.iter().map(|h| format!("{} {}", h.device, h.address)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_host_holds_within_the_nodes_prefixes_is_found_and_followed() {
    if std::env::var_os(INSIDE).is_none() {
        let mut command = Command::new("unshare");
        command.arg("-Urn").arg(std::env::current_exe().unwrap());
        command.args(["--nocapture", "--test-threads=1"]).env(INSIDE, "1");
        assert!(command.status().expect("unshare (util-linux) is needed").success());
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // As flannel's device: the network address. Beside it the node's own, which comes first, and one that is neither.
        ip("link set lo up
            link add flannel.1 type veth peer name other
            addr add 10.42.1.0/32 dev flannel.1
            addr add 192.0.2.1/24 dev other
            addr add 192.0.2.77/24 dev other
            link set flannel.1 up
            link set other up");
        let me: NodeName = "home-0".parse().unwrap();
        let (meshes, meshes_rx) = watch::channel(mesh("\"10.42.1.0/24\", \"fd42::/64\""));
        let (inputs, mut received) = mpsc::channel(8);
        tokio::spawn(leaderd::addresses::watch(me, meshes_rx, inputs));
        assert_eq!(told(&mut received).await, ["other 192.0.2.1", "flannel.1 10.42.1.0"]);
        // The bridge comes with the first Pod; what is down holds nothing.
        ip("link add cni0 type bridge
            addr add 10.42.1.1/24 dev cni0
            addr add fd42::7/64 dev cni0 nodad");
        ip("link set cni0 up");
        assert_eq!(
            told(&mut received).await,
            ["other 192.0.2.1", "cni0 10.42.1.1", "cni0 fd42::7", "flannel.1 10.42.1.0"]
        );
        // Another router address.
        ip("addr del 10.42.1.0/32 dev flannel.1
            addr add 10.42.1.246/32 dev flannel.1");
        let moved = ["other 192.0.2.1", "cni0 10.42.1.1", "cni0 fd42::7", "flannel.1 10.42.1.246"];
        let mut seen = told(&mut received).await;
        if seen != moved {
            // Between the two it held none there.
            seen = told(&mut received).await;
        }
        assert_eq!(seen, moved);
        ip("link del flannel.1");
        assert_eq!(told(&mut received).await, ["cni0 10.42.1.1", "cni0 fd42::7"]);
        // The mesh file has other prefixes.
        meshes.send_replace(mesh("\"10.43.0.0/24\""));
        assert_eq!(told(&mut received).await, [] as [&str; 0]);
        assert!(received.try_recv().is_err(), "each is told once");
    });
}
