//! What the Pods of `mode=cleanup` run, once the node is clean.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const MANIFEST: &str = include_str!("../../deploy/kustomize/cleanup/leaderd.yaml");

/// Arguments of the Pod's container; not of that which runs before it.
fn args() -> Vec<&'static str> {
    let (_, container) = MANIFEST.split_once("\n      containers:\n").expect("containers");
    let line = container.lines().find_map(|l| l.trim().strip_prefix("args: ["));
    let list = line.and_then(|l| l.strip_suffix(']')).expect("arguments in one line");
    list.split(',').map(str::trim).collect()
}

#[test]
fn the_pod_of_a_node_that_is_clean_stays_without_any_rights_until_it_is_told_to_end() {
    assert!(MANIFEST.contains("drop: [ALL]"));
    // In a network of its own, so that nothing of this machine's is cleaned up, and without a capability.
    let mut pod = Command::new("unshare")
        .args(["--map-root-user", "--net", "setpriv", "--bounding-set=-all", "--inh-caps=-all"])
        .args(["--no-new-privs", env!("CARGO_BIN_EXE_leaderd")])
        .args(args())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare and setpriv (util-linux) are needed");
    let mut said = String::new();
    BufReader::new(pod.stdout.take().expect("piped")).read_line(&mut said).expect("text");
    let ended = pod.try_wait().expect("a child");
    // What says so may end right after.
    assert!(said.starts_with("idle until SIGTERM") && ended.is_none(), "{said:?} {ended:?}");
    let pid = Pid::from_raw(i32::try_from(pod.id()).expect("a pid"));
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).expect("CapEff");
    assert_eq!(effective.trim(), "0000000000000000");
    kill(pid, Signal::SIGTERM).expect("it runs");
    assert_eq!(pod.wait().expect("a child").code(), Some(0));
}
