//! `leaderd userspace` as a process on real packets: two nodes in namespaces, `wg`, and the protocol by hand. And all of
//! wgctl's tests of the network, with it as WireGuard.

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

#[path = "../../wgctl/tests/kernel.rs"]
mod kernel;

use kernel::{isolated, run, sh};

const LEADERD: &str = env!("CARGO_BIN_EXE_leaderd");

/// Generous: only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

#[track_caller]
fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `wga` here and `wgb` in the namespace `far`, each other's peers over a veth: 10.0.0.1 and 10.0.0.2.
struct Pair {
    near: Child,
    far: Child,
    near_key: String,
    far_key: String,
}

fn serve(far: bool, name: &str) -> Child {
    let mut command = match far {
        false => Command::new(LEADERD),
        true => {
            let mut nsenter = Command::new("nsenter");
            nsenter.args(["--net=/run/netns/far", LEADERD]);
            nsenter
        }
    };
    let child = command.args(["userspace", name]).stdin(Stdio::null()).spawn().unwrap();
    wait_until("the socket is there", || {
        UnixStream::connect(format!("/run/wireguard/{name}.sock")).is_ok()
    });
    child
}

fn key(name: &str) -> String {
    sh(&format!("umask 77; wg genkey > /run/{name}.key; wg pubkey < /run/{name}.key"))
        .trim()
        .to_owned()
}

impl Pair {
    /// Both links are still down.
    fn new() -> Self {
        sh(
            "mkdir -p /run/netns && ip netns add far && ip link add v0 type veth peer name v1 netns far",
        );
        sh("ip addr add 198.51.100.1/24 dev v0 && ip link set v0 up");
        sh("ip -n far addr add 198.51.100.2/24 dev v1 && ip -n far link set v1 up");
        let (near, far) = (serve(false, "wga"), serve(true, "wgb"));
        let (near_key, far_key) = (key("a"), key("b"));
        sh(&format!(
            "wg set wga private-key /run/a.key listen-port 51820 \
             peer {far_key} allowed-ips 10.0.0.2/32 endpoint 198.51.100.2:51820"
        ));
        sh(&format!(
            "wg set wgb private-key /run/b.key listen-port 51820 \
             peer {near_key} allowed-ips 10.0.0.1/32 endpoint 198.51.100.1:51820"
        ));
        sh("ip addr add 10.0.0.1/24 dev wga && ip -n far addr add 10.0.0.2/24 dev wgb");
        Self { near, far, near_key, far_key }
    }

    fn up() -> Self {
        let pair = Self::new();
        sh("ip link set wga up && ip -n far link set wgb up");
        wait_until("the tunnel works", || run("ping -c1 -W1 10.0.0.2").status.success());
        pair
    }

    /// When each end says that its last handshake was, in seconds.
    fn handshakes(&self) -> [String; 2] {
        [sh("wg show wga latest-handshakes"), sh("wg show wgb latest-handshakes")]
    }
}

/// One request, and its answer up to the empty line.
fn ask(name: &str, request: &str) -> String {
    let mut stream = UnixStream::connect(format!("/run/wireguard/{name}.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\n\n") && stream.read(&mut byte).unwrap() > 0 {
        answer.push(byte[0]);
    }
    String::from_utf8(answer).unwrap()
}

/// Whether the UDP port of `wga` is open, as seen from the other namespace: a closed one is refused by ICMP, an open one is
/// silent to a stranger.
fn port_is_open() -> bool {
    std::thread::spawn(|| {
        let far = std::fs::File::open("/run/netns/far").unwrap();
        setns(far.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind("198.51.100.2:0").unwrap();
        socket.connect("198.51.100.1:51820").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket.send(b"anybody there?").unwrap();
        match socket.recv(&mut [0; 16]) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => false,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => true,
            other => panic!("neither open nor closed: {other:?}"),
        }
    })
    .join()
    .unwrap()
}

#[test]
fn while_its_link_is_down_its_udp_port_is_closed() {
    isolated("while_its_link_is_down_its_udp_port_is_closed", || async {
        let pair = Pair::new();
        assert!(!port_is_open(), "it was never up");
        assert!(sh("wg show wga listen-port").contains("51820"), "it is only remembered");
        for _ in 0..3 {
            sh("ip link set wga up");
            wait_until("the port is open", port_is_open);
            sh("ip -n far link set wgb up");
            wait_until("the tunnel works", || run("ping -c1 -W1 10.0.0.2").status.success());
            sh("ip link set wga down");
            wait_until("the port is closed", || !port_is_open());
            assert!(!sh("cat /proc/net/udp /proc/net/udp6").contains(":CA6C "));
            assert!(!pair.handshakes()[0].ends_with("\t0\n"), "it was up: {:?}", pair.handshakes());
        }
    });
}

#[test]
fn a_port_is_closed_and_opened_without_peers_too() {
    isolated("a_port_is_closed_and_opened_without_peers_too", || async {
        let pair = Pair::new();
        sh(&format!("wg set wga peer {} remove && ip link set wga up", pair.far_key));
        wait_until("the port is open", port_is_open);
        sh("ip link set wga down");
        wait_until("the port is closed", || !port_is_open());
        // And without a key: the kernel opens it, too.
        sh("wg set wga private-key /dev/null && ip link set wga up");
        wait_until("the port is open", port_is_open);
    });
}

#[test]
fn a_port_that_is_taken_is_named_and_opened_when_it_is_free() {
    isolated("a_port_that_is_taken_is_named_and_opened_when_it_is_free", || async {
        let _pair = Pair::new();
        let holder = UdpSocket::bind("0.0.0.0:51820").unwrap();
        sh("ip link set wga up && ip -n far link set wgb up");
        assert_eq!(ask("wga", "set=1\nlisten_port=51820\n\n"), "errno=-98\n\n");
        let away = ask("wga", "set=1\nlisten_port=51821\n\n");
        assert_eq!(away, "errno=0\n\n");
        assert_eq!(ask("wga", "set=1\nlisten_port=51820\n\n"), "errno=-98\n\n");
        drop(holder);
        wait_until("it opens the port by itself", || run("ping -c1 -W1 10.0.0.2").status.success());
        assert!(sh("wg show wga listen-port").contains("51820"));
    });
}

#[test]
fn a_port_that_a_request_could_not_open_is_opened_when_it_is_free() {
    isolated("a_port_that_a_request_could_not_open_is_opened_when_it_is_free", || async {
        let _pair = Pair::up();
        let holder = UdpSocket::bind("0.0.0.0:51821").unwrap();
        assert_eq!(ask("wga", "set=1\nlisten_port=51821\n\n"), "errno=-98\n\n");
        drop(holder);
        wait_until("it opens the port by itself", || run("ping -c1 -W1 10.0.0.2").status.success());
        assert!(sh("wg show wga listen-port").contains("51821"));
    });
}

#[test]
fn a_session_survives_every_change_that_does_not_concern_it() {
    isolated("a_session_survives_every_change_that_does_not_concern_it", || async {
        let pair = Pair::up();
        let (peer, other) = (&pair.far_key, key("c"));
        let before = pair.handshakes();
        assert!(!before[0].ends_with("\t0\n"), "{before:?}");
        // 50 packets a second, answered by the kernel of the other end.
        let mut ping = Command::new("ping")
            .args(["-i", "0.02", "-c", "250", "-W", "5", "10.0.0.2"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for change in [
            // Again as it is, as wgctl says it: prefixes replaced by the same.
            format!("peer {peer} allowed-ips 10.0.0.2/32 endpoint 198.51.100.2:51820"),
            format!("peer {peer} persistent-keepalive 25"),
            format!("peer {peer} allowed-ips 10.0.0.2/32,10.8.0.0/16,fd00::/64"),
            format!("peer {peer} allowed-ips 10.0.0.0/24"),
            format!("peer {peer} allowed-ips 10.0.0.2/32"),
            format!(
                "peer {other} allowed-ips 10.9.0.0/16 endpoint 198.51.100.2:9 persistent-keepalive 1"
            ),
            format!("peer {other} remove"),
            "private-key /run/a.key listen-port 51820 fwmark 0".to_owned(),
            format!("peer {peer} persistent-keepalive 0"),
        ] {
            sh(&format!("wg set wga {change}"));
            std::thread::sleep(Duration::from_millis(200));
        }
        let mut said = String::new();
        ping.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(ping.wait().unwrap().success());
        assert!(said.contains(" 250 received, 0% packet loss"), "{said}");
        assert_eq!(pair.handshakes(), before, "a handshake was needed");
        assert_eq!(sh("wg show wga allowed-ips"), format!("{peer}\t10.0.0.2/32\n"));
        // A peer that is made anew has no session: the test would have seen it.
        sh(&format!("wg set wga peer {peer} remove"));
        sh(&format!("wg set wga peer {peer} allowed-ips 10.0.0.2/32 endpoint 198.51.100.2:51820"));
        assert_eq!(sh("wg show wga latest-handshakes"), format!("{peer}\t0\n"));
    });
}

#[test]
fn an_allowed_ip_belongs_to_the_peer_that_named_it_last() {
    isolated("an_allowed_ip_belongs_to_the_peer_that_named_it_last", || async {
        let pair = Pair::up();
        let (peer, other) = (&pair.far_key, key("c"));
        sh(&format!("wg set wga peer {other} allowed-ips 10.0.0.2/32,10.7.0.0/16"));
        assert!(sh("wg show wga allowed-ips").contains(&format!("{peer}\t(none)")));
        assert!(
            !run("ping -c1 -W1 10.0.0.2").status.success(),
            "it goes to the other, who is nowhere"
        );
        // Another change of the first does not bring it back.
        sh(&format!("wg set wga peer {peer} persistent-keepalive 20"));
        assert!(sh("wg show wga allowed-ips").contains(&format!("{peer}\t(none)")));
        sh(&format!("wg set wga peer {peer} allowed-ips 10.0.0.2/32"));
        assert!(sh("wg show wga allowed-ips").contains(&format!("{other}\t10.7.0.0/16\n")));
        assert!(sh("ping -c2 -W5 -i0.2 10.0.0.2").contains(" 0% packet loss"));
        // What is taken away by itself, and what goes with its peer, is free.
        let hex = ask("wga", "get=1\n\n");
        let hex = hex.lines().filter_map(|l| l.strip_prefix("public_key=")).collect::<Vec<_>>();
        assert_eq!(hex.len(), 2);
        for hex in &hex {
            let request = format!(
                "set=1\npublic_key={hex}\nallowed_ip=-10.7.0.0/16\nallowed_ip=-10.0.0.2/32\n\n"
            );
            assert_eq!(ask("wga", &request), "errno=0\n\n");
        }
        assert!(!ask("wga", "get=1\n\n").contains("allowed_ip="));
    });
}

#[test]
fn requests_are_answered_as_the_protocol_says() {
    isolated("requests_are_answered_as_the_protocol_says", || async {
        let pair = Pair::up();
        let get = || ask("wga", "get=1\n\n");
        let before = get();
        assert!(before.starts_with("private_key=") && before.ends_with("errno=0\n\n"), "{before}");
        let key = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
        // A request with a mistake changes nothing, not even by the lines before the mistake; the connection goes on.
        for wrong in
            ["listen_port=1\nnews=1", "listen_port=99999", "allowed_ip=10.0.0.0/8", "private_key=1"]
        {
            assert_eq!(ask("wga", &format!("set=1\n{wrong}\n\n")), "errno=-22\n\n", "{wrong}");
        }
        assert_eq!(ask("wga", "hello\n\n"), "errno=-22\n\n");
        assert_eq!(ask("wga", &format!("set=1\n{}\n\n", "x".repeat(1 << 20))), "errno=-22\n\n");
        let unchanging = |text: &str| {
            let counted = |l: &&str| !l.starts_with("tx_bytes") && !l.starts_with("rx_bytes");
            text.lines().filter(counted).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(unchanging(&get()), unchanging(&before));
        // update_only adds no peer; removing an unknown peer does nothing.
        for nothing in ["update_only=true\nallowed_ip=10.5.0.0/16", "remove=true"] {
            assert_eq!(
                ask("wga", &format!("set=1\npublic_key={key}\n{nothing}\n\n")),
                "errno=0\n\n"
            );
        }
        assert!(!get().contains(key));
        let peer = format!(
            "set=1\npublic_key={key}\npreshared_key={key}\npersistent_keepalive_interval=7\nallowed_ip=10.5.6.7/16\n\n"
        );
        assert_eq!(ask("wga", &peer), "errno=0\n\n");
        assert_eq!(sh("wg show wga allowed-ips").lines().count(), 2);
        let after = get();
        for line in [
            format!("preshared_key={key}"),
            "persistent_keepalive_interval=7".into(),
            "allowed_ip=10.5.0.0/16".into(),
        ] {
            assert!(after.lines().any(|l| l == line), "{line}: {after}");
        }
        // A node is no peer of itself.
        sh(&format!("wg set wga peer {} allowed-ips 10.6.0.0/16", pair.near_key));
        assert!(!sh("wg show wga peers").contains(&pair.near_key));
        // replace_peers: only those of the request stay.
        assert_eq!(
            ask("wga", &format!("set=1\nreplace_peers=true\npublic_key={key}\n\n")),
            "errno=0\n\n"
        );
        assert_eq!(sh("wg show wga allowed-ips").split_whitespace().nth(1), Some("(none)"));
        assert_eq!(sh("wg show wga peers").lines().count(), 1);
        // The key is gone once it is unset.
        assert_eq!(
            ask("wga", &format!("set=1\nprivate_key={}\n\n", "0".repeat(64))),
            "errno=0\n\n"
        );
        assert!(!get().contains("private_key"));
    });
}

#[test]
fn a_preshared_key_and_a_mark_are_used() {
    isolated("a_preshared_key_and_a_mark_are_used", || async {
        let pair = Pair::new();
        sh("umask 77; wg genpsk > /run/psk");
        sh(&format!("wg set wga fwmark 0x1234 peer {} preshared-key /run/psk", pair.far_key));
        sh("ip link set wga up && ip -n far link set wgb up");
        assert!(!run("ping -c2 -W1 -i0.2 10.0.0.2").status.success(), "the other end has none");
        sh(&format!("wg set wgb peer {} preshared-key /run/psk", pair.near_key));
        wait_until("the tunnel works", || run("ping -c1 -W1 10.0.0.2").status.success());
        assert_eq!(sh("wg show wga fwmark").trim(), "0x1234");
        // Marked packets take another route: none.
        sh("ip rule add fwmark 0x1234 blackhole");
        assert!(!run("ping -c2 -W1 -i0.2 10.0.0.2").status.success());
        sh("wg set wga fwmark off");
        wait_until("the tunnel works", || run("ping -c1 -W1 10.0.0.2").status.success());
    });
}

#[test]
fn the_largest_packets_pass_whole() {
    isolated("the_largest_packets_pass_whole", || async {
        let _pair = Pair::up();
        for mtu in ["1420", "9000", "65000"] {
            sh(&format!("ip link set wga mtu {mtu} && ip -n far link set wgb mtu {mtu}"));
            let size = mtu.parse::<u32>().unwrap() - 28;
            sh(&format!("ping -M do -c3 -i0.2 -W5 -s {size} 10.0.0.2"));
        }
    });
}

#[test]
fn it_ends_with_its_device_and_on_sigterm_and_leaves_nothing() {
    isolated("it_ends_with_its_device_and_on_sigterm_and_leaves_nothing", || async {
        let mut pair = Pair::up();
        let second = Command::new(LEADERD).args(["userspace", "wga"]).output().unwrap();
        let words = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(
            second.status.code() == Some(1) && words.contains("wga") && words.contains("busy"),
            "{words}"
        );
        sh("ip link del wga");
        assert!(pair.near.wait().unwrap().success());
        sh(&format!("kill -TERM {}", pair.far.id()));
        assert!(pair.far.wait().unwrap().success());
        assert_eq!(
            sh("ls /run/wireguard; ip -br link show type tun; ip -n far -br link show type tun"),
            ""
        );
        // One that was killed leaves its socket, which the next takes over.
        let mut killed = serve(false, "wgc");
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert_eq!(sh("ls /run/wireguard"), "wgc.sock\n");
        let mut next = serve(false, "wgc");
        sh("ip link del wgc");
        assert!(next.wait().unwrap().success());
    });
}

/// Longer than every timer of WireGuard's but those of rekeying: 5 s for a handshake, 10 s for a keep-alive, 15 s for a silent peer.
const TIMERS: Duration = Duration::from_secs(17);

#[test]
fn it_outlives_its_timers_idle_and_with_a_peer_that_is_away() {
    isolated("it_outlives_its_timers_idle_and_with_a_peer_that_is_away", || async {
        let mut pair = Pair::up();
        let before = pair.handshakes();
        std::thread::sleep(TIMERS);
        assert!(run("ping -c1 -W1 10.0.0.2").status.success(), "after a pause");
        assert_eq!(pair.handshakes(), before, "the session is the same");
        sh("ip -n far link set wgb down");
        let away = Instant::now();
        while away.elapsed() < TIMERS {
            run("ping -c1 -W1 10.0.0.2");
        }
        sh("ip -n far link set wgb up");
        wait_until("the tunnel works again", || run("ping -c1 -W1 10.0.0.2").status.success());
        for child in [&mut pair.near, &mut pair.far] {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
        }
    });
}
