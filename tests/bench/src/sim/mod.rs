//! The figures of `docs/bench-sim.md`, from virtual time.
//!
//! [`false_failovers`] compares detectors under the same [`loss`]: ours is the real code of three observers and of the
//! location's Raft group ([`ours`]), the others are [`models`] with closed forms.
//! [`scale`] measures what a node costs in meshes of growing size, [`election`] how often Raft changes its leader on slow paths. [`report`] writes
//! the tables and charts.

pub mod election;
pub mod false_failovers;
pub mod loss;
pub mod models;
pub mod ours;
pub mod report;
pub mod scale;
pub mod slice;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub quick: bool,
}

impl Effort {
    pub fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// Threads that share the jobs.
const THREADS: usize = 2;

/// Does every job once, on two threads; results in the order of the jobs. Says how far it is.
pub fn in_parallel<J: Sync, R: Send>(
    what: &str,
    jobs: &[J],
    work: impl Fn(&J) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<R>>> = Mutex::new(jobs.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(at) else { return };
                    let result = work(job);
                    results.lock().expect("no panic holds it")[at] = Some(result);
                    let n = done.fetch_add(1, Ordering::Relaxed) + 1;
                    eprintln!("{what}: {n} of {}", jobs.len());
                }
            });
        }
    });
    let results = results.into_inner().expect("no panic holds it");
    results.into_iter().map(|r| r.expect("every job was done")).collect()
}

/// The value below which this share (0 to 1) of a sample lies; `NaN` if there is none.
pub fn percentile(sample: &mut [f64], share: f64) -> f64 {
    sample.sort_by(f64::total_cmp);
    let at = (share * sample.len() as f64).ceil() as usize;
    sample.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
