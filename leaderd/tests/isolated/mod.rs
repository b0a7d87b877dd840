//! Runs a test in namespaces of its own.

use std::process::Command;

const INSIDE: &str = "LEADERD_TEST_INSIDE";

/// Runs `test` in user, network, mount and process namespaces of its own, with `lo` up and an empty `/run`: runs this program again under
/// `unshare`, with this test's name.
pub fn isolated(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        let prepare =
            "mount -t tmpfs none /run && mkdir -p /run/wireguard /var/run && ip link set lo up
            mountpoint -q /var/run || [ -L /var/run ] || mount --bind /run /var/run";
        assert!(Command::new("sh").args(["-ec", prepare]).status().unwrap().success());
        return test();
    }
    let status = Command::new("unshare")
        .args(["-Urnm", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare (util-linux) is needed");
    assert!(status.success(), "{name} failed inside its namespaces");
}
