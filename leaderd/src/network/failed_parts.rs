//! The parts of a desired network that the kernel refuses. One such part (IPv6 that is switched off, a device that is gone) must not
//! stop all others, nor keep a decision from being in force.

use std::collections::BTreeMap;
use std::fmt;

use wgctl::net::FailedChange;

/// Parts that a message names; it counts the others.
const NAMED: usize = 3;

/// What could not be programmed, and why.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FailedParts(BTreeMap<String, String>);

impl FailedParts {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if all of these parts failed before too: trying again at once is no use.
    pub fn failed_before(&self, before: &Self) -> bool {
        self.0.keys().all(|part| before.0.contains_key(part))
    }

    /// Returns the parts that fail now and failed before.
    pub fn still(&self, before: &Self) -> Self {
        let still = self.0.iter().filter(|(part, _)| before.0.contains_key(*part));
        Self(still.map(|(part, why)| (part.clone(), why.clone())).collect())
    }

    pub fn has_same_parts(&self, other: &Self) -> bool {
        self.0.keys().eq(other.0.keys())
    }
}

impl<'a> FromIterator<&'a FailedChange> for FailedParts {
    fn from_iter<I: IntoIterator<Item = &'a FailedChange>>(failures: I) -> Self {
        let mut parts = BTreeMap::new();
        // The first failed change of an object says why; the others follow from it.
        for failure in failures {
            parts.entry(failure.change.object()).or_insert_with(|| failure.to_string());
        }
        Self(parts)
    }
}

impl fmt::Display for FailedParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<&str> = self.0.values().take(NAMED).map(String::as_str).collect();
        f.write_str(&named.join("; "))?;
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " (and {more} more)"),
        }
    }
}

#[cfg(test)]
pub(super) fn failed_parts(parts: &[&str]) -> FailedParts {
    FailedParts(parts.iter().map(|p| ((*p).to_owned(), format!("cannot {p}: no"))).collect())
}
