//! Counters that the shells keep, by name; the core keeps its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Those that are set, and go down as well as up; none is a time, which ends in `_micros`.
pub const GAUGES: [&str; 2] = ["network_parts_failing", "transit_tracked"];

/// Cheap to clone; all clones count together. A name ends up in `leaderd_shell_NAME_total`.
#[derive(Clone, Default, Debug)]
pub struct Counters(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Counters {
    pub fn add(&self, name: &'static str, by: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += by;
    }

    pub fn count(&self, name: &'static str) {
        self.add(name, 1);
    }

    /// For what is measured rather than counted, such as a latency.
    pub fn set(&self, name: &'static str, value: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, value);
    }

    pub fn get(&self, name: &'static str) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied().unwrap_or(0)
    }

    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
