//! Durations as people write and read them: in the mesh file, in settings, in objects of Kubernetes and on the command line.

use std::time::Duration;

/// What to write where a text is no duration.
pub const HELP: &str =
    "write whole numbers, each with a unit (us, ms, s, m, h or d), such as \"100ms\" or \"1h30m\"";

/// Longest text that is read, in bytes. `humantime` 2.4 panics where the sum reaches 2^64 seconds by its last nanosecond, for which a
/// text needs 26 bytes at least.
const MAX_TEXT: usize = 24;

/// Reads numbers with units, whose sum counts: `100ms`, `1h30m`, `1h 30min`. `None` if the text is no duration.
pub fn parse(text: &str) -> Option<Duration> {
    if text.len() > MAX_TEXT { None } else { humantime::parse_duration(text).ok() }
}

/// Returns a text of one number and one unit, which every release can [`parse`]. Nanoseconds are left out.
pub fn show(d: Duration) -> String {
    let micros = d.as_micros();
    let units = [(3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1_000, "ms")];
    match units.into_iter().find(|(size, _)| micros >= *size && micros.is_multiple_of(*size)) {
        Some((size, unit)) => format!("{}{unit}", micros / size),
        None if micros == 0 => "0s".into(),
        None => format!("{micros}us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_as_they_are_shown() {
        for text in ["0s", "250us", "100ms", "10s", "5m", "2h", "90m"] {
            assert_eq!(show(parse(text).unwrap()), if text == "90m" { "90m" } else { text });
        }
    }

    #[test]
    fn several_units_add_up() {
        for text in ["1h30m", "1h 30m", "90min", "1.5h", "5400s"] {
            assert_eq!(parse(text), Some(Duration::from_secs(5400)), "{text:?}");
        }
        assert_eq!(parse("1d"), Some(Duration::from_secs(86_400)));
    }

    #[test]
    fn other_texts_are_no_durations() {
        let no_unit = ["", "s", "10", "-1s", "1x", "h1", "1h30"];
        let too_long =
            ["99999999999999999999s", "18446744073709551615h", "30500568904943w7h15s1000ms"];
        for text in no_unit.into_iter().chain(too_long) {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
