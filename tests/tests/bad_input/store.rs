//! The disk fails, the daemon gets the error, and the data path does not notice.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::lab::{Daemon, Lab, Stream, location_of, texts, wait_for};

/// How long daemons are killed and started.
const KILLING: Duration = Duration::from_secs(25);

pub fn a_full_disk() {
    let lab = Lab::up();
    let state = format!("{}/cloud-1/state", lab.dir);
    lab.sh("cloud-1", "mount -t tmpfs -o size=8m tmpfs $1", &[&state]);
    let daemons = lab.daemons();
    let cloud_1 = &daemons[1];
    let stream = Stream::start(&lab, "home-0", "cloud-2", "10.42.3.10", true);
    lab.sh("cloud-1", "cat /dev/zero > $1/fill 2>/dev/null || true", &[&state]);
    // Operators' commands are written to every voter's log.
    let mut round = 0;
    wait_for(
        "the store cannot be written",
        || cloud_1.tail(),
        || {
            round += 1;
            // A raft leader whose disk is full just then confirms nothing: go on after the first refusal.
            let many = "for i in $(seq 25); do $1 freeze cloud --for $(($2 * 25 + i))m > /dev/null 2>&1 || break; done";
            lab.sh("cloud-0", many, &[&lab.program("wgctl"), &round.to_string()]);
            lab.metric("cloud-1", "leaderd_store_write_errors_total") > 0.0
        },
    );
    cloud_1.says("cannot write to the store");
    assert!(cloud_1.log().contains("forwarding goes on, voting does not"), "{}", cloud_1.tail());
    let probes = || lab.metric("cloud-1", r#"leaderd_probes_sent_total{class="relay"}"#);
    let before = probes();
    wait_for("it goes on probing", || cloud_1.tail(), || probes() > before + 20.0);
    // Were it raft leader, it hands over, as it can confirm nothing. A command that it had taken is refused, and carried out by its
    // heir: so it must be one that may be given again.
    wait_for(
        "the others confirm commands without it",
        || daemons.iter().map(Daemon::tail).collect(),
        || lab.run("cloud-0", "wgctl", &["freeze", "cloud", "--for", "1m"]).status.success(),
    );
    lab.sh("cloud-1", "rm $1/fill", &[&state]);
    cloud_1.says("the store takes writes again");
    let (sent, lost) = stream.end();
    // Filling a disk keeps the machine's cores busy, and the emulated WAN shares them: a packet may fall by the way.
    assert!(sent > 500 && lost * 100 < sent, "{lost} of {sent} packets lost");
    // It takes part again: with the third voter gone, nothing is decided without it.
    let mut daemons = daemons;
    daemons.remove(2).end(&lab, "KILL");
    let story = || daemons.iter().map(Daemon::tail).collect::<String>();
    wait_for("it votes again", story, || {
        lab.run("cloud-0", "wgctl", &["freeze", "cloud", "--for", "1m"]).status.success()
    });
}

/// SIGKILL while operators' commands and its own elections have it write; each start must take the store as it was left.
pub fn a_killed_daemon() {
    let lab = Lab::up();
    let mut daemons = lab.daemons();
    let (stop, confirmed) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut kills = 0;
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for minutes in 1.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let end = format!("{minutes}m");
                let out = lab.run("cloud-0", "wgctl", &["freeze", "cloud", "--for", &end]);
                confirmed.fetch_add(u64::from(out.status.success()), Ordering::Relaxed);
            }
        });
        let begin = Instant::now();
        while begin.elapsed() < KILLING {
            // Moments that are spread over the first second: the store is opened, the log caught up with, a vote given.
            let wait = Duration::from_millis(kills * 137 % 997);
            std::thread::sleep(wait);
            let mut killed = daemons.remove(1);
            assert!(killed.alive(), "after {kills} kills: {}", killed.tail());
            let before = killed.pid(&lab);
            killed.end(&lab, "KILL");
            kills += 1;
            let again = lab.daemon("cloud-1", &[]);
            let has_store = || !["", &before].contains(&again.pid(&lab).as_str());
            wait_for("it has its state directory", || again.tail(), has_store);
            daemons.insert(1, again);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let confirmed = confirmed.into_inner();
    assert!(
        kills >= 8 && confirmed >= 8,
        "{kills} kills while {confirmed} commands were confirmed"
    );
    lab.wait_ready(&daemons);
    // With the third voter gone, nothing is decided without it.
    daemons.remove(2).end(&lab, "KILL");
    let story = || daemons.iter().map(Daemon::tail).collect::<String>();
    wait_for("it votes", story, || {
        lab.run("cloud-0", "wgctl", &["freeze", "cloud", "--for", "1m"]).status.success()
    });
}

pub fn a_damaged_store() {
    let lab = Lab::up();
    let mut daemons = lab.daemons();
    let state = format!("{}/cloud-1/state", lab.dir);
    let before = lab.leader("home-0", "cloud").expect("a leader");
    let stream = Stream::start(&lab, "home-0", "cloud-1", "10.42.2.10", true);
    daemons.remove(1).end(&lab, "TERM");
    let damage = "dd if=/dev/urandom of=$1/leaderd.redb bs=512 seek=1 count=64 conv=notrunc 2>&1";
    lab.sh("cloud-1", damage, &[&state]);
    let (code, said) = lab.refused("cloud-1", &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("damaged") && said.contains("leaderd reset --state"), "{said}");
    let (sent, lost) = stream.end();
    assert!(sent > 20 && lost == 0, "{lost} of {sent} packets lost");
    let out = lab.run("cloud-1", "leaderd", &["reset", "--state", &state]);
    assert!(
        out.status.success() && texts(&out).0.contains("forgot the store"),
        "{:?}",
        texts(&out)
    );
    daemons.push(lab.daemon("cloud-1", &[]));
    let story = || daemons.iter().map(Daemon::tail).collect::<String>();
    wait_for("it has learned the decision", story, || {
        let status = lab.status("cloud-1").unwrap_or_default();
        location_of(&status, "cloud")
            .is_some_and(|l| l["epoch"].as_u64() >= Some(before.1) && l["raft_leader"].is_string())
    });
    assert_eq!(lab.leader("home-0", "cloud"), Some(before), "a standby's store moves no leader");
}

pub fn a_foreign_store() {
    let lab = Lab::up();
    let daemon = lab.daemon("cloud-1", &[]);
    wait_for("it answers", || daemon.tail(), || lab.status("cloud-1").is_some());
    daemon.end(&lab, "TERM");
    let theirs = format!("{}/cloud-1/state", lab.dir);
    let (code, said) = lab.refused("cloud-0", &["--state", &theirs]);
    assert_eq!(code, 1, "{said}");
    for word in ["belongs to node cloud-1, not to node cloud-0", "leaderd reset"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    lab.write_mesh(&lab.read_mesh().replacen("name = \"lab\"", "name = \"other\"", 1));
    let (code, said) = lab.refused("cloud-1", &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("belongs to mesh lab, not to mesh other"), "{said}");
}
