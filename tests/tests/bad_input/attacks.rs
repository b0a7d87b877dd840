//! Strangers, doubles, noise and wrong requests.

use super::lab::{Daemon, Lab, location_of, texts, wait_for};

/// The control plane of a node is quiet: its connections last.
fn connections(daemon: &Daemon) -> usize {
    daemon.count(" connected ")
}

pub fn story(daemons: &[Daemon]) -> String {
    daemons.iter().map(Daemon::tail).collect()
}

pub fn failover_works(lab: &Lab, daemons: &[Daemon]) {
    lab.fault("cloud-0", "vxlan-new-flows");
    wait_for(
        "cloud-1 leads",
        || story(daemons),
        || lab.leader("home-0", "cloud").is_some_and(|(l, _)| l == "cloud-1"),
    );
}

pub fn a_second_machine_with_the_same_keys() {
    let lab = Lab::up();
    let mut daemons = lab.daemons();
    let before = lab.leader("home-0", "cloud").expect("a leader");
    // cloud-0 connects to all nodes. Its double sits on the LAN, on the machine of cloud-2, whose daemon stops for it.
    daemons.remove(2).end(&lab, "TERM");
    let connected = connections(&daemons[1]);
    let state = format!("{}/double", lab.dir);
    let socket = format!("{state}.sock");
    let args = lab.run_args("cloud-0", &["--state", &state, "--admin", &socket]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let double = lab.daemon_with("cloud-2", "cloud-0", &args);
    daemons[1].says("the keys of cloud-0 are in use on another machine");
    std::thread::sleep(std::time::Duration::from_secs(5));
    let flaps = connections(&daemons[1]) - connected;
    assert!(flaps <= 1, "{flaps} new connections: {}\n{}", daemons[1].tail(), double.tail());
    assert_eq!(daemons[1].count("in use on another machine"), 1, "once a minute");
    assert_eq!(lab.leader("home-0", "cloud"), Some(before), "{}", story(&daemons));
    drop(double);
    lab.sh("cloud-2", "$1 cleanup", &[&lab.program("leaderd")]);
    daemons.insert(2, lab.daemon("cloud-2", &[]));
    lab.wait_ready(&daemons);
    failover_works(&lab, &daemons);
}

pub fn strangers_and_garbage() {
    let lab = Lab::up();
    let daemons = lab.daemons();
    let before = lab.leader("home-0", "cloud");
    let lines = daemons[0].log().lines().count();
    // From a node's own address, and from a workload's.
    for (port, pod) in [(8620, false), (8620, true), (7946, false), (7946, true), (51900, false)] {
        lab.inside("cloud-2", pod, "flood", &[&format!("10.0.0.1:{port}"), "5000"]).end();
    }
    let rejected = |reason: &str| {
        let name = format!("leaderd_probe_requests_rejected_total{{reason=\"{reason}\"}}");
        lab.metric("cloud-0", &name)
    };
    let rejected = rejected("truncated") + rejected("bad-hmac") + rejected("unknown-source");
    assert!(
        rejected > 1000.0,
        "{rejected} rejected\n{}",
        lab.http("cloud-0", "GET", "/metrics", "").1
    );
    let logged = daemons[0].log().lines().count() - lines;
    assert!(logged < 25, "{logged} lines: {}", daemons[0].tail());
    assert!(daemons[0].log().contains("ignored"), "{}", daemons[0].tail());

    // A node with unknown keys.
    let (keys, mesh) = (format!("{}/strange-keys", lab.dir), format!("{}/strange.toml", lab.dir));
    let made = lab.wgctl("cloud-2", &["keygen", "--out", &keys]);
    let text = lab.read_mesh();
    let mut strange = text.clone();
    for line in made.lines().filter(|l| l.contains("_key = ")) {
        let field = line.split(' ').next().expect("a field");
        // cloud-0 is the first node of the file.
        let old = text.lines().find(|l| l.starts_with(field)).expect("the field");
        strange = strange.replacen(old, line, 1);
    }
    lab.sh("cloud-2", "printf %s \"$1\" > $2", &[&strange, &mesh]);
    let mut daemons = daemons;
    daemons.remove(2).end(&lab, "TERM");
    let state = format!("{}/strange", lab.dir);
    let socket = format!("{state}.sock");
    let args = ["--mesh", &mesh, "--keys", &keys, "--state", &state, "--admin", &socket];
    let args = lab.run_args("cloud-0", &args);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let stranger = lab.daemon_with("cloud-2", "cloud-0", &args);
    wait_for(
        "cloud-1 refuses the stranger",
        || daemons[1].tail() + &stranger.tail(),
        || lab.metric("cloud-1", r#"leaderd_handshakes_failed_total{reason="refused"}"#) >= 2.0,
    );
    assert_eq!(daemons[1].count("handshakes_refused"), 1, "{}", daemons[1].tail());
    drop(stranger);
    lab.sh("cloud-2", "$1 cleanup", &[&lab.program("leaderd")]);
    daemons.insert(2, lab.daemon("cloud-2", &[]));
    lab.wait_ready(&daemons);
    assert_eq!(lab.leader("home-0", "cloud"), before, "{}", story(&daemons));
    failover_works(&lab, &daemons);
}

pub fn a_flood_while_the_leader_fails() {
    let lab = Lab::up();
    let mut daemons = lab.daemons();
    let (_, epoch) = lab.leader("home-0", "cloud").expect("a leader");
    let connected = |node: &str| lab.metric(node, "leaderd_peers_connected");
    assert_eq!(connected("cloud-1"), 3.0);
    // From a node and from a workload of another one, against both candidates and the observer.
    let sources: [(&str, bool, &str); 3] = [
        ("cloud-2", false, "10.0.0.1:7946"),
        ("cloud-2", false, "10.0.0.2:7946"),
        ("home-0", true, "10.42.4.1:7946"),
    ];
    let floods: Vec<_> = sources
        .iter()
        .flat_map(|(node, pod, target)| {
            [("half-open", "100000"), ("noise", "200000")]
                .map(|(role, most)| lab.inside(node, *pod, role, &[target, most]))
        })
        .collect();
    for node in ["cloud-0", "cloud-1", "home-0"] {
        let hangs = || lab.metric(node, "leaderd_handshakes_retried_total");
        wait_for(
            &format!("{node} lets strangers prove their address"),
            || story(&daemons),
            || hangs() > 100.0,
        );
    }
    // Meanwhile a node restarts, and flooded nodes must let it in.
    let at = daemons.iter().position(|d| d.node == "cloud-0").expect("a daemon");
    daemons.remove(at).end(&lab, "TERM");
    daemons.insert(at, lab.daemon("cloud-0", &[]));
    let let_in = || lab.status("cloud-0").is_some() && connected("cloud-0") == 3.0;
    wait_for("cloud-0 is let in", || story(&daemons), let_in);
    lab.wait_ready(&daemons);
    let leader = lab.leader("home-0", "cloud").expect("a leader").0;
    lab.fault(&leader, "vxlan-new-flows");
    let moved = || lab.leader("home-0", "cloud").is_some_and(|(l, e)| l != leader && e > epoch);
    wait_for("another one leads", || story(&daemons), moved);
    for (flood, (_, _, target)) in floods.into_iter().zip(sources.iter().flat_map(|s| [s, s])) {
        let sent: u32 = flood.end().trim().parse().expect("a number");
        assert!(sent > 500, "only {sent} to {target}");
    }
    for daemon in &daemons {
        let rss = daemon.proc_line(&lab, "status", "VmRSS:");
        let kib: u64 = rss.trim_end_matches(" kB").trim().parse().expect("a number");
        assert!(kib < 64 * 1024, "{} holds {rss}", daemon.node);
        let lines = daemon.count("control channel: ");
        assert!(lines < 600, "{lines} lines about strangers: {}", daemon.tail());
    }
}

pub fn admin_requests() {
    let lab = Lab::up();
    let daemons = lab.daemons();
    let command = |body: &str| lab.http("cloud-1", "POST", "/v1/command", body);
    for (answer, code, word) in [
        (command("{"), 400, "not a command"),
        (command(r#"{"explode":{}}"#), 400, "unknown variant"),
        (command("@100000"), 413, ""),
        (command(r#"{"drain":{"node":"nobody"}}"#), 409, "the mesh has no node nobody"),
        (command(r#"{"promote":{"node":"cloud-2","force":true}}"#), 409, "can never lead"),
        (lab.http("cloud-1", "GET", "/v2/nothing", ""), 404, "no such path"),
        (lab.http("cloud-1", "GET", "/v1/command", ""), 405, ""),
    ] {
        assert!(answer.0 == code && answer.1.contains(word), "{answer:?} instead of {code} {word}");
    }
    // Two operators, on nodes of two locations, want opposite things at once.
    let ask = |node: &str, args: &[&str]| {
        let out = lab.run(node, "wgctl", args);
        let (stdout, stderr) = texts(&out);
        assert!(matches!(out.status.code(), Some(0 | 1)), "{stdout}{stderr}");
        assert!(!(stdout.clone() + &stderr).trim().is_empty(), "an answer is in words");
    };
    std::thread::scope(|s| {
        for round in 0..3 {
            let (one, other) =
                if round % 2 == 0 { ("cloud-0", "cloud-1") } else { ("cloud-1", "cloud-0") };
            let first = s.spawn(move || ask("home-0", &["promote", one]));
            let second = s.spawn(move || ask("cloud-2", &["promote", other]));
            let third = s.spawn(move || ask("cloud-0", &["freeze", "cloud", "--for", "5s"]));
            [first, second, third].into_iter().for_each(|t| t.join().expect("an answer"));
        }
    });
    wait_for(
        "all agree",
        || story(&daemons),
        || {
            let seen: Vec<_> = super::lab::NODES.iter().map(|n| lab.leader(n, "cloud")).collect();
            seen[0].is_some() && seen.iter().all(|s| *s == seen[0])
        },
    );
    let status = lab.status("home-0").expect("a status");
    assert!(
        location_of(&status, "cloud")
            .is_some_and(|l| l["leaders"].as_array().is_some_and(|l| l.len() == 1))
    );
}
