//! Ends the process if a thread hangs that must not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

/// How often beats are checked.
const CHECK: Duration = Duration::from_secs(1);

/// Checks without a beat until the process ends. Checks are counted, not time: a process that was stopped, or a machine that slept,
/// has missed none. The longest stall of a healthy engine that was seen is some 100 ms.
pub const LIMIT: u32 = 20;

/// Checks without a beat until the service manager's watchdog is no longer fed.
const FRESH: u32 = 5;

/// A thread's sign of life, while it works.
#[derive(Debug)]
pub struct Beat(Arc<Count>);

#[derive(Debug)]
struct Count {
    name: &'static str,
    given: AtomicU64,
    ended: AtomicBool,
}

static BEATS: Mutex<Vec<Arc<Count>>> = Mutex::new(Vec::new());

/// Of the last check: the thread without a beat for longest, and for how many checks.
static STALLED: Mutex<Option<(&'static str, u32)>> = Mutex::new(None);

/// Watches a thread from now on, until the beat is dropped.
pub fn beat(name: &'static str) -> Beat {
    let count = Arc::new(Count { name, given: AtomicU64::new(0), ended: AtomicBool::new(false) });
    BEATS.lock().unwrap_or_else(PoisonError::into_inner).push(count.clone());
    Beat(count)
}

impl Beat {
    /// The thread lives. Cheap.
    pub fn give(&self) {
        self.0.given.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

/// The thread that hangs, if one does.
pub fn stalled() -> Option<&'static str> {
    let stalled = *STALLED.lock().unwrap_or_else(PoisonError::into_inner);
    stalled.filter(|(_, checks)| *checks >= FRESH).map(|(name, _)| name)
}

pub(super) fn start() -> std::io::Result<()> {
    let fed = sd_notify::watchdog_enabled().is_some();
    let watch = move || {
        let mut watch = Watch::default();
        loop {
            std::thread::sleep(CHECK);
            let worst = watch.check(&BEATS);
            *STALLED.lock().unwrap_or_else(PoisonError::into_inner) = worst;
            match worst {
                Some((name, checks)) if checks >= LIMIT => {
                    let seconds = u64::from(checks) * CHECK.as_secs();
                    super::fail(&format!("thread {name} has hung for {seconds} s"));
                }
                Some((_, checks)) if checks >= FRESH => {}
                _ if fed => {
                    // One that is lost is followed by the next.
                    let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                }
                _ => {}
            }
        }
    };
    std::thread::Builder::new().name("watchdog".into()).spawn(watch).map(drop)
}

/// What the last check saw: of each beat how often it was given, and for how many checks that has not changed.
#[derive(Default)]
struct Watch {
    seen: Vec<(Arc<Count>, u64, u32)>,
}

impl Watch {
    /// The beat that has been away for longest.
    fn check(&mut self, beats: &Mutex<Vec<Arc<Count>>>) -> Option<(&'static str, u32)> {
        let now = {
            let mut beats = beats.lock().unwrap_or_else(PoisonError::into_inner);
            beats.retain(|beat| !beat.ended.load(Ordering::Relaxed));
            beats.clone()
        };
        let before = std::mem::take(&mut self.seen);
        self.seen = now
            .into_iter()
            .map(|beat| {
                let given = beat.given.load(Ordering::Relaxed);
                let same = before.iter().find(|(b, ..)| Arc::ptr_eq(b, &beat));
                let away = match same {
                    Some((_, was, away)) if *was == given => away + 1,
                    _ => 0,
                };
                (beat, given, away)
            })
            .collect();
        self.seen.iter().map(|(beat, _, away)| (beat.name, *away)).max_by_key(|(_, away)| *away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_beats_that_are_missing_now_count() {
        let count = |name| {
            Arc::new(Count { name, given: AtomicU64::new(0), ended: AtomicBool::new(false) })
        };
        let (steady, hung) = (Beat(count("steady")), Beat(count("hung")));
        let beats = Mutex::new(vec![steady.0.clone(), hung.0.clone()]);
        let mut watch = Watch::default();
        let mut check = || {
            steady.give();
            watch.check(&beats)
        };
        for checks in 0..4 {
            let worst = check().unwrap();
            assert_eq!(worst.1, checks);
            assert!(checks == 0 || worst.0 == "hung");
        }
        hung.give();
        assert_eq!(check().unwrap().1, 0);
        assert_eq!(check(), Some(("hung", 1)));
        drop(hung);
        assert_eq!(check(), Some(("steady", 0)), "a part that has ended is not watched");
    }
}
