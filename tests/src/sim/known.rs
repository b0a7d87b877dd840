//! Checks that do not hold everywhere yet: in how many of their worlds each fails.
//!
//! The numbers are in the file `tests/known-to-fail`, and only fall. A check whose number is 0 holds, and is a test like all others. To
//! say that a check fails in fewer worlds now, or in none, change its number there: nothing is built anew for that.

use std::cmp::Ordering;

/// A check, and in how many of its worlds it fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: String,
    pub fails: usize,
    pub of: usize,
}

/// Returns all checks that are counted.
///
/// # Panics
/// The file cannot be read, or a line of it is not `FAILS of WORLDS  NAME`.
pub fn checks() -> Vec<Check> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/known-to-fail");
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{file}: {e}"));
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    lines.map(|l| read(l).unwrap_or_else(|| panic!("{file}: {l:?} is no check"))).collect()
}

fn read(line: &str) -> Option<Check> {
    let (fails, rest) = line.trim().split_once(" of ")?;
    let (of, name) = rest.trim().split_once("  ")?;
    Some(Check { name: name.to_owned(), fails: fails.parse().ok()?, of: of.parse().ok()? })
}

/// Returns in how many of its worlds a check is known to fail.
///
/// # Panics
/// There is no such check.
pub fn fails(name: &str) -> usize {
    find(name).fails
}

fn find(name: &str) -> Check {
    let known = checks().into_iter().find(|c| c.name == name);
    known.unwrap_or_else(|| panic!("{name:?} has no line in tests/known-to-fail"))
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
    assert!(wrong.is_empty(), "see tests/known-to-fail: {wrong:#?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_listed_once_and_fails_in_no_more_worlds_than_it_has() {
        let checks = checks();
        for check in &checks {
            assert!(check.fails <= check.of, "{check:?}");
            assert_eq!(checks.iter().filter(|c| c.name == check.name).count(), 1, "{check:?}");
        }
        assert_eq!(read("3 of 20").map(|c| c.name), None);
    }

    #[test]
    #[should_panic(expected = "lower its number")]
    fn a_check_that_fails_less_often_must_say_so() {
        let check = checks().into_iter().find(|c| c.fails > 0).expect("one fails");
        judge(&check.name, check.of, &[]);
    }

    #[test]
    #[should_panic(expected = "a new defect is fixed")]
    fn a_check_that_fails_more_often_is_a_new_defect() {
        let check = checks().into_iter().find(|c| c.fails < c.of).expect("one holds somewhere");
        judge(&check.name, check.of, &vec![String::new(); check.of]);
    }
}
