//! Defects that are known: each of these tests fails, and describes what will be promised.
//!
//! If one passes, this run fails: then it moves to the tests that must pass, and [`MOST`] falls. It never rises: a new defect is
//! fixed, not listed.
//!
//! Checks over many worlds, of which some fail, are in `tests/known-to-fail` with their numbers.

use tests::sim::known::checks;

/// How many may be known to fail. It may only fall.
const MOST: usize = 0;

struct Known {
    name: &'static str,
    /// What is missing.
    until: &'static str,
    /// Whether it holds. What it needs to begin with is asserted, and no reason to be listed.
    holds: fn() -> bool,
}

const KNOWN: &[Known] = &[];

#[test]
fn known_failures_still_fail_and_their_number_does_not_rise() {
    assert_eq!(
        KNOWN.len(),
        MOST,
        "more: a new defect is fixed, not listed; fewer: MOST falls with it"
    );
    for known in KNOWN {
        assert!(!(known.holds)(), "{} passes: it is a test like all others now", known.name);
        println!("known to fail: {}: until {}", known.name, known.until);
    }
    let checks = checks();
    let failing: Vec<_> = checks.iter().filter(|c| c.fails > 0).collect();
    for check in &failing {
        println!("known to fail: {}: in {} of {} worlds", check.name, check.fails, check.of);
    }
    println!("known to fail: {} tests, {} of {} checks", KNOWN.len(), failing.len(), checks.len());
}
