//! Real endpoints on loopback.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use leaderd_core::ids::Epoch;
use leaderd_core::io::PeerAddress;
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
    let (inputs, control) = (&mut end.inputs, &end.control);
    let input = async {
        tokio::select! {
            input = inputs.recv() => input.expect("an open channel"),
            frame = control.next_frame() => frame,
        }
    };
    timeout(Duration::from_secs(10), input).await.expect("an input in time")
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
async fn frames_without_a_connection_are_dropped_and_counted_and_a_busy_port_is_named() {
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

fn relayed_report(bytes: usize) -> Frame {
    // Of the longest kind but Raft's: names of no node, many of them.
    let name: NodeName = "x".repeat(63).parse().unwrap();
    Frame::Uncarried {
        mesh_hash: [0; 8],
        locations: vec![name.as_str().parse().unwrap(); bytes / 64],
    }
}

#[tokio::test]
async fn a_frame_longer_than_its_kind_is_refused_and_the_connection_stays() {
    let (a, mut b) = connected_pair().await;
    let link = a.control.shared.lock_links()[&b.name].clone();
    // The longest frame of any kind is Raft's.
    let longest = [&raft(0).encode()[..], &vec![0; 5 << 20]].concat();
    for (n, long) in [(1, relayed_report(70 << 10).encode()), (2, longest)] {
        link.push_raw(long);
        let refused = async {
            while b.counters.get("frames_refused_too_long") < n {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), refused).await.expect("it is refused");
    }
    a.control.send(&b.name, &relayed_report(60 << 10));
    assert_eq!(frame(&mut b).await.1, relayed_report(60 << 10));
    // One of our own is not even sent.
    a.control.send(&b.name, &relayed_report(70 << 10));
    assert_eq!(a.counters.get("frames_too_long"), 1);
}

#[tokio::test]
async fn a_peer_that_floods_a_stuck_engine_is_held_back() {
    let (mut a, mut b) = connected_pair().await;
    let (sent, size) = (200, 60_000);
    let link = a.control.shared.lock_links()[&b.name].clone();
    for n in 0..sent {
        // As fast as the connection takes them: what is queued here is dropped beyond its bound.
        link.push_raw(raft(size + n).encode());
    }
    let received = || b.counters.get("frames_in_raft") as usize;
    let mut last = (0, 0);
    // Until nothing more comes in, as nobody takes any.
    while last.1 < 40 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        last =
            if last.0 == received() && last.0 > 0 { (last.0, last.1 + 1) } else { (received(), 0) };
    }
    let inside = last.0 * size;
    assert!(inside <= (1 << 20) + 2 * size, "{inside} bytes of {} wait in the daemon", sent * size);
    // Then all that were not dropped by the sender come.
    let mut taken = 0;
    while timeout(Duration::from_secs(2), frame(&mut b)).await.is_ok() {
        taken += 1;
    }
    assert!(taken > last.0, "{taken} of {sent}");
    b.control.send(&a.name, &ack(1));
    assert_eq!(frame(&mut a).await.1, ack(1));
}
