//! How long to wait for a reply: RFC 6298, without its floor of one second and with a memory of the latest round trips.
//!
//! `timeout = srtt + max(4·rttvar, min_probe_timeout)`, but never less than the longest of the latest round trips and
//! `min_probe_timeout`, nor more than twice that round trip and `min_probe_timeout`. So one reply that came late is enough
//! to wait as long for the next ones, a path of 800 ± 200 ms is not called lossy in its calm moments, and a hiccup of a
//! quarter of a second does not make the timeout a second long for the next five (which doubling it, as RFC 6298 does for
//! retransmissions, did: a probe is not repeated, so there is nothing to back off from).

use std::time::Duration;

use crate::time::Instant;

/// Before any reply: RFC 6298 says 1 s, but a first round trip of over a second is no loss here.
const INITIAL: f64 = 3_000_000.0;
/// Longest timeout, µs.
const MAX: f64 = 10_000_000.0;
/// Gains of RFC 6298: smoothed round trip, variation.
const ALPHA: f64 = 1.0 / 8.0;
const BETA: f64 = 1.0 / 4.0;
/// Round trips remembered: under a second of rounds.
const LATEST: usize = 12;

/// How long after a late reply no loss counts before it has had as much time.
const LATE_FOR: Duration = Duration::from_secs(5);
/// Replies in time to later probes, after which that is over: the delay has gone, or the timeout has followed it.
const LATE_UNTIL: u32 = 3;

/// Replies of a path came after their timeouts: it may have become slower all at once.
#[derive(Debug, Clone, Copy)]
pub struct LateReplies {
    at: Instant,
    rtt: Duration,
    in_time: u32,
}

impl LateReplies {
    /// One more late reply.
    pub fn again(before: Option<Self>, now: Instant, rtt: Duration) -> Self {
        let recent = before.and_then(|l| l.patience(now)).unwrap_or_default();
        Self { at: now, rtt: rtt.max(recent), in_time: 0 }
    }

    /// A reply in time.
    pub fn replied_in_time(&mut self, sent: Instant) {
        self.in_time += u32::from(sent > self.at);
    }

    /// The longest round trip seen, while it matters.
    pub fn patience(&self, now: Instant) -> Option<Duration> {
        (now.since(self.at) < LATE_FOR && self.in_time < LATE_UNTIL).then_some(self.rtt)
    }
}

/// Round trips of one path, in µs.
#[derive(Debug, Clone)]
pub struct Rtt {
    smoothed: Option<f64>,
    variation: f64,
    latest: [f64; LATEST],
    next: usize,
}

impl Rtt {
    pub const fn new() -> Self {
        Self { smoothed: None, variation: 0.0, latest: [0.0; LATEST], next: 0 }
    }

    pub fn sample(&mut self, rtt: Duration) {
        let r = rtt.as_micros() as f64;
        match self.smoothed {
            None => (self.smoothed, self.variation) = (Some(r), r / 2.0),
            Some(s) => {
                self.variation += BETA * ((r - s).abs() - self.variation);
                self.smoothed = Some(s + ALPHA * (r - s));
            }
        }
        self.latest[self.next] = r;
        self.next = (self.next + 1) % LATEST;
    }

    pub fn smoothed(&self) -> Option<Duration> {
        self.smoothed.map(|s| Duration::from_micros(s as u64))
    }

    pub fn timeout(&self, least: Duration) -> Duration {
        let least = least.as_micros() as f64;
        let longest = self.latest.into_iter().fold(0.0, f64::max);
        let t = match self.smoothed {
            None => INITIAL,
            Some(s) => {
                let rfc = s + (4.0 * self.variation).max(least);
                rfc.clamp(longest + least, 2.0 * longest + least)
            }
        };
        Duration::from_micros(t.min(MAX) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_reply_is_remembered_until_others_come_in_time() {
        let ms = Duration::from_millis;
        let at = |n| Instant(0) + ms(n);
        let mut late = LateReplies::again(None, at(1000), ms(300));
        assert_eq!(late.patience(at(1100)), Some(ms(300)));
        late = LateReplies::again(Some(late), at(1200), ms(90));
        assert_eq!(late.patience(at(1300)), Some(ms(300)), "the longest of them");
        assert_eq!(late.patience(at(7000)), None);
        for sent in [1100, 1150, 1190, 1300, 1400] {
            late.replied_in_time(at(sent));
        }
        assert!(late.patience(at(1500)).is_some(), "only probes sent later say anything");
        late.replied_in_time(at(1500));
        assert_eq!(late.patience(at(1600)), None);
    }

    #[test]
    fn a_steady_path_has_a_short_timeout_and_a_jittery_one_a_long_one() {
        let ms = Duration::from_millis;
        let mut rtt = Rtt::new();
        assert_eq!(rtt.timeout(ms(20)), ms(3000));
        for _ in 0..200 {
            rtt.sample(ms(20));
        }
        assert!(rtt.timeout(ms(20)) < ms(42), "{:?}", rtt.timeout(ms(20)));
        for i in 0..200 {
            rtt.sample(ms(if i % 2 == 0 { 600 } else { 1000 }));
        }
        assert!(rtt.timeout(ms(20)) > ms(1100));
    }

    #[test]
    fn a_hiccup_is_waited_for_and_soon_forgotten() {
        let ms = Duration::from_millis;
        let mut rtt = Rtt::new();
        (0..50).for_each(|_| rtt.sample(ms(20)));
        rtt.sample(ms(250));
        assert!(rtt.timeout(ms(20)) >= ms(270), "{:?}", rtt.timeout(ms(20)));
        (0..5).for_each(|_| rtt.sample(ms(250)));
        assert!(rtt.timeout(ms(20)) <= ms(520), "{:?}", rtt.timeout(ms(20)));
        (0..LATEST * 3).for_each(|_| rtt.sample(ms(20)));
        assert!(rtt.timeout(ms(20)) < ms(50), "{:?}", rtt.timeout(ms(20)));
    }
}
