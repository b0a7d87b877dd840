//! Runs many seeds on all cores, and counts which fail and how fast they run.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::case::Case;

/// One seed in ten is run twice; both runs must have the same inputs.
const REPEATED: u64 = 10;

/// A seed that broke a promise.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    /// The first violation.
    pub what: String,
}

/// The result of a campaign.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Seeds that ran, without a gap from the first.
    pub ran: u64,
    pub repeated: u64,
    pub failures: Vec<Failure>,
    pub took: Duration,
}

impl Tally {
    pub fn per_second(&self) -> f64 {
        self.ran as f64 / self.took.as_secs_f64().max(0.001)
    }
}

/// The first violation of a seed, and whether it was repeated.
fn check(seed: u64) -> (Option<String>, bool) {
    let case = Case::of_seed(seed);
    let first = case.run();
    if let Some(what) = first.violations.first() {
        return (Some(what.clone()), false);
    }
    let repeat = seed.is_multiple_of(REPEATED);
    if repeat && case.run().digest != first.digest {
        return (Some("not deterministic: two runs had other inputs".to_owned()), true);
    }
    (None, repeat)
}

/// Runs seeds from `from` on, on all cores, while `go_on` (number of seeds begun, time passed) is true.
/// Calls `done` after each seed, with the first promise that it broke.
pub fn run(
    from: u64,
    go_on: impl Fn(u64, Duration) -> bool + Sync,
    done: impl Fn(u64, Option<&str>) + Sync,
) -> Tally {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let tally = Mutex::new(Tally::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    // Before `go_on`, so that no seed is skipped.
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if !go_on(n, started.elapsed()) {
                        return;
                    }
                    let seed = from + n;
                    let (what, repeated) = check(seed);
                    done(seed, what.as_deref());
                    let mut tally = tally.lock().expect("no thread panics with it");
                    tally.ran += 1;
                    tally.repeated += u64::from(repeated);
                    tally.failures.extend(what.map(|what| Failure { seed, what }));
                }
            });
        }
    });
    let mut tally = tally.into_inner().expect("no thread panics with it");
    tally.failures.sort_by_key(|f| f.seed);
    tally.took = started.elapsed();
    tally
}

/// Makes a failing seed's case small, and writes it to `directory` as a regression.
///
/// # Errors
/// The file cannot be written.
pub fn save_regression(seed: u64, directory: &Path) -> std::io::Result<std::path::PathBuf> {
    let case = Case::of_seed(seed);
    let outcome = case.run();
    let small = outcome.kind().map_or(case.clone(), |kind| case.shrink(kind));
    let file = directory.join(format!("seed-{seed}.json"));
    let text = serde_json::to_string_pretty(&small).expect("plain data");
    std::fs::create_dir_all(directory)?;
    std::fs::write(&file, text + "\n")?;
    Ok(file)
}
