//! Losses of the paths of a location, compared in blocks of time.
//!
//! Every round sends the same through all paths at once. In a block, a path either lost something or nothing: a burst of losses is
//! one event, however many packets it took. A block counts against a path only if another path did not lose the same: what all of
//! them lose is no candidate's fault.

use std::collections::VecDeque;
use std::time::Duration;

use crate::io::ProbeId;
use crate::observe::index::{IndexVec, PathIdx, TargetIdx};
use crate::observe::judgement::sprt::{Cusum, Test};
use crate::observe::location::LocationWatch;
use crate::time::Instant;

use super::Sample;

const BLOCK: Duration = Duration::from_millis(250);
/// A block is read this long after its end, so that late replies still count. A reply that is later than that is lost to its user.
const SETTLE: Duration = Duration::from_secs(1);
/// Gain of the shares: about eight seconds.
const GAIN: f64 = 1.0 / 32.0;
/// A path may lose something in this share of blocks more than the best other one, and is not lossy: about 2% of packets.
const MARGIN: f64 = 0.05;
/// The share of the best other path is an average over few blocks. It may be higher than that by this many standard deviations.
const DOUBT: f64 = 2.0;
/// The share of a lossy path is above that by this: a little, or a lot.
const ABOVE: [f64; 2] = [0.2, 0.5];
/// What a path lost to another node so long ago shows that it loses packets to several.
const SPREAD: Duration = Duration::from_secs(5);
/// The sums are held at this, so that a path that gets better is believed in time.
const MAX_SUM: f64 = 60.0;

/// What a path lost beyond others.
#[derive(Debug, Clone, Copy, Default)]
pub struct ComparedLoss {
    /// Share of blocks in which it lost something and another path nothing, of those that tell them apart.
    share: f64,
    sums: [Cusum; 2],
}

impl ComparedLoss {
    /// Counts a block. `best` is the share of the best other path.
    fn add(&mut self, lost: bool, best: f64, sent: Instant) {
        self.share += GAIN * (f64::from(u8::from(lost)) - self.share);
        let usual = at_most(best) + MARGIN;
        for (sum, above) in self.sums.iter_mut().zip(ABOVE) {
            sum.add(Test::new(usual, (usual + above).min(0.99)).step(lost), sent);
            sum.hold_at(MAX_SUM);
        }
    }

    /// Returns the stronger one of the tests that find it lossy.
    pub fn worst(&self) -> Cusum {
        self.sums.into_iter().fold(Cusum::default(), Cusum::worse)
    }
}

/// Returns how large a share may be that was measured as this.
fn at_most(share: f64) -> f64 {
    let variance = share * (1.0 - share) * GAIN / (2.0 - GAIN);
    share + DOUBT * variance.sqrt()
}

/// A probe of a round.
#[derive(Debug, Clone, Copy)]
struct Probe {
    probe: ProbeId,
    path: PathIdx,
    round: u64,
    target: TargetIdx,
    lost: bool,
}

#[derive(Debug)]
struct Block {
    start: Instant,
    probes: Vec<Probe>,
}

/// The blocks that may still change, oldest first.
#[derive(Debug, Default)]
pub struct Blocks {
    open: VecDeque<Block>,
    /// What was sent before this was in blocks that have been read.
    read_until: Instant,
}

impl Blocks {
    /// A probe was answered, or is lost. What is answered late comes a second time.
    pub fn record(&mut self, path: PathIdx, sample: &Sample, lost: bool) {
        let Some(round) = sample.round.filter(|_| sample.sent >= self.read_until) else { return };
        let start = Instant(sample.sent.0 - sample.sent.0 % BLOCK.as_micros() as u64);
        let n = self.open.partition_point(|block| block.start < start);
        if self.open.get(n).is_none_or(|block| block.start != start) {
            self.open.insert(n, Block { start, probes: Vec::new() });
        }
        let probes = &mut self.open[n].probes;
        match probes.iter_mut().find(|known| known.probe == sample.probe) {
            Some(known) => known.lost = lost,
            None => {
                let Sample { probe, target, .. } = *sample;
                probes.push(Probe { probe, path, round, target, lost });
            }
        }
    }

    /// Takes the oldest block if it ended this long ago.
    fn take(&mut self, now: Instant, settled: Duration) -> Option<Block> {
        let oldest = self.open.front()?;
        let end = oldest.start + BLOCK;
        if now < end + settled {
            return None;
        }
        self.read_until = end;
        self.open.pop_front()
    }
}

impl Block {
    /// Returns whether a path lost something in a round in which another one did not. `None`: nothing tells.
    ///
    /// Compared are probes to the same target, if there are any. Where a path alone can probe a target, the target may be what drops
    /// them: then `spread` says whether the path loses packets to others as well.
    fn lost(
        &self,
        path: PathIdx,
        usable: impl Fn(PathIdx) -> bool,
        spread: impl Fn(TargetIdx) -> bool,
    ) -> Option<bool> {
        let (mut compared, mut unclear) = (false, false);
        for probe in self.probes.iter().filter(|probe| probe.path == path) {
            let others = self.probes.iter().filter(|o| o.path != path && usable(o.path));
            let others: Vec<&Probe> = others.filter(|o| o.round == probe.round).collect();
            if !probe.lost {
                compared |= !others.is_empty();
                continue;
            }
            let same = || others.iter().filter(|o| o.target == probe.target);
            let passed = match same().next() {
                Some(_) => same().any(|o| !o.lost),
                None => spread(probe.target) && others.iter().any(|o| !o.lost),
            };
            if passed {
                return Some(true);
            }
            unclear = true;
        }
        (compared && !unclear).then_some(false)
    }
}

impl LocationWatch {
    /// Compares what the paths lost in the blocks that will not change any more. Returns whether one counted against a path.
    pub fn compare_losses(&mut self, now: Instant) -> bool {
        let mut against = false;
        let slowest = self.paths.iter().filter_map(|p| p.rtt.smoothed()).max().unwrap_or_default();
        while let Some(block) = self.blocks.take(now, SETTLE + slowest) {
            let usable = |k: PathIdx| !self.paths[k].verdict.get().is_degraded();
            let spread = |p: PathIdx, t: TargetIdx| {
                let counts = |u: &TargetIdx| {
                    let target = &self.targets[*u];
                    target.node != self.targets[t].node && !target.health.is_quarantined()
                };
                let others = self.testable(p).filter(counts);
                let lost = others.filter_map(|u| self.pairs[p][u].lost());
                lost.max().is_some_and(|lost| lost + SPREAD >= block.start)
            };
            let lost = self.paths.indices().map(|p| block.lost(p, usable, |t| spread(p, t)));
            let lost: IndexVec<PathIdx, Option<bool>> = lost.collect();
            let best = |p: PathIdx| {
                let others = self.paths.enumerate().filter(|(k, _)| *k != p && usable(*k));
                others.map(|(_, other)| other.compared.share).reduce(f64::min)
            };
            let best: IndexVec<PathIdx, f64> =
                self.paths.indices().map(|p| best(p).unwrap_or_default()).collect();
            for (p, lost) in lost.enumerate() {
                if let Some(lost) = *lost {
                    self.paths[p].compared.add(lost, best[p], block.start);
                    against |= lost;
                }
            }
        }
        against
    }

    /// Returns whether a path no longer loses more than the best other one.
    pub fn loses_no_more_than_others(&self, p: PathIdx) -> bool {
        let others = self.paths.enumerate().filter(|(k, _)| *k != p);
        let best = others.map(|(_, other)| other.compared.share).reduce(f64::min);
        self.paths[p].compared.share <= 2.0 * (best.unwrap_or_default() + MARGIN)
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

    use super::*;
    use crate::observe::evidence::Outcome;
    use crate::observe::index::Index;
    use crate::verdict::ProbeClass;

    fn at(ms: u64) -> Instant {
        Instant(0) + Duration::from_millis(ms)
    }

    /// Blocks until the test reaches 23, of a path that loses in this many of 20 blocks beyond the others.
    fn blocks_until_lossy(of_twenty: usize, best: f64) -> Option<usize> {
        let mut path = ComparedLoss::default();
        (1..2000).find(|n| {
            path.add(n % 20 < of_twenty, best, at(*n as u64 * 250));
            path.worst().value() >= 23.0
        })
    }

    #[test]
    fn the_more_a_path_loses_beyond_the_best_other_one_the_sooner_it_is_lossy() {
        let [half, quarter] = [10, 5].map(|n| blocks_until_lossy(n, 0.0).expect("it is lossy"));
        assert!(half < 40, "{half}");
        assert!((half..120).contains(&quarter), "{quarter}");
        assert_eq!(blocks_until_lossy(1, 0.0), None, "within the margin");
        assert_eq!(blocks_until_lossy(5, 0.25), None, "the best other one loses as much");
    }

    #[test]
    fn paths_that_all_lose_the_same_share_are_not_told_apart_for_a_day() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for share in [0.05, 0.25, 0.5] {
            let mut paths = [ComparedLoss::default(); 3];
            for n in 0..4 * 86_400 {
                let best = |p| {
                    let others = (0..3).filter(|k| *k != p);
                    others.map(|k: usize| paths[k].share).fold(1.0, f64::min)
                };
                let best = [0, 1, 2].map(best);
                for (path, best) in paths.iter_mut().zip(best) {
                    path.add(
                        f64::from(rng.next_u32()) < share * f64::from(u32::MAX),
                        best,
                        at(n * 250),
                    );
                    assert!(path.worst().value() < 23.0, "{share}: {path:?} after {n} blocks");
                }
            }
        }
    }

    fn sample(ms: u64, round: u64, target: usize, probe: u64) -> Sample {
        Sample {
            probe: ProbeId(probe),
            sent: at(ms),
            class: ProbeClass::NewFlow,
            target: TargetIdx::new(target),
            size: 500,
            round: Some(round),
            outcome: Outcome::Pending,
        }
    }

    #[test]
    fn a_block_is_read_once_it_will_not_change_and_what_comes_later_is_ignored() {
        let path = PathIdx::new(0);
        let mut blocks = Blocks::default();
        blocks.record(path, &sample(600, 6, 0, 2), true);
        blocks.record(path, &sample(100, 1, 0, 1), true);
        blocks.record(path, &sample(100, 1, 0, 1), false);
        let settled = Duration::from_secs(1);
        let lost = |block: Option<Block>| {
            block.map(|block| block.probes.iter().map(|p| p.lost).collect::<Vec<_>>())
        };
        assert_eq!(lost(blocks.take(at(1249), settled)), None);
        assert_eq!(lost(blocks.take(at(1250), settled)), Some(vec![false]), "answered late");
        blocks.record(path, &sample(249, 2, 0, 3), true);
        assert_eq!(lost(blocks.take(at(1749), settled)), None);
        assert_eq!(lost(blocks.take(at(1750), settled)), Some(vec![true]));
    }

    /// Path, round, target, lost.
    type Sent = (usize, u64, usize, bool);

    fn block(sent: &[Sent]) -> Block {
        let mut blocks = Blocks::default();
        for (id, (path, round, target, lost)) in sent.iter().enumerate() {
            blocks.record(PathIdx::new(*path), &sample(100, *round, *target, id as u64), *lost);
        }
        blocks.take(at(5000), Duration::ZERO).expect("a block")
    }

    #[test]
    fn only_what_another_path_did_not_lose_counts_against_a_path() {
        // What was sent, and what each of three paths lost.
        let table: [(&[Sent], [Option<bool>; 3]); 5] = [
            (&[(0, 1, 0, true), (1, 1, 0, false)], [Some(true), Some(false), None]),
            (&[(0, 1, 0, true), (1, 1, 0, true)], [None; 3]),
            (
                &[(0, 1, 0, true), (1, 1, 0, true), (2, 1, 0, false)],
                [Some(true), Some(true), Some(false)],
            ),
            // Another round, and so of another size.
            (&[(0, 1, 0, true), (1, 2, 0, false)], [None; 3]),
            (&[(0, 1, 0, false), (1, 1, 0, false), (2, 1, 1, false)], [Some(false); 3]),
        ];
        for (n, (sent, expected)) in table.into_iter().enumerate() {
            let block = block(sent);
            assert_eq!(
                [0, 1, 2].map(|p| block.lost(PathIdx::new(p), |_| true, |_| true)),
                expected,
                "{n}"
            );
        }
    }

    #[test]
    fn a_target_that_one_path_alone_probes_may_be_to_blame_itself() {
        let block = block(&[(0, 1, 0, true), (1, 1, 1, false)]);
        for (spread, expected) in [(true, Some(true)), (false, None)] {
            assert_eq!(block.lost(PathIdx::new(0), |_| true, |_| spread), expected);
        }
    }
}
