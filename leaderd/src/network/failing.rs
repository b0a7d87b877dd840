//! What of a wanted network the kernel refuses. One such part (IPv6 that is switched off, a device that is gone) is no reason not
//! to have all the others, nor to keep a decision from being in force.

use std::collections::BTreeMap;
use std::fmt;

use wgctl::net::Failure;

/// Parts that are told of in words; the rest is counted.
const TOLD: usize = 3;

/// What could not be programmed, and why.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Failing(BTreeMap<String, String>);

impl Failing {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All of it failed before as well: trying again at once is of no use.
    pub fn failed_before(&self, before: &Self) -> bool {
        self.0.keys().all(|part| before.0.contains_key(part))
    }

    /// What fails now and did before.
    pub fn still(&self, before: &Self) -> Self {
        let still = self.0.iter().filter(|(part, _)| before.0.contains_key(*part));
        Self(still.map(|(part, why)| (part.clone(), why.clone())).collect())
    }

    pub fn has_same_parts(&self, other: &Self) -> bool {
        self.0.keys().eq(other.0.keys())
    }
}

impl<'a> FromIterator<&'a Failure> for Failing {
    fn from_iter<I: IntoIterator<Item = &'a Failure>>(failures: I) -> Self {
        let told = |f: &Failure| (f.change.object(), f.to_string());
        let mut parts = BTreeMap::new();
        // Of several changes of one thing the first says why; the others follow from it.
        for (part, why) in failures.into_iter().map(told) {
            parts.entry(part).or_insert(why);
        }
        Self(parts)
    }
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told: Vec<&str> = self.0.values().take(TOLD).map(String::as_str).collect();
        f.write_str(&told.join("; "))?;
        match self.0.len().saturating_sub(TOLD) {
            0 => Ok(()),
            more => write!(f, " (and {more} more)"),
        }
    }
}

#[cfg(test)]
pub(super) fn failing(parts: &[&str]) -> Failing {
    Failing(parts.iter().map(|p| ((*p).to_owned(), format!("cannot {p}: no"))).collect())
}
