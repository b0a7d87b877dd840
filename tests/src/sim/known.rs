//! Checks that do not hold everywhere yet: in how many of their worlds each fails.
//!
//! The numbers only fall. A check whose number is 0 holds, and is a test like all others. To say that a check fails in fewer worlds
//! now, or in none, change its number here.

use std::cmp::Ordering;

/// A check, and in how many of its worlds it fails.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    pub name: &'static str,
    pub fails: usize,
    pub of: usize,
}

/// All checks that are counted.
pub const CHECKS: &[Check] = &[
    check("every_state_of_two_by_two_tunnels: through", 52, 64),
    check("every_state_of_two_by_two_tunnels: mirror", 64, 64),
    check("a_dead_pair_of_leaders_among_three_locations: through", 8, 8),
    check("a_dead_pair_of_leaders_among_three_locations: mirror", 8, 8),
    check("one_direction_of_a_pair_of_leaders_is_dead: through", 4, 6),
    check("one_direction_of_a_pair_of_leaders_is_dead: mirror", 6, 6),
    check("a_plane_does_not_forward: through", 8, 16),
    check("a_plane_does_not_forward: mirror", 16, 16),
    check("a_relay_forwards_one_family_only: through", 0, 8),
    check("a_relay_forwards_one_family_only: mirror", 8, 8),
    check("a_path_has_bad_weather: through", 0, 16),
    check("a_path_has_bad_weather: mirror", 16, 16),
    check("a_machine_stands_still: through", 0, 10),
    check("a_machine_stands_still: mirror", 10, 10),
    check("a_lan_is_silent: through", 2, 12),
    check("a_lan_is_silent: mirror", 12, 12),
    check("another_tool_has_rules_and_routes: through", 8, 8),
    check("another_tool_has_rules_and_routes: mirror", 8, 8),
    check("a_link_loses_its_carrier: through", 4, 8),
    check("a_link_loses_its_carrier: mirror", 8, 8),
    check("new_tcp_connections_open_wherever_packets_pass", 12, 18),
];

const fn check(name: &'static str, fails: usize, of: usize) -> Check {
    Check { name, fails, of }
}

/// Returns in how many of its worlds a check is known to fail.
///
/// # Panics
/// There is no such check.
pub fn fails(name: &str) -> usize {
    find(name).fails
}

fn find(name: &str) -> &'static Check {
    let known = CHECKS.iter().find(|c| c.name == name);
    known.unwrap_or_else(|| panic!("{name:?} is no check of `sim::known`"))
}

/// Compares the worlds in which a check fails, each with a sentence about it, with their known number.
///
/// # Panics
/// More fail than are known, or fewer; or the check runs another number of worlds than it says.
pub fn judge(name: &str, of: usize, failed: &[String]) {
    judge_all(&[(name, of, failed)]);
}

/// The same for several checks; a panic names all that are wrong.
///
/// # Panics
/// As [`judge`].
pub fn judge_all(checks: &[(&str, usize, &[String])]) {
    let mut wrong = Vec::new();
    for (name, of, failed) in checks {
        let known = find(name);
        println!("{name}: {} of {of} fail, {} are known to", failed.len(), known.fails);
        for what in *failed {
            println!("  {what}");
        }
        let n = failed.len();
        if *of != known.of {
            wrong.push(format!("{name:?}: runs {of} worlds, and its row says {}", known.of));
        }
        match n.cmp(&known.fails) {
            Ordering::Greater => wrong.push(format!(
                "{name:?}: {n} fail, and {} are known to; a new defect is fixed, not listed",
                known.fails
            )),
            Ordering::Less => {
                wrong.push(format!("{name:?}: only {n} fail now; lower its number to that"));
            }
            Ordering::Equal => {}
        }
    }
    assert!(wrong.is_empty(), "see `sim::known`: {wrong:#?}");
}
