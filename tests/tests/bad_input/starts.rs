//! Starts that fail: the message names what is wrong, and the node is untouched.

use super::lab::{Lab, wait_for};

/// Asserts the exit code and that all these words were said.
fn told(result: (i32, String), code: i32, words: &[&str]) {
    let (found, said) = result;
    assert_eq!(found, code, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

fn untouched(lab: &Lab, node: &str) {
    let links = lab.sh(node, "ip -o link; ip route show proto 76; ip nexthop show proto 76", &[]);
    assert!(!links.contains("wgl") && !links.contains("proto"), "{links}");
}

pub fn what_is_missing_or_wrong_is_named() {
    let lab = Lab::up();
    let keys = format!("{}/cloud-0/keys", lab.dir);
    told(
        lab.refused("nobody", &["--keys", &keys]),
        2,
        &["node nobody is not in", "--node", "cloud-0, cloud-1, cloud-2, home-0"],
    );
    told(
        lab.refused("cloud-0", &["--keys", "/nowhere"]),
        2,
        &["/nowhere/wireguard.key", "wgctl keygen"],
    );
    told(
        lab.refused("cloud-1", &["--keys", &keys]),
        2,
        &["does not belong to node cloud-1", "wireguard_key ="],
    );
    lab.sh("cloud-0", "chmod 640 $1/control.key", &[&keys]);
    let command = format!("chmod 600 {keys}/control.key");
    told(lab.refused("cloud-0", &[]), 2, &["may be read by others (mode 0640)", &command]);
    lab.sh("cloud-0", "chmod 600 $1/control.key", &[&keys]);
    told(
        lab.refused("cloud-0", &["--mesh", "/nowhere.toml"]),
        2,
        &["/nowhere.toml", "wgctl mesh init"],
    );
    let text = lab.read_mesh();
    lab.write_mesh(&text.replacen("slot = 1", "slot = 0", 1));
    told(lab.refused("cloud-0", &[]), 2, &["mesh.toml:", "slot 0"]);
    lab.write_mesh(&text);
    untouched(&lab, "cloud-0");
}

pub fn what_the_machine_lacks_is_named() {
    let lab = Lab::up();
    let drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    told(lab.refused_under("cloud-0", &drop, &[]), 1, &["CAP_NET_ADMIN", "AmbientCapabilities"]);
    let probe = "ip link add wgltry type wireguard 2>/dev/null && ip link del wgltry && echo kernel || true";
    if lab.sh("cloud-0", probe, &[]).contains("kernel") {
        println!("    (the kernel does WireGuard here, so neither TUN nor wireguard-go is needed)");
        return;
    }
    let hide = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$@\"", "sh"];
    told(lab.refused_under("cloud-0", &hide, &[]), 1, &["/dev/net/tun", "modprobe tun"]);
    let poor = ["env", "PATH=/nowhere", "LEADERD_WIREGUARD=wireguard-go"];
    told(lab.refused_under("cloud-0", &poor, &[]), 1, &["no wireguard-go in PATH", "apt install"]);
    let nobody = ["env", "LEADERD_WIREGUARD=nobody"];
    told(
        lab.refused_under("cloud-0", &nobody, &[]),
        1,
        &["LEADERD_WIREGUARD=nobody", "wireguard-go or leaderd"],
    );
    untouched(&lab, "cloud-0");
}

pub fn a_busy_port_is_named() {
    let lab = Lab::up();
    for (port, field) in [("8621", "probe_ports"), ("7946", "control_port")] {
        let holder = lab.inside("cloud-0", false, "hold", &[&format!("0.0.0.0:{port}")]);
        let words = [format!("UDP port {port}"), format!("sport = :{port}"), field.to_owned()];
        told(lab.refused("cloud-0", &[]), 1, &words.each_ref().map(String::as_str));
        holder.end();
    }
    untouched(&lab, "cloud-0");
}

pub fn a_busy_wireguard_port() {
    let lab = Lab::up();
    let holder = lab.inside("cloud-0", false, "hold", &["0.0.0.0:51900"]);
    let daemon = lab.daemon("cloud-0", &[]);
    daemon.says("cannot program the network");
    let said = daemon.log();
    assert!(
        said.contains("UDP port 51900 of WireGuard is taken") || said.contains("in use"),
        "{said}"
    );
    std::thread::sleep(std::time::Duration::from_secs(3));
    // Once for each of the changes that fail, not at every try.
    let said = daemon.count("cannot program the network");
    assert!(said <= 2, "said {said} times: {}", daemon.tail());
    holder.end();
    daemon.says("the network is programmed now");
    let listens =
        || !lab.sh("cloud-0", "grep -ci ':cabc ' /proc/net/udp || true", &[]).starts_with('0');
    wait_for("WireGuard listens", || daemon.tail(), listens);
}

pub fn a_second_daemon_is_refused() {
    let lab = Lab::up();
    let mut first = lab.daemon("cloud-0", &[]);
    wait_for("the first answers", || first.tail(), || lab.status("cloud-0").is_some());
    told(lab.refused("cloud-0", &[]), 1, &["another leaderd runs with this state", ", pid "]);
    let other = format!("{}/cloud-0/other", lab.dir);
    told(lab.refused("cloud-0", &["--state", &other]), 1, &["admin.sock"]);
    let socket = format!("{other}.sock");
    told(
        lab.refused("cloud-0", &["--state", &other, "--admin", &socket]),
        1,
        &["UDP port 8620 is taken"],
    );
    assert!(first.alive() && lab.status("cloud-0").is_some(), "{}", first.tail());
}
