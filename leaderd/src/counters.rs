//! Counters of the shells, by name. The core has its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Cheap to clone; all clones count together. `metrics::counted` says which metric each name is.
#[derive(Clone, Default, Debug)]
pub struct Counters(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Counters {
    pub fn add(&self, name: &'static str, by: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += by;
    }

    pub fn count(&self, name: &'static str) {
        self.add(name, 1);
    }

    /// Sets a measured value, such as a latency.
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
