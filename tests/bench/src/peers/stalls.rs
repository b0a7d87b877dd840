//! Whether the machine was up to it: how much later than asked a thread of ordinary priority woke.
//!
//! BFD at 3 × 50 ms takes a machine that stands still for 150 ms for a dead gateway, and a real gateway does not share its processor
//! with a whole mesh and its meters. So what is measured on a busy machine says little, and the report says how busy it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(5);

/// A thread that sleeps, and looks how long it slept.
#[derive(Debug)]
pub struct Stalls {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Microseconds, since it was last asked for.
    longest: AtomicU64,
}

impl Stalls {
    pub fn watch() -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !theirs.stop.load(Ordering::Relaxed) {
                let asleep = Instant::now();
                std::thread::sleep(EVERY);
                let late = asleep.elapsed().saturating_sub(EVERY);
                theirs.longest.fetch_max(late.as_micros() as u64, Ordering::Relaxed);
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// Milliseconds: the longest since the last call.
    pub fn longest(&self) -> f64 {
        self.shared.longest.swap(0, Ordering::Relaxed) as f64 / 1e3
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
