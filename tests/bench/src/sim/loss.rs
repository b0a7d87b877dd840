//! Loss on the way, as a process in time: each direction of a path is a channel.
//!
//! Bursts are Gilbert–Elliott's two states in continuous time, so that a detector that asks often and one that asks
//! seldom see the same losses. Draws can be *tilted* (importance sampling): losses on chosen channels become likelier,
//! and the logarithm of the likelihood ratio is kept, so that what is seen under the tilt can be weighed back.

use leaderd_core::time::Instant;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use ::tests::sim::link::uniform;

/// Bursts: mean length of the bad state in seconds, and the share of packets that it loses.
pub const MEAN_BAD: f64 = 0.1;
pub const BAD_LOSS: f64 = 0.5;

/// One direction's loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Every packet by itself, with this share.
    Independent(f64),
    /// Gilbert–Elliott with this mean share: nothing is lost in the good state.
    Bursts(f64),
}

impl Loss {
    pub fn mean(self) -> f64 {
        match self {
            Self::Independent(p) | Self::Bursts(p) => p,
        }
    }

    /// Share of time in the bad state.
    pub fn bad_share(self) -> f64 {
        match self {
            Self::Independent(_) => 0.0,
            Self::Bursts(p) => p / BAD_LOSS,
        }
    }

    /// Rate at which the state forgets itself, 1/s: to-bad plus to-good.
    pub fn mixing(self) -> f64 {
        1.0 / MEAN_BAD / (1.0 - self.bad_share())
    }

    /// Chance of the bad state after `dt` seconds.
    pub fn bad_after(self, bad: bool, dt: f64) -> f64 {
        let share = self.bad_share();
        let now = f64::from(u8::from(bad));
        share + (now - share) * (-self.mixing() * dt).exp()
    }

    /// Loss in a state.
    pub fn in_state(self, bad: bool) -> f64 {
        match self {
            Self::Independent(p) => p,
            Self::Bursts(_) if bad => BAD_LOSS,
            Self::Bursts(_) => 0.0,
        }
    }
}

/// Under the tilt a channel loses at least this share, in the state that loses at all.
const TILTED_LOSS: f64 = 0.6;
/// … and is in its bad state with at least this chance, if time has passed since the last packet.
const TILTED_BAD: f64 = 0.5;

#[derive(Clone, Copy, Debug)]
struct Channel {
    bad: bool,
    at: Instant,
    tilted: bool,
}

/// All channels of one run.
#[derive(Debug)]
pub struct LossProcess {
    pub loss: Loss,
    channels: Vec<Channel>,
    /// Packets sent before this are tilted, on channels that are chosen.
    tilt_until: Instant,
    /// Of the likelihood ratio (true over tilted), natural.
    pub log_weight: f64,
    rng: ChaCha8Rng,
}

impl LossProcess {
    pub fn new(loss: Loss, channels: usize, seed: u64) -> Self {
        let channel = Channel { bad: false, at: Instant(0), tilted: false };
        Self {
            loss,
            channels: vec![channel; channels],
            tilt_until: Instant(0),
            log_weight: 0.0,
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Uniform in 0..1.
    pub fn uniform(&mut self) -> f64 {
        uniform(&mut self.rng)
    }

    /// Makes losses on these channels likelier until then, and begins a new weight.
    pub fn tilt(&mut self, until: Instant, chosen: impl Fn(usize) -> bool) {
        for (i, channel) in self.channels.iter_mut().enumerate() {
            channel.tilted = chosen(i);
        }
        self.tilt_until = until;
        self.log_weight = 0.0;
    }

    /// Is a packet lost that enters a channel now?
    pub fn loses(&mut self, channel: usize, now: Instant) -> bool {
        self.loses_one(channel, now, true)
    }

    /// The same; a packet that does not matter is never tilted (each that is adds to the variance).
    pub fn loses_one(&mut self, channel: usize, now: Instant, matters: bool) -> bool {
        let Channel { bad, at, tilted } = self.channels[channel];
        let tilted = tilted && matters && now < self.tilt_until;
        let b = self.loss.bad_after(bad, now.since(at).as_secs_f64());
        let tilted_b = if tilted && b > 0.0 && b < 1.0 { b.max(TILTED_BAD) } else { b };
        let bad = b > 0.0 && self.choose(b, tilted_b);
        let p = self.loss.in_state(bad);
        let tilted_p = if tilted && p > 0.0 { p.max(TILTED_LOSS) } else { p };
        self.channels[channel].bad = bad;
        self.channels[channel].at = now.max(at);
        p > 0.0 && self.choose(p, tilted_p)
    }

    /// True with chance `tilted`; books what chance it would have had.
    fn choose(&mut self, chance: f64, tilted: f64) -> bool {
        let yes = self.uniform() < tilted;
        if tilted != chance {
            self.log_weight +=
                if yes { (chance / tilted).ln() } else { ((1.0 - chance) / (1.0 - tilted)).ln() };
        }
        yes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Instant {
        Instant(n * 1000)
    }

    #[test]
    fn both_kinds_lose_the_share_that_they_are_named_after() {
        for loss in [Loss::Independent(0.05), Loss::Bursts(0.05)] {
            let mut losses = LossProcess::new(loss, 1, 7);
            let lost = (0..400_000).filter(|n| losses.loses(0, ms(n * 50))).count();
            let share = lost as f64 / 400_000.0;
            assert!((share - 0.05).abs() < 0.002, "{loss:?}: {share}");
            assert_eq!(losses.log_weight, 0.0);
        }
    }

    #[test]
    fn tilted_losses_weighed_back_equal_untilted_ones() {
        // Three losses of three, 20 ms apart, of each kind of loss: tilted and weighed against counted.
        for loss in [Loss::Independent(0.1), Loss::Bursts(0.1)] {
            let runs = 200_000;
            let chance = |tilt: bool| {
                let mut sum = 0.0;
                for seed in 0..runs {
                    let mut losses = LossProcess::new(loss, 1, seed);
                    losses.tilt(if tilt { ms(100_000) } else { ms(0) }, |_| true);
                    if (1..=3).all(|n| losses.loses(0, ms(10_000 + n * 20))) {
                        sum += losses.log_weight.exp();
                    }
                }
                sum / runs as f64
            };
            let (plain, tilted) = (chance(false), chance(true));
            assert!((plain / tilted - 1.0).abs() < 0.15, "{loss:?}: {plain} {tilted}");
        }
    }
}
