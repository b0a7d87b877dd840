//! What ends a process is tried in processes: each test starts itself again with a variable that says what to do there.

use std::io::Read as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::*;

const PART: &str = "LEADERD_TEST_SUPERVISE";

/// Longest that a process may take here: far longer than the watchdog's limit.
const LONG: Duration = Duration::from_secs(90);

fn again(test: &str, part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("supervise::tests::{test}"), "--nocapture", "--test-threads=1"])
        .env(PART, part)
        .stdin(Stdio::null());
    command
}

fn output(test: &str, part: &str) -> (Output, String) {
    let out = again(test, part).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    let said = said.into_owned();
    (out, said)
}

/// A daemon of little: an engine that beats, on a runtime of one thread.
fn daemon(part: &str) {
    end_on_panic();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    end_if_unwound(|| {
        runtime.block_on(async {
            let engine = beat("engine");
            match part {
                "panic in a thread" => {
                    drop(std::thread::Builder::new().name("store".into()).spawn(|| {
                        running().unwrap();
                        panic!("no page {}", 7)
                    }))
                }
                "panic in a task" => drop(tokio::spawn(async { panic!("a task's") })),
                "panic in a blocking thread" => {
                    drop(tokio::task::spawn_blocking(|| panic!("a blocking one")))
                }
                "panic in the engine" => {
                    struct Saves;
                    impl Drop for Saves {
                        fn drop(&mut self) {
                            eprintln!("saved while unwinding: {}", std::thread::panicking());
                        }
                    }
                    let _saves = Saves;
                    let _unwind = unwind_first();
                    panic!("the engine's")
                }
                "a panic that hangs" => {
                    struct Hangs;
                    impl Drop for Hangs {
                        fn drop(&mut self) {
                            eprintln!("it hangs");
                            std::thread::sleep(LONG);
                        }
                    }
                    let _hangs = Hangs;
                    let _unwind = unwind_first();
                    panic!("the engine's")
                }
                "a caught panic" => {
                    assert_eq!(
                        caught(|| -> u8 { panic!("of a library") }).unwrap_err(),
                        "of a library"
                    );
                    assert_eq!(caught(|| 5), Ok(5));
                    eprintln!("it goes on");
                    panic!("and the next one ends it");
                }
                "an essential task ends" => {
                    running().unwrap();
                    drop(tokio::spawn(never_ends("accept loop", async { "done" })));
                }
                "an essential thread ends" => {
                    let guard = essential("store");
                    running().unwrap();
                    drop(std::thread::spawn(move || drop(guard)));
                }
                "one ended before the start was over" => {
                    drop(essential("admin socket"));
                    running().unwrap();
                }
                "it is stopped" => {
                    let guard = essential("store");
                    running().unwrap();
                    stopping();
                    drop(guard);
                    eprintln!("stopped");
                    return;
                }
                "the engine hangs" => {
                    running().unwrap();
                    std::thread::sleep(LONG);
                }
                "another thread hangs" => {
                    let hung = beat("network");
                    running().unwrap();
                    for _ in 0..LONG.as_secs() * 10 {
                        engine.give();
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    drop(hung);
                }
                "it beats for a while" => {
                    running().unwrap();
                    for _ in 0..30 {
                        engine.give();
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    std::thread::sleep(LONG);
                }
                other => unreachable!("{other}"),
            }
            tokio::time::sleep(LONG).await;
        });
    });
}

/// True in the process that was started for `part`.
fn inside() -> bool {
    std::env::var(PART).is_ok_and(|part| {
        daemon(&part);
        true
    })
}

#[test]
fn a_panic_anywhere_ends_the_process_with_its_message_and_place() {
    if inside() {
        return;
    }
    for (part, thread, message) in [
        ("panic in a thread", "store", "no page 7"),
        ("panic in a task", "supervise::tests", "a task's"),
        ("panic in a blocking thread", "tokio", "a blocking one"),
        ("panic in the engine", "supervise::tests", "the engine's"),
    ] {
        let (out, said) =
            output("a_panic_anywhere_ends_the_process_with_its_message_and_place", part);
        assert_eq!(out.status.code(), Some(FAILED), "{part}: {said}");
        let line = said.lines().find(|l| l.contains("panic in thread")).unwrap_or_default();
        for word in [thread, "supervise/tests.rs:", message] {
            assert!(line.contains(word), "{part}: {said}");
        }
        // The test's own harness gives 101 as well: it must not have got to its verdict.
        assert!(!said.contains("test result"), "{part}: {said}");
        assert_eq!(said.contains("saved while unwinding: true"), part == "panic in the engine");
    }
}

#[test]
fn a_panic_that_hangs_while_it_unwinds_still_ends_the_process() {
    if inside() {
        return;
    }
    use std::os::unix::process::ExitStatusExt as _;
    let test = "a_panic_that_hangs_while_it_unwinds_still_ends_the_process";
    let (out, said) = output(test, "a panic that hangs");
    assert_eq!(out.status.signal(), Some(libc::SIGALRM), "{said}");
    assert!(said.contains("it hangs") && said.contains("the engine's"), "{said}");
}

#[test]
fn a_caught_panic_ends_nothing() {
    if inside() {
        return;
    }
    let (out, said) = output("a_caught_panic_ends_nothing", "a caught panic");
    assert_eq!(out.status.code(), Some(FAILED), "{said}");
    assert!(said.contains("it goes on") && said.contains("and the next one ends it"), "{said}");
    assert!(!said.contains("of a library"), "{said}");
}

#[test]
fn an_essential_part_that_ends_also_ends_the_process_unless_it_is_stopping() {
    if inside() {
        return;
    }
    let test = "an_essential_part_that_ends_also_ends_the_process_unless_it_is_stopping";
    for (part, name) in [
        ("an essential task ends", "accept loop"),
        ("an essential thread ends", "store"),
        ("one ended before the start was over", "admin socket"),
    ] {
        let (out, said) = output(test, part);
        assert_eq!(out.status.code(), Some(FAILED), "{part}: {said}");
        assert!(said.contains(&format!("the daemon's {name} ended")), "{part}: {said}");
        assert!(!said.contains("test result"), "{part}: {said}");
    }
    let (out, said) = output(test, "it is stopped");
    assert!(out.status.success() && said.contains("stopped"), "{said}");
}

#[test]
fn a_hung_thread_ends_the_process_and_is_named() {
    if inside() {
        return;
    }
    for (part, name) in [("the engine hangs", "engine"), ("another thread hangs", "network")] {
        let (out, said) = output("a_hung_thread_ends_the_process_and_is_named", part);
        assert_eq!(out.status.code(), Some(FAILED), "{part}: {said}");
        assert!(said.contains(&format!("thread {name} has hung for")), "{part}: {said}");
    }
}

#[test]
fn the_service_managers_watchdog_is_fed_while_the_engine_beats_and_then_no_longer() {
    if inside() {
        return;
    }
    let test = "the_service_managers_watchdog_is_fed_while_the_engine_beats_and_then_no_longer";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut child = again(test, "it beats for a while")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "30000000")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut buffer = [0; 256];
    manager.set_read_timeout(Some(LONG)).unwrap();
    let length = manager.recv(&mut buffer).expect("it is fed");
    assert_eq!(&buffer[..length], b"WATCHDOG=1\n");
    let began = Instant::now();
    let mut fed = 1;
    assert_eq!(child.wait().unwrap().code(), Some(FAILED));
    manager.set_nonblocking(true).unwrap();
    while manager.recv(&mut buffer).is_ok() {
        fed += 1;
    }
    // Some 3 while it beat, and those until it was missed; one a second to the end would be many more.
    assert!(
        (2..3 + super::watchdog::LIMIT / 2).contains(&fed),
        "fed {fed} times in {:?}",
        began.elapsed()
    );
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("thread engine has hung"), "{said}");
}
