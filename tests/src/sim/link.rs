//! The network between two nodes: latency, jitter, loss (independent or in bursts), duplication, reordering.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};

/// How packets get lost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Loss {
    /// Each by itself, with this share (0 to 1).
    Independent(f64),
    /// Gilbert–Elliott: with these chances per packet a link turns bad, and good again; while bad it loses `bad_loss`.
    Bursty { to_bad: f64, to_good: f64, bad_loss: f64 },
}

impl Loss {
    pub const NONE: Self = Self::Independent(0.0);
}

/// One direction between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// One way.
    pub latency: Duration,
    /// Added to it, uniformly drawn from 0 to this.
    pub jitter: Duration,
    pub loss: Loss,
    /// Share of packets that arrive twice.
    pub duplicate: f64,
    /// Share of packets that are held back by another latency, so that later ones overtake them.
    pub reorder: f64,
}

/// What one direction between two nodes suffers for a while, on top of its link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weather {
    pub loss: Loss,
    /// Milliseconds that each packet takes longer: a jump of the delay when the weather begins, and another when it ends.
    pub slower_ms: u32,
    /// Milliseconds added to that, uniformly drawn from 0 to this.
    pub jitter_ms: u32,
}

impl Weather {
    /// A path that loses this share or more is dead: no TCP connection lives on it.
    pub const DEAD_FROM: f64 = 0.9;

    pub const fn lossy(loss: Loss) -> Self {
        Self { loss, slower_ms: 0, jitter_ms: 0 }
    }

    pub const fn slower(slower_ms: u32) -> Self {
        Self { loss: Loss::NONE, slower_ms, jitter_ms: 0 }
    }

    /// Returns the share of packets that it loses in the long run.
    pub fn share(&self) -> f64 {
        match self.loss {
            Loss::Independent(share) => share,
            Loss::Bursty { to_bad, to_good, bad_loss } => bad_loss * to_bad / (to_bad + to_good),
        }
    }

    /// Returns this weather as a link.
    pub(super) fn link(&self) -> Link {
        let ms = |n: u32| Duration::from_millis(n.into());
        Link { jitter: ms(self.jitter_ms), loss: self.loss, ..Link::of(ms(self.slower_ms)) }
    }
}

impl Link {
    pub const fn of(latency: Duration) -> Self {
        Self { latency, jitter: Duration::ZERO, loss: Loss::NONE, duplicate: 0.0, reorder: 0.0 }
    }

    /// Returns the delays after which a packet arrives: none if lost, two if duplicated. `bad` is the state of a bursty link.
    pub fn pass(&self, rng: &mut ChaCha8Rng, bad: &mut bool, more_loss: f64) -> Vec<Duration> {
        let share = match self.loss {
            Loss::Independent(share) => share,
            Loss::Bursty { to_bad, to_good, bad_loss } => {
                let turn = if *bad { to_good } else { to_bad };
                *bad ^= uniform(rng) < turn;
                if *bad { bad_loss } else { 0.0 }
            }
        };
        if uniform(rng) >= (1.0 - share) * (1.0 - more_loss) {
            return Vec::new();
        }
        let mut delay = self.latency + self.jitter.mul_f64(uniform(rng));
        if self.reorder > 0.0 && uniform(rng) < self.reorder {
            delay += self.latency;
        }
        let mut arrivals = vec![delay];
        if self.duplicate > 0.0 && uniform(rng) < self.duplicate {
            arrivals.push(delay + Duration::from_micros(100));
        }
        arrivals
    }
}

/// Returns a number from 0 to 1, without 1.
pub fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}
