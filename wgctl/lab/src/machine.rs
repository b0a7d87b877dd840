//! Whether this machine let the lab run. The lab's daemons and meters want a processor within milliseconds; one that is busy with
//! other things (a compiler, another lab) loses packets and moves leaders that no mesh would.
//!
//! A thread sleeps and notes how late it is woken, as every process of the lab is. It needs nothing of the kernel but a clock.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long it sleeps.
const SLEEP: Duration = Duration::from_millis(5);

/// Woken no later than this is as it should be.
const IN_TIME: Duration = Duration::from_millis(5);

/// Late by so much at once: a daemon that is kept from a processor for as long calls peers silent (their probes' replies are due
/// within some 100 ms).
const STARVED_ONCE_MS: f64 = 80.0;

/// Late for such a share of the time.
const STARVED_SHARE: f64 = 0.10;

/// What was seen in a span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The longest delay, in milliseconds.
    pub longest_ms: f64,
    /// The part of the time that was waited for a processor (0 to 1).
    pub share: f64,
}

impl Seen {
    /// What was measured meanwhile is not the mesh's alone.
    pub fn starved(&self) -> bool {
        self.longest_ms >= STARVED_ONCE_MS || self.share >= STARVED_SHARE
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the machine starved the lab: what wanted to run waited up to {:.0} ms for a processor, {:.0}% of the time in all; losses and \
             moves may be its doing and not the mesh's",
            self.longest_ms,
            100.0 * self.share
        )
    }
}

#[derive(Debug)]
struct Tally {
    since: Instant,
    wakes: u64,
    longest: Duration,
    late: Duration,
}

impl Tally {
    fn new(since: Instant) -> Self {
        Self { since, wakes: 0, longest: Duration::ZERO, late: Duration::ZERO }
    }

    /// Woken so long after it wanted to.
    fn woken(&mut self, delay: Duration) {
        self.wakes += 1;
        let late = delay.saturating_sub(IN_TIME);
        self.longest = self.longest.max(late);
        self.late += late;
    }

    fn seen(&self, now: Instant) -> Seen {
        let span = now.duration_since(self.since).as_secs_f64().max(f64::EPSILON);
        Seen {
            longest_ms: self.longest.as_secs_f64() * 1e3,
            share: (self.late.as_secs_f64() / span).min(1.0),
        }
    }
}

/// Watches while it lives.
#[derive(Debug)]
pub struct Machine {
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Machine {
    pub fn watch() -> Self {
        let tally = Arc::new(Mutex::new(Tally::new(Instant::now())));
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, ends) = (Arc::clone(&tally), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("machine".into()).spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let due = Instant::now() + SLEEP;
                std::thread::sleep(SLEEP);
                let delay = Instant::now().saturating_duration_since(due);
                theirs.lock().unwrap_or_else(PoisonError::into_inner).woken(delay);
            }
        });
        // Without a thread nothing is seen, and all else works.
        Self { tally, stop, thread: thread.ok() }
    }

    /// What was seen since this was last asked.
    pub fn take(&self) -> Seen {
        let now = Instant::now();
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *tally, Tally::new(now)).seen(now)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_wait_or_many_short_ones_starve_a_lab() {
        let begin = Instant::now();
        let of = |delays: &[u64]| {
            let mut tally = Tally::new(begin);
            delays.iter().for_each(|ms| tally.woken(Duration::from_millis(*ms)));
            tally.seen(begin + Duration::from_secs(1))
        };
        assert!(!of(&[0, 1, 4, 5, 20]).starved());
        let once = of(&[0, 205]);
        assert!(once.starved() && once.to_string().contains("up to 200 ms"), "{once}");
        let often = of(&[25; 6]);
        assert!(often.starved() && often.to_string().contains("12% of the time"), "{often}");
        assert_eq!(of(&[]), Seen::default());
    }

    const WATCHED: &str = "LEADERD_TEST_MACHINE";

    #[test]
    fn a_lab_without_processor_time_is_reported_as_starved() {
        use std::io::{BufRead as _, BufReader, Write as _};
        use std::process::{Command, Stdio};

        use nix::sys::signal::{Signal, kill};
        use nix::unistd::Pid;

        if std::env::var_os(WATCHED).is_some() {
            let machine = Machine::watch();
            let wakes = || machine.tally.lock().unwrap().wakes;
            while wakes() == 0 {
                std::thread::sleep(SLEEP);
            }
            println!("watching");
            let _ = std::io::stdin().read_line(&mut String::new());
            // Woken at last; and its thread as well, once it has counted two more.
            let before = wakes();
            while wakes() < before + 2 {
                std::thread::sleep(SLEEP);
            }
            println!("starved: {}", machine.take().starved());
            return;
        }
        let test = "machine::tests::a_lab_without_processor_time_is_reported_as_starved";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(WATCHED, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("watching")));
        let pid = Pid::from_raw(child.id() as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        kill(pid, Signal::SIGCONT).unwrap();
        child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
        assert!(lines.any(|line| line.contains("starved: true")));
        assert!(child.wait().unwrap().success());
    }
}
