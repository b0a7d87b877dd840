//! The blackout of a stream: from the last packet delivered before a loss to the first one delivered after it.

use super::Stream;

/// An outage is over when this many packets in a row arrive. One that slips through earlier does not end it: a new
/// flow whose VXLAN source port happens to be that of an established flow passes the fault of Kilo issue #489.
const OVER_AFTER: usize = 10;

/// The longest stretch without delivery, in microseconds by the sender's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outage {
    /// When the last packet before it was sent.
    pub start: u64,
    pub length: u64,
    /// It lasts beyond what was measured.
    pub unfinished: bool,
}

/// The longest outage among packets sent in `since..=until`.
pub fn longest_outage(s: &Stream, since: u64, until: u64) -> Outage {
    let from = s.sent.partition_point(|at| *at < since);
    let to = s.sent.partition_point(|at| *at <= until);
    let mut longest = Outage::default();
    let mut i = from;
    while i < to {
        if s.arrived[i] {
            i += 1;
            continue;
        }
        let start = if i > 0 { s.sent[i - 1] } else { s.sent[i] };
        let mut run = 0;
        let mut first = i;
        while i < to && run < OVER_AFTER {
            if s.arrived[i] {
                if run == 0 {
                    first = i;
                }
                run += 1;
            } else {
                run = 0;
            }
            i += 1;
        }
        // At the end of the record a shorter run has to do.
        let unfinished = run == 0;
        let end = if unfinished { s.sent[to - 1] } else { s.sent[first] };
        let length = end.saturating_sub(start);
        if length > longest.length {
            longest = Outage { start, length, unfinished };
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One packet a millisecond; `.` arrives and `x` is lost.
    fn stream(pattern: &str) -> Stream {
        Stream {
            sent: (0..pattern.len() as u64).map(|i| (i + 1) * 1000).collect(),
            arrived: pattern.chars().map(|c| c == '.').collect(),
        }
    }

    #[test]
    fn an_outage_spans_from_the_last_delivered_to_the_next_delivered() {
        let s = stream("....xxx...............");
        let o = longest_outage(&s, 0, u64::MAX);
        assert_eq!((o.start, o.length, o.unfinished), (4000, 4000, false));
        assert_eq!(longest_outage(&stream("........"), 0, u64::MAX).length, 0);
    }

    #[test]
    fn a_packet_that_slips_through_does_not_end_it() {
        let o = longest_outage(&stream("..........xxxxx.xxxxx............"), 0, u64::MAX);
        assert_eq!(o.length, 12_000);
    }

    #[test]
    fn what_never_recovers_is_unfinished() {
        let o = longest_outage(&stream("...xxxxxx"), 0, u64::MAX);
        assert!(o.unfinished);
        assert_eq!(o.length, 6000);
    }
}
