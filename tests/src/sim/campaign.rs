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
    /// Seeds in which a pair of workloads did not get through, or not by the same nodes both ways, with the first such pair.
    pub not_through: Vec<Failure>,
    pub not_mirrored: Vec<Failure>,
    pub took: Duration,
}

impl Tally {
    pub fn per_second(&self) -> f64 {
        self.ran as f64 / self.took.as_secs_f64().max(0.001)
    }
}

/// What a seed came to.
struct Checked {
    violation: Option<String>,
    repeated: bool,
    through: Option<String>,
    mirror: Option<String>,
}

fn check(seed: u64) -> Checked {
    let case = Case::of_seed(seed);
    let first = case.run();
    let mut checked = Checked {
        violation: first.violations.first().cloned(),
        repeated: false,
        through: first.unkept.through.first().cloned(),
        mirror: first.unkept.mirror.first().cloned(),
    };
    if checked.violation.is_none() && seed.is_multiple_of(REPEATED) {
        checked.repeated = true;
        let differs = case.run().digest != first.digest;
        checked.violation =
            differs.then(|| "not deterministic: two runs had other inputs".to_owned());
    }
    checked
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
                    let checked = check(seed);
                    done(seed, checked.violation.as_deref());
                    let mut tally = tally.lock().expect("no thread panics with it");
                    let failure = |what: Option<String>| what.map(|what| Failure { seed, what });
                    tally.ran += 1;
                    tally.repeated += u64::from(checked.repeated);
                    tally.failures.extend(failure(checked.violation));
                    tally.not_through.extend(failure(checked.through));
                    tally.not_mirrored.extend(failure(checked.mirror));
                }
            });
        }
    });
    let mut tally = tally.into_inner().expect("no thread panics with it");
    let Tally { failures, not_through, not_mirrored, .. } = &mut tally;
    for failures in [failures, not_through, not_mirrored] {
        failures.sort_by_key(|f| f.seed);
    }
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
