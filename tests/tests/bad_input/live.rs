//! Operation under traffic: restarts, a new mesh file, drift, and the end.

use super::lab::{Daemon, Lab, Stream, texts, wait_for};

/// The userspace WireGuard processes of a node.
const PROCESSES: &str = "mine=$(readlink /proc/self/ns/net); for p in /proc/[0-9]*; do \
    [ \"$(readlink $p/ns/net)\" = \"$mine\" ] || continue; \
    case $(tr '\\0' ' ' <$p/cmdline) in *wireguard-go\\ wgl*|*userspace\\ wgl*) echo ${p#/proc/};; esac; \
    done 2>/dev/null | sort; true";

/// What steers traffic on a node.
const STEERING: &str =
    "ip route show proto 76; ip -6 route show proto 76; ip nexthop show proto 76";

fn all_say(daemons: &[Daemon], what: &str) {
    daemons.iter().for_each(|d| d.says(what));
}

pub fn a_restart_under_traffic() {
    let lab = Lab::up();
    let mut daemons = lab.daemons();
    let before = lab.leader("home-0", "cloud");
    let streams = [true, false].map(|fresh| {
        // Two streams need two ports: one to each of the location's other workloads.
        let (node, pod) = if fresh { ("cloud-2", "10.42.3.10") } else { ("cloud-1", "10.42.2.10") };
        Stream::start(&lab, "home-0", node, pod, fresh)
    });
    for (node, signal) in
        [("home-0", "TERM"), ("cloud-0", "TERM"), ("home-0", "KILL"), ("cloud-0", "KILL")]
    {
        let monitor = "ip -o monitor route nexthop > $1/flaps 2>&1 & echo $!";
        let pid = lab.sh(node, monitor, &[&lab.dir]);
        let (processes, steering) = (lab.sh(node, PROCESSES, &[]), lab.sh(node, STEERING, &[]));
        let at = daemons.iter().position(|d| d.node == node).expect("a daemon");
        let log = daemons.remove(at).end(&lab, signal);
        assert_eq!(log.contains("forwarding stays as it is"), signal == "TERM", "{log}");
        daemons.push(lab.daemon(node, &[]));
        lab.wait_ready(&daemons);
        assert_eq!(lab.sh(node, PROCESSES, &[]), processes, "{node} adopts its processes");
        assert_eq!(lab.sh(node, STEERING, &[]), steering, "{node} steers as before");
        let flaps = lab.sh(node, "kill $1; cat $2/flaps", &[pid.trim(), &lab.dir]);
        assert!(!flaps.contains("Deleted"), "{node} {signal}: {flaps}");
    }
    assert_eq!(lab.leader("home-0", "cloud"), before);
    for (kind, stream) in ["new flows", "one flow"].into_iter().zip(streams) {
        let (sent, lost) = stream.end();
        assert!(sent > 500 && lost == 0, "{kind}: {lost} of {sent} packets lost");
    }
}

pub fn a_new_mesh_file() {
    let lab = Lab::up();
    let daemons = lab.daemons();
    let old = lab.read_mesh();
    let stream = Stream::start(&lab, "home-0", "cloud-2", "10.42.3.10", true);

    lab.write_mesh(&old.replacen("generation = 1", "generation = 2\nflux = 3", 1));
    all_say(&daemons, "the mesh file is not applied");
    for daemon in &daemons {
        assert!(
            daemon.log().contains("mesh.toml:") && daemon.log().contains("flux"),
            "{}",
            daemon.tail()
        );
    }

    // A prefix more, a node more, another policy.
    let keys = lab.wgctl("cloud-0", &["keygen", "--out", &format!("{}/new-keys", lab.dir)]);
    let keys: Vec<&str> = keys.lines().filter(|l| l.contains("_key = ")).collect();
    assert_eq!(keys.len(), 2, "{keys:?}");
    let new = old.replacen("generation = 1", "generation = 2", 1).replacen(
        "\"10.42.3.0/24\"",
        "\"10.42.3.0/24\", \"10.43.3.0/24\"",
        1,
    ) + &format!(
        "\n[policy]\nprobe_interval = \"150ms\"\n\n[nodes.cloud-3]\nlocation = \"cloud\"\nindex = 9\naddress = \"10.0.0.9\"\nprefixes = [\"10.42.9.0/24\"]\n{}\n",
        keys.join("\n")
    );
    lab.write_mesh(&new);
    daemons.iter().for_each(|d| d.signal(&lab, "HUP"));
    all_say(&daemons, "mesh file applied");
    for prefix in ["10.43.3.1", "10.42.9.1"] {
        let story = || daemons.iter().map(Daemon::tail).collect::<String>();
        wait_for(&format!("home-0 routes {prefix} into a tunnel"), story, || {
            lab.sh("home-0", "ip route get $1 || true", &[prefix]).contains("dev wgl")
        });
    }
    let status = lab.status("home-0").expect("a status");
    assert_eq!(status["generation"], 2, "{status}");
    std::thread::sleep(std::time::Duration::from_secs(1));

    lab.write_mesh(&old);
    all_say(&daemons, "its generation 1 is older than 2");
    let status = lab.status("home-0").expect("a status");
    assert_eq!(status["generation"], 2, "{status}");
    let (sent, lost) = stream.end();
    assert!(sent > 500 && lost == 0, "{lost} of {sent} packets lost");
}

pub fn a_late_lan_address() {
    const ADDRESS: &str = "ip -o -4 addr show dev eth0 | awk '{print $4}'";
    let lab = Lab::up();
    let mesh = lab.read_mesh();
    assert!(mesh.contains("device = \"eth0\"\n") && mesh.contains("overlay = \"vxlan\""), "{mesh}");
    let mesh = mesh.replace("device = \"eth0\"\n", "").replace("\"vxlan\"", "\"direct\"");
    lab.write_mesh(&mesh);
    let address = lab.sh("cloud-2", ADDRESS, &[]);
    lab.sh(
        "cloud-2",
        "ip addr del $1 dev eth0; ip link add lan1 type veth peer name lan2",
        &[address.trim()],
    );
    let daemon = lab.daemon("cloud-2", &[]);
    daemon.says("no interface has this node's address");
    let routes = |device: &str| {
        let routes = lab.sh("cloud-2", "ip route show proto 76", &[]);
        routes.lines().any(|r| r.starts_with("10.42.1.0/24 ") && r.contains(device))
    };
    wait_for("it answers", || daemon.tail(), || lab.status("cloud-2").is_some());
    assert!(!routes("dev"), "{}", daemon.tail());
    lab.sh("cloud-2", "ip addr add $1 dev eth0", &[address.trim()]);
    wait_for("routes over the LAN", || daemon.tail(), || routes("dev eth0"));
    let other = "ip link set lan1 up; ip link set lan2 up; ip addr del $1 dev eth0; ip addr add $1 dev lan1";
    lab.sh("cloud-2", other, &[address.trim()]);
    wait_for("routes over the other device", || daemon.tail(), || routes("dev lan1"));
}

pub fn drift_and_cleanup() {
    let lab = Lab::up();
    let mut daemons = lab.daemons();
    let foreign = "ip route add 192.0.2.0/24 dev eth0; ip link add foreign0 type bridge; ip nexthop add id 77 dev eth0; \
        ip route add 198.51.100.0/24 nhid 77";
    lab.sh("cloud-0", foreign, &[]);
    let damages = [
        ("route", "ip route del $(ip route show proto 76 | head -n 1 | cut -d' ' -f1)", STEERING),
        (
            "nexthop",
            "ip nexthop del id $(ip nexthop show proto 76 | head -n 1 | cut -d' ' -f2)",
            STEERING,
        ),
        (
            "fdb",
            "bridge fdb del $(bridge fdb show dev lvx0 | grep ' dst ' | head -n 1 | cut -d' ' -f1) dev lvx0",
            "bridge fdb show dev lvx0 | grep ' dst ' | sort",
        ),
        (
            "peer",
            "wg set wgl0 peer $(wg show wgl0 peers | head -n 1) remove",
            "for i in $(ls /var/run/wireguard); do wg show ${i%.sock} allowed-ips; done | sort",
        ),
    ];
    for (what, damage, look) in damages {
        let daemon = daemons.iter().find(|d| d.node == "cloud-0").expect("a daemon");
        let before = lab.sh("cloud-0", look, &[]);
        let repairs = daemon.count("repaired: ");
        lab.sh("cloud-0", damage, &[]);
        wait_for(
            &format!("the {what} is back"),
            || daemon.tail(),
            || lab.sh("cloud-0", look, &[]) == before,
        );
        wait_for("it is logged", || daemon.tail(), || daemon.count("repaired: ") > repairs);
    }
    let out = lab.run("cloud-0", "ip", &["route", "show", "192.0.2.0/24"]);
    assert!(!out.stdout.is_empty(), "what is foreign stays");

    let at = daemons.iter().position(|d| d.node == "cloud-0").expect("a daemon");
    daemons.remove(at).end(&lab, "TERM");
    let out = lab.run("cloud-0", "leaderd", &["cleanup"]);
    assert!(out.status.success(), "{:?}", texts(&out));
    let left = lab.sh("cloud-0", &format!("ip -o link; {STEERING}; ip rule show proto 76"), &[]);
    assert!(
        !left.contains("wgl") && !left.contains("lvx0") && !left.contains("proto 76"),
        "{left}"
    );
    assert!(left.contains("foreign0") && left.contains("eth0") && left.contains("wan0"), "{left}");
    wait_for("its processes end", String::new, || lab.sh("cloud-0", PROCESSES, &[]).is_empty());
    let foreign = lab.sh("cloud-0", "ip route; ip nexthop", &[]);
    for word in ["192.0.2.0/24", "198.51.100.0/24", "id 77"] {
        assert!(foreign.contains(word), "{word} is gone: {foreign}");
    }
}
