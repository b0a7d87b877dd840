//! Bytes of the control channel: a frame that decodes encodes to the same again, and whatever an authenticated peer
//! sends as Raft bytes, a group does not panic, then or in the five seconds that follow.

#![no_main]

use std::sync::Arc;
use std::time::Duration;

use leaderd_core::group::{Group, GroupOutput};
use leaderd_core::ids::{Generation, NodeIndex, Slot};
use leaderd_core::io::Restored;
use leaderd_core::mesh::{ControlPublicKey, InnerRange, Location, Mesh, Node, Overlay, Policy};
use leaderd_core::time::{Instant, Now, WallTime};
use leaderd_core::wire::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::decode(bytes) {
        let again = Frame::decode(&frame.encode()).expect("what was encoded decodes");
        assert_eq!(again.encode(), frame.encode());
        if let Frame::Raft { message, .. } = frame {
            deliver(&message);
        }
    }
    deliver(bytes);
});

/// Three candidates of location `cloud`, indexes 1 to 3.
fn mesh() -> Arc<Mesh> {
    let node = |i: u16| Node {
        name: format!("cloud-{i}").parse().unwrap(),
        index: NodeIndex(i + 1),
        location: "cloud".parse().unwrap(),
        slot: Some(Slot(i as u8)),
        priority: 100,
        endpoint: None,
        address: "10.0.0.1".parse().unwrap(),
        device: None,
        prefixes: Vec::new(),
        probe_addresses: Vec::new(),
        wireguard_key: wgctl_plan::WgPublicKey([i as u8; 32]),
        control_key: ControlPublicKey([i as u8; 32]),
    };
    let cloud = Location { name: "cloud".parse().unwrap(), overlay: Overlay::External, witnesses: Vec::new() };
    Arc::new(Mesh {
        name: "fuzz".into(),
        generation: Generation(1),
        hash: [0; 32],
        inner: InnerRange { v4: "100.127.0.0/16".parse().unwrap(), v6: None },
        base_port: 51900,
        control_port: 7946,
        probe_ports: vec![8620],
        mtu: 1420,
        keepalive: 10,
        policy: Policy::default(),
        locations: [(cloud.name.clone(), cloud)].into(),
        nodes: (0..3).map(node).map(|n| (n.name.clone(), n)).collect(),
    })
}

fn deliver(bytes: &[u8]) {
    let at = |ms: u64| Now { mono: Instant(ms * 1000), wall: WallTime(1_700_000_000_000_000 + ms * 1000) };
    let me = "cloud-1".parse().unwrap();
    let peer = "cloud-0".parse().unwrap();
    let mut group =
        Group::new(mesh(), "cloud".parse().unwrap(), me, Restored::default(), 1, at(0)).expect("a voter");
    let mut persisted = 0;
    for step in 0..50 {
        let now = at(step * 100);
        if step == 0 || step == 20 {
            group.handle_raft(now, &peer, bytes);
        }
        while let Some(output) = group.poll_output() {
            if let GroupOutput::Persist { ticket, .. } = output {
                persisted = persisted.max(ticket);
            }
        }
        group.handle_persisted(now, persisted);
        if group.poll_timeout().is_some_and(|t| t <= now.mono + Duration::from_millis(100)) {
            group.handle_timeout(now);
        }
    }
}
