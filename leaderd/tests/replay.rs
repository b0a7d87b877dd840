//! `leaderd replay` as it is called: what it prints, and how it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/kilo-489-raft-leader.recording")
}

fn replay(arguments: &[&str], file: &Path) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_leaderd"))
        .arg("replay")
        .args(arguments)
        .arg(file)
        .output()
        .expect("leaderd runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn the_account_of_a_failover_says_who_leads_when_and_why() {
    let (code, account, errors) = replay(&[], &fixture());
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{account}");
    for part in [
        " of cloud, mesh lab generation 1, recorded by leaderd ",
        "decision  cloud: cloud-0 leads, epoch 1, initial; came with: ",
        "decision  cloud: cloud-1 leads instead of cloud-0, epoch 2, new-flow; came with: ",
        "event cloud#2, epoch 2: ",
        "  onprem-0 saw slot 0 degraded (new-flow): ",
        "the recording ends here: the daemon was stopped",
        "\nas recorded: ",
    ] {
        assert!(account.contains(part), "no {part:?} in\n{account}");
    }
    let (code, json, _) = replay(&["--json"], &fixture());
    assert_eq!(code, Some(0));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["outcome"], "as-recorded");
    let entries = json["account"]["entries"].as_array().expect("entries");
    let leads = |e: &&serde_json::Value| {
        e["what"] == "decision" && e["location"] == "cloud" && e["leaders"][0] == "cloud-1"
    };
    let decision = entries.iter().find(leads).expect("the failover");
    assert_eq!((&decision["cause"], &decision["epoch"]), (&"new-flow".into(), &2.into()));
}

#[test]
fn a_cut_recording_is_fine_a_damaged_one_fails_and_what_is_none_was_asked_wrongly() {
    let dir = tempfile::tempdir().expect("a directory");
    let whole = std::fs::read(fixture()).expect("the fixture");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    };
    let (code, account, _) = replay(&[], &file("cut", &whole[..whole.len() / 2]));
    assert_eq!(code, Some(0), "{account}");
    assert!(account.contains("cut off here") && account.contains("as recorded"), "{account}");

    let mut damaged = whole.clone();
    let at = damaged.len() / 2;
    damaged[at..at + 64].fill(0x5a);
    let (code, account, _) = replay(&[], &file("damaged", &damaged));
    assert_eq!(code, Some(1), "{account}");

    let (code, _, error) = replay(&[], &file("none", b"[mesh]\n"));
    assert_eq!(code, Some(2));
    assert!(error.contains("no recording of leaderd"), "{error}");
    let (code, _, error) = replay(&[], &dir.path().join("absent"));
    assert_eq!(code, Some(2));
    assert!(error.contains("absent"), "{error}");
}
