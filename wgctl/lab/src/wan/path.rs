//! One direction between two locations: when does a packet that enters now leave, if ever?

use std::time::{Duration, Instant};

use super::Link;
use crate::scenario::WanSpec;

/// A packet that would wait longer than this for its turn is dropped, as by a router's full queue.
const MAX_QUEUE: Duration = Duration::from_millis(250);

/// Small fast generator (xorshift64*): loss and jitter need no better, and each packet draws several numbers.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }
    /// Uniform in 0..1.
    pub fn roll(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Latency wanders between random points instead of jumping with every packet: real jitter comes from queues, which
/// delay a whole train of packets and seldom reorder them.
#[derive(Debug)]
struct Wander {
    from: f64,
    to: f64,
    start: Instant,
    length: Duration,
}

#[derive(Debug)]
pub struct Path {
    wander: Wander,
    /// When the line is free again, at a limited rate.
    line_free: Instant,
}

/// What becomes of a packet.
#[derive(Debug, PartialEq)]
pub enum Fate {
    Lost,
    TooBig { icmp: bool },
    Deliver { due: Instant, again: bool },
}

impl Path {
    pub fn new(now: Instant) -> Self {
        let wander = Wander { from: 0.0, to: 0.0, start: now, length: Duration::ZERO };
        Self { wander, line_free: now }
    }

    /// `last_due`: when the last packet between the same two nodes leaves. Nothing leaves before what entered earlier, but for packets that
    /// overtake; other nodes' packets do not wait for it.
    pub fn fate(
        &mut self,
        (now, last_due): (Instant, &mut Instant),
        len: usize,
        spec: &WanSpec,
        links: [Link; 3],
        dice: &mut Dice,
    ) -> Fate {
        if links.iter().any(|u| u.cut || (u.loss > 0.0 && dice.roll() < u.loss)) {
            return Fate::Lost;
        }
        if spec.loss > 0.0 && dice.roll() < spec.loss {
            return Fate::Lost;
        }
        if len > usize::from(spec.mtu) {
            return Fate::TooBig { icmp: spec.mtu_icmp };
        }
        let mut enters = now;
        if spec.rate_mbit > 0.0 {
            let free = self.line_free.max(now);
            if free > now + MAX_QUEUE {
                return Fate::Lost;
            }
            self.line_free =
                free + Duration::from_secs_f64(len as f64 * 8.0 / (spec.rate_mbit * 1e6));
            enters = self.line_free;
        }
        let one_way = (spec.rtt.0 / 2).as_secs_f64() + self.jitter(now, spec.jitter.0, dice);
        let slower: Duration = links.iter().map(|l| l.delay).sum();
        let due = enters + Duration::from_secs_f64(one_way.max(0.0)) + slower;
        let overtakes = spec.reorder > 0.0 && dice.roll() < spec.reorder;
        let due = if overtakes { now } else { due.max(*last_due) };
        *last_due = due.max(*last_due);
        Fate::Deliver { due, again: spec.duplicate > 0.0 && dice.roll() < spec.duplicate }
    }

    /// Seconds to add to the latency now.
    fn jitter(&mut self, now: Instant, most: Duration, dice: &mut Dice) -> f64 {
        if most.is_zero() {
            return 0.0;
        }
        let w = &mut self.wander;
        let passed = now.saturating_duration_since(w.start);
        if passed >= w.length {
            *w = Wander {
                from: w.to,
                to: (dice.roll() * 2.0 - 1.0) * most.as_secs_f64(),
                start: now,
                length: Duration::from_secs_f64(0.1 + 0.4 * dice.roll()),
            };
            return w.from;
        }
        w.from + (w.to - w.from) * passed.as_secs_f64() / w.length.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Span;

    fn fates(spec: &WanSpec, n: usize) -> Vec<Fate> {
        let start = Instant::now();
        let (mut path, mut dice, mut last) = (Path::new(start), Dice::new(7), start);
        (0..n)
            .map(|i| {
                let now = start + Duration::from_millis(i as u64);
                path.fate((now, &mut last), 100, spec, [Link::default(); 3], &mut dice)
            })
            .collect()
    }

    #[test]
    fn a_tenth_of_the_packets_is_lost_at_ten_percent() {
        let lost = fates(&WanSpec { loss: 0.1, ..WanSpec::default() }, 10_000)
            .into_iter()
            .filter(|f| *f == Fate::Lost)
            .count();
        assert!((800..1200).contains(&lost), "{lost}");
    }

    #[test]
    fn jitter_wanders_within_its_bounds_and_keeps_the_order() {
        let spec = WanSpec {
            rtt: Span(Duration::from_millis(800)),
            jitter: Span(Duration::from_millis(100)),
            ..WanSpec::default()
        };
        let dues: Vec<Instant> = fates(&spec, 5_000)
            .into_iter()
            .map(|f| match f {
                Fate::Deliver { due, .. } => due,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(dues.windows(2).all(|w| w[0] <= w[1]));
    }

    #[test]
    fn a_slow_line_drops_what_its_queue_cannot_hold() {
        let spec = WanSpec { rate_mbit: 0.1, ..WanSpec::default() };
        assert!(fates(&spec, 2_000).contains(&Fate::Lost));
    }

    #[test]
    fn a_cut_uplink_loses_everything_and_a_big_packet_is_answered_with_icmp() {
        let now = Instant::now();
        let (mut path, mut dice, mut last) = (Path::new(now), Dice::new(1), now);
        let well = Link::default();
        let cut = Link { cut: true, ..well };
        let spec = WanSpec { mtu: 1400, ..WanSpec::default() };
        let mut fate = |len, links| path.fate((now, &mut last), len, &spec, links, &mut dice);
        assert_eq!(fate(10, [well, well, cut]), Fate::Lost);
        assert_eq!(fate(1401, [well; 3]), Fate::TooBig { icmp: true });
    }

    #[test]
    fn a_slow_pair_delays_its_own_packets_and_those_of_no_other() {
        let now = Instant::now();
        let (mut path, mut dice) = (Path::new(now), Dice::new(1));
        let slow = Link { delay: Duration::from_secs(1), ..Link::default() };
        let mut due = |last: &mut Instant, between: Link| {
            let links = [Link::default(), between, Link::default()];
            match path.fate((now, last), 10, &WanSpec::default(), links, &mut dice) {
                Fate::Deliver { due, .. } => due - now,
                other => panic!("{other:?}"),
            }
        };
        let (mut one, mut other) = (now, now);
        assert_eq!(due(&mut one, slow), Duration::from_millis(1010));
        assert_eq!(due(&mut other, Link::default()), Duration::from_millis(10));
        assert_eq!(due(&mut one, Link::default()), Duration::from_millis(1010), "in order");
    }
}
