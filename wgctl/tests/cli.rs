//! The binary against a real Unix socket: its requests, its output, and its errors without a daemon.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

fn wgctl(socket: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wgctl"))
        .args(args)
        .env("LEADERD_ADMIN", socket)
        .stdin(Stdio::null())
        .output()
        .expect("wgctl starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Answers one request with these bytes. Returns the request.
fn serve(socket: &Path, answer: String) -> JoinHandle<String> {
    let listener = UnixListener::bind(socket).expect("a fresh path");
    std::thread::spawn(move || serve_one(&listener, &answer))
}

fn serve_one(listener: &UnixListener, answer: &str) -> String {
    let (mut stream, _) = listener.accept().expect("wgctl connects");
    let mut asked = Vec::new();
    let mut buffer = [0; 4096];
    // Every request here is small: head and body are there when the JSON object (or the head of a GET) is whole.
    loop {
        let n = stream.read(&mut buffer).expect("a request");
        asked.extend_from_slice(&buffer[..n]);
        let whole =
            asked.ends_with(b"\r\n\r\n") && asked.starts_with(b"GET") || asked.ends_with(b"}");
        if n == 0 || whole {
            break;
        }
    }
    stream.write_all(answer.as_bytes()).expect("wgctl listens");
    String::from_utf8(asked).expect("UTF-8")
}

fn http(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn without_a_daemon_the_socket_is_named_and_how_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let output = wgctl(&socket, &["status"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains(socket.to_str().unwrap()), "{said}");
    assert!(said.contains("systemctl start leaderd") && said.contains("--admin"), "{said}");
}

#[test]
fn a_socket_left_by_a_dead_daemon_has_an_error_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let said = stderr(&wgctl(&socket, &["status"]));
    assert!(said.contains("nothing listens") && said.contains("journalctl"), "{said}");
}

#[test]
fn a_refusal_is_exit_1_with_the_daemons_reason() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let server = serve(
        &socket,
        http("409 Conflict", r#"{"refused":{"message":"cloud-1 is not known to forward"}}"#),
    );
    let output = wgctl(&socket, &["promote", "cloud-1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("refused: cloud-1 is not known to forward"));
    let asked = server.join().unwrap();
    assert!(asked.starts_with("POST /v1/command HTTP/1.1"), "{asked}");
    assert!(asked.ends_with(r#"{"promote":{"node":"cloud-1","force":false}}"#), "{asked}");
}

#[test]
fn a_command_that_was_done_is_exit_0() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let body = r#"{"done":{"location":"cloud","epoch":4,"message":"frozen for 10m"}}"#;
    let server = serve(&socket, http("200 OK", body));
    let output = wgctl(&socket, &["freeze", "cloud", "--for", "10m"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done: frozen for 10m (cloud, epoch 4)\n");
    assert!(server.join().unwrap().contains(r#""duration":{"secs":600,"nanos":0}"#));
}

#[test]
fn an_answer_that_is_no_json_is_an_error_not_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    for (n, answer) in
        [http("200 OK", "<html>"), http("500 Oops", "broken"), "SSH-2.0-OpenSSH\r\n\r\n".into()]
            .iter()
            .enumerate()
    {
        let socket = dir.path().join(format!("{n}.sock"));
        let server = serve(&socket, answer.clone());
        let output = wgctl(&socket, &["status"]);
        assert_eq!(output.status.code(), Some(1), "{answer}");
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
        server.join().unwrap();
    }
}

#[test]
fn wrong_arguments_are_exit_2() {
    let nowhere = Path::new("/nonexistent/admin.sock");
    assert_eq!(wgctl(nowhere, &["frobnicate"]).status.code(), Some(2));
    assert_eq!(wgctl(nowhere, &["freeze", "cloud", "--for", "soon"]).status.code(), Some(2));
    assert_eq!(wgctl(nowhere, &["explain", "cloud#seven"]).status.code(), Some(2));
}

#[test]
fn a_reader_that_stops_early_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wgctl"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

/// A pipe without a reader.
fn closed_pipe() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

#[test]
fn a_reader_that_stops_early_changes_no_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let (wanted, mesh) = (dir.path().join("wanted.json"), dir.path().join("mesh.toml"));
    let sysctls = [("net/ipv4/ip_forward".to_owned(), "7".to_owned())].into();
    let network = wgctl_plan::Network { sysctls, ..Default::default() };
    std::fs::write(&wanted, serde_json::to_vec(&network).unwrap()).unwrap();
    std::fs::write(&mesh, "[mesh]\n").unwrap();
    let (wanted, mesh) = (wanted.to_str().unwrap(), mesh.to_str().unwrap());
    for (args, code) in [
        (vec!["net", "show", "--json"], 0),
        (vec!["net", "diff", "--desired", wanted], 1),
        (vec!["net", "diff", "--json", "--desired", wanted], 1),
        (vec!["net", "cleanup"], 0),
        (vec!["mesh", "validate", mesh], 1),
    ] {
        let output = Command::new("unshare")
            .args(["-Urnm", env!("CARGO_BIN_EXE_wgctl"), "--admin", "/nonexistent/admin.sock"])
            .args(&args)
            .stdin(Stdio::null())
            .stdout(closed_pipe())
            .stderr(Stdio::piped())
            .output()
            .expect("unshare (util-linux) is needed");
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(code), ""), "{args:?}");
    }
}

#[test]
fn events_of_an_unknown_location_are_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let status = r#"{"mesh":"shop","node":"cloud-0","location":"cloud","generation":1,"mesh_hash":"00","other_generations":{},
        "backend":"kernel","locations":[{"name":"cloud","leaders":[],"epoch":0,"since":null,"cause":null,"frozen":null,
        "raft_leader":null,"quorum":null,"fallback":false,"candidates":[],"next":null,"notes":[]}]}"#;
    for (n, (location, more, code)) in [
        ("cluod", vec![], 2),
        ("cluod", vec!["--json"], 2),
        ("cluod", vec!["--follow"], 2),
        ("cloud", vec![], 0),
        ("cloud", vec!["--json"], 0),
    ]
    .into_iter()
    .enumerate()
    {
        let socket = dir.path().join(format!("{n}.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            // An older daemon knows no changes of relay pairs.
            [http("200 OK", "[]"), http("404 Not Found", "{}"), http("200 OK", status)]
                .map(|answer| serve_one(&listener, &answer))
        });
        let output = wgctl(&socket, &[vec!["events", "--location", location], more].concat());
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert_eq!(stderr(&output).contains("it has cloud"), code == 2, "{}", stderr(&output));
        let asked = server.join().unwrap();
        assert!(asked[1].starts_with("GET /v1/relay-changes"), "{asked:?}");
        assert!(asked[2].starts_with("GET /v1/status"), "{asked:?}");
    }
}

#[test]
fn who_cannot_explain_relays_says_whom_to_ask() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let refused = r#"{"refused":{"message":"home-3 is a plain member: ask home-0 or cloud-0"}}"#;
    let server = serve(&socket, http("409 Conflict", refused));
    let output = wgctl(&socket, &["explain", "home", "cloud-1"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert_eq!(said, "wgctl: home-3 is a plain member: ask home-0 or cloud-0\n");
    assert!(server.join().unwrap().starts_with("GET /v1/relays/home/cloud-1 HTTP/1.1"));
    let output = wgctl(&socket, &["explain", "home", "no name"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}
