//! Real endpoints on loopback.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use leaderd_core::ids::Epoch;
use leaderd_core::node::PeerAddress;
use leaderd_core::time::WallTime;
use tokio::time::timeout;

use super::*;
use crate::secrets::Secret;

struct End {
    name: NodeName,
    keys: Keys,
    port: u16,
    control: Control,
    inputs: mpsc::Receiver<Input>,
    counters: Counters,
}

fn end(name: &str, seed: u8) -> End {
    let keys = Keys { wireguard: Secret::new([seed; 32]), control: Secret::new([seed; 32]) };
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (tx, inputs) = mpsc::channel(256);
    let counters = Counters::default();
    let control = Control::start(port, &keys, tx, counters.clone()).unwrap();
    End { name: name.parse().unwrap(), keys, port, control, inputs, counters }
}

/// How others see this end; `dial` if they are to dial it.
fn peer(of: &End, dial: bool) -> Peer {
    let to = SocketAddr::from(([127, 0, 0, 1], of.port));
    Peer {
        name: of.name.clone(),
        addresses: vec![PeerAddress { plane: None, source: None, to }],
        control_key: of.keys.control_public(),
        dial,
    }
}

async fn next(end: &mut End) -> Input {
    timeout(Duration::from_secs(10), end.inputs.recv())
        .await
        .expect("an input in time")
        .expect("an open channel")
}

/// The next frame, past the control channel's own news.
async fn frame(end: &mut End) -> (NodeName, Frame) {
    loop {
        if let Input::Frame { from, frame } = next(end).await {
            return (from, *frame);
        }
    }
}

fn ack(epoch: u64) -> Frame {
    Frame::Ack {
        location: "cloud".parse().unwrap(),
        epoch: Epoch(epoch),
        programmed_at: WallTime(1),
    }
}

fn raft(size: usize) -> Frame {
    Frame::Raft { location: "cloud".parse().unwrap(), message: vec![7; size] }
}

async fn connected_pair() -> (End, End) {
    let (mut a, mut b) = (end("a", 1), end("b", 2));
    let (pa, pb) = (peer(&a, false), peer(&b, true));
    a.control.set_peers(&[pb]);
    b.control.set_peers(&[pa]);
    assert!(matches!(next(&mut a).await, Input::PeerUp { node, .. } if node.as_str() == "b"));
    assert!(matches!(next(&mut b).await, Input::PeerUp { node, .. } if node.as_str() == "a"));
    (a, b)
}

#[tokio::test]
async fn frames_of_every_size_arrive_from_the_node_whose_key_it_is() {
    let (mut a, mut b) = connected_pair().await;
    for sent in [ack(3), raft(10), raft(3_000_000)] {
        a.control.send(&b.name, &sent);
        assert_eq!(frame(&mut b).await, (a.name.clone(), sent.clone()));
        b.control.send(&a.name, &sent);
        assert_eq!(frame(&mut a).await, (b.name.clone(), sent));
    }
}

#[tokio::test]
async fn a_key_that_is_not_in_the_mesh_is_refused_on_either_side() {
    let (mut a, mut b, stranger) = (end("a", 1), end("b", 2), end("b", 3));
    // `a` dials b's port but expects the stranger's key: it must not take b for it.
    let mut wrong = peer(&stranger, true);
    wrong.addresses = peer(&b, true).addresses;
    a.control.set_peers(&[wrong]);
    let pa = peer(&a, false);
    b.control.set_peers(&[pa]);
    // The stranger dials as the lower index, and b does not know its key.
    let mut dialing = end("a", 9);
    dialing.control.set_peers(&[peer(&b, true)]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    for end in [&mut a, &mut b, &mut dialing] {
        assert!(end.inputs.try_recv().is_err(), "{} took a key that it does not know", end.name);
        assert!(end.control.connected().is_empty());
    }
    assert!(b.counters.get("handshakes_refused") >= 1);
    assert!(a.counters.get("dials_failed") >= 1);
}

#[tokio::test]
async fn a_peer_that_leaves_the_mesh_is_disconnected_and_one_that_returns_is_dialed_again() {
    let (mut a, mut b) = connected_pair().await;
    b.control.set_peers(&[]);
    assert!(matches!(next(&mut a).await, Input::PeerDown { .. }));
    assert!(matches!(next(&mut b).await, Input::PeerDown { .. }));
    let pa = peer(&a, false);
    b.control.set_peers(&[pa]);
    assert!(matches!(next(&mut a).await, Input::PeerUp { .. }));
    a.control.send(&b.name, &ack(4));
    assert_eq!(frame(&mut b).await.1, ack(4));
}

#[tokio::test]
async fn a_peer_with_another_address_is_dialed_there_and_takes_the_new_connection() {
    let (mut a, mut b) = (end("a", 1), end("b", 2));
    let pa = peer(&a, false);
    b.control.set_peers(&[pa]);
    let by = |source: [u8; 4], to: [u8; 4], b: &End| {
        let to = SocketAddr::from((to, b.port));
        let addresses = vec![PeerAddress { plane: None, source: Some(source.into()), to }];
        Peer { addresses, ..peer(b, true) }
    };
    a.control.set_peers(&[by([127, 0, 0, 1], [127, 0, 0, 1], &b)]);
    assert!(matches!(next(&mut a).await, Input::PeerUp { .. }));
    assert!(matches!(next(&mut b).await, Input::PeerUp { .. }));

    a.control.set_peers(&[by([127, 0, 0, 2], [127, 0, 0, 3], &b)]);
    // PeerUp is said again and again of a connection that stays.
    while !matches!(next(&mut a).await, Input::PeerDown { .. }) {}
    while !matches!(next(&mut a).await, Input::PeerUp { .. }) {}
    a.control.send(&b.name, &ack(5));
    assert_eq!(frame(&mut b).await.1, ack(5));
    b.control.send(&a.name, &ack(6));
    assert_eq!(frame(&mut a).await.1, ack(6));
    assert_eq!(b.counters.get("connections_refused_double"), 0);
}

#[tokio::test]
async fn garbage_on_the_port_does_no_harm() {
    let (mut a, mut b) = connected_pair().await;
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    for i in 0..2000usize {
        let bytes: Vec<u8> = (0..i % 1400).map(|n| (n * i) as u8 | 0xc0).collect();
        noise.send_to(&bytes, ("127.0.0.1", b.port)).unwrap();
    }
    a.control.send(&b.name, &raft(100));
    assert_eq!(frame(&mut b).await.1, raft(100));
    b.control.send(&a.name, &ack(1));
    assert_eq!(frame(&mut a).await.1, ack(1));
}

#[tokio::test]
async fn frames_to_nobody_are_dropped_and_counted_and_a_busy_port_is_named() {
    let a = end("a", 1);
    a.control.send(&"nobody".parse().unwrap(), &ack(1));
    assert_eq!(a.counters.get("frames_without_connection"), 1);
    let error = Control::start(a.port, &a.keys, mpsc::channel(1).0, Counters::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("UDP port {}", a.port)) && error.contains("control_port"),
        "{error}"
    );
}

#[test]
fn slow_paths_may_be_silent_for_longer() {
    assert_eq!(link::silence(Duration::from_millis(1)), Duration::from_secs(3));
    assert_eq!(link::silence(Duration::from_millis(800)), Duration::from_secs(8));
}
