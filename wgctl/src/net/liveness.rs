//! When WireGuard peers were last heard from, on the monotonic clock.
//!
//! WireGuard reports the wall-clock time of a peer's last handshake, and that clock may be set. So only a change of what it
//! reports counts, at the time when the change was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use wgctl_plan::{InterfaceName, WgPublicKey};

use crate::wireguard::PeerStats;

/// A peer that was heard from within this time is alive at its endpoint (WireGuard's `REJECT_AFTER_TIME`, 180 s).
const ALIVE: Duration = Duration::from_secs(180);

/// A peer that was sent to and has not answered for this long is silent: WireGuard itself begins a new handshake then
/// (`KEEPALIVE_TIMEOUT` + `REKEY_TIMEOUT`).
const SILENT: Duration = Duration::from_secs(15);

type Id = (InterfaceName, WgPublicKey);

/// See the module.
#[derive(Debug, Default)]
pub struct PeerLiveness(BTreeMap<Id, Peer>);

#[derive(Debug)]
struct Peer {
    stats: PeerStats,
    /// When its received bytes or handshake last changed; before the first change, when it was first seen.
    since: Instant,
    /// It was seen to change. Until then its handshake may be of any age.
    changed: bool,
    /// Something was sent to it since.
    sent_to: bool,
}

impl PeerLiveness {
    /// Takes the counters of all peers, read at `now`.
    pub fn update<'a>(
        &mut self,
        stats: impl IntoIterator<Item = (&'a Id, &'a PeerStats)>,
        now: Instant,
    ) {
        let mut before = std::mem::take(&mut self.0);
        for (id, &stats) in stats {
            // A peer that was added again counts from zero.
            let known = before.remove(id).filter(|p| {
                p.stats.tx_bytes <= stats.tx_bytes && p.stats.rx_bytes <= stats.rx_bytes
            });
            let new = Peer { stats, since: now, changed: false, sent_to: false };
            let heard = |s: &PeerStats| (s.rx_bytes, s.last_handshake);
            let peer = match known {
                None => new,
                Some(p) if heard(&p.stats) != heard(&stats) => Peer { changed: true, ..new },
                Some(p) => {
                    Peer { stats, sent_to: p.sent_to || stats.tx_bytes > p.stats.tx_bytes, ..p }
                }
            };
            self.0.insert(id.clone(), peer);
        }
    }

    /// True if the peer is alive at its present endpoint. A peer that was never seen to change is presumed alive for
    /// [`SILENT`].
    pub fn is_alive(&self, id: &Id, now: Instant) -> bool {
        self.0.get(id).is_some_and(|peer| {
            let limit = if peer.changed { ALIVE } else { SILENT };
            peer.stats.last_handshake.is_some() && now.duration_since(peer.since) < limit
        })
    }

    /// Returns the keys of the peers that were sent to and are silent on every interface that has them.
    pub fn silent(&self, now: Instant) -> BTreeSet<WgPublicKey> {
        let is_silent = |p: &Peer| p.sent_to && now.duration_since(p.since) >= SILENT;
        let (mut silent, mut others) = (BTreeSet::new(), BTreeSet::new());
        for ((_, key), peer) in &self.0 {
            if is_silent(peer) { &mut silent } else { &mut others }.insert(*key);
        }
        silent.retain(|key| !others.contains(key));
        silent
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const KEY: WgPublicKey = WgPublicKey([7; 32]);

    fn id(interface: &str) -> Id {
        (interface.parse().unwrap(), KEY)
    }

    /// One peer, updated every 5 s.
    struct Bench {
        liveness: PeerLiveness,
        now: Instant,
        stats: PeerStats,
    }

    impl Bench {
        fn new(handshake: Option<SystemTime>) -> Self {
            let stats = PeerStats { rx_bytes: 0, tx_bytes: 0, last_handshake: handshake };
            let mut bench = Self { liveness: PeerLiveness::default(), now: Instant::now(), stats };
            bench.liveness.update([(&id("wgl0"), &stats)], bench.now);
            bench
        }

        fn for_seconds(&mut self, seconds: u64, mut each: impl FnMut(&mut PeerStats)) {
            for _ in 0..seconds / 5 {
                self.now += Duration::from_secs(5);
                each(&mut self.stats);
                self.liveness.update([(&id("wgl0"), &self.stats)], self.now);
            }
        }

        fn is_alive(&self) -> bool {
            self.liveness.is_alive(&id("wgl0"), self.now)
        }

        fn is_silent(&self) -> bool {
            self.liveness.silent(self.now).contains(&KEY)
        }
    }

    #[test]
    fn a_peer_is_alive_whatever_the_wall_clock_says() {
        let wall = SystemTime::now();
        let minutes = Duration::from_secs(300);
        // Handshakes of the past and of the future: the clock was set forward or back since.
        for handshake in [wall - minutes, wall + minutes, SystemTime::UNIX_EPOCH + minutes] {
            let mut bench = Bench::new(Some(handshake));
            assert!(bench.is_alive(), "it may be");
            bench.for_seconds(600, |stats| {
                stats.tx_bytes += 100;
                stats.rx_bytes += 100;
            });
            assert!(bench.is_alive() && !bench.is_silent(), "it was heard from all the time");
            bench.for_seconds(175, |stats| stats.tx_bytes += 100);
            assert!(bench.is_alive());
            bench.for_seconds(5, |_| ());
            assert!(!bench.is_alive(), "it was silent for three minutes");
            bench.for_seconds(5, |stats| stats.last_handshake = Some(handshake + minutes));
            assert!(bench.is_alive(), "a handshake alone is a sign of life");
        }
    }

    #[test]
    fn a_handshake_from_before_the_first_update_counts_for_15_s() {
        let mut bench = Bench::new(Some(SystemTime::now()));
        bench.for_seconds(10, |stats| stats.tx_bytes += 100);
        assert!(bench.is_alive());
        bench.for_seconds(5, |stats| stats.tx_bytes += 100);
        assert!(!bench.is_alive() && bench.is_silent());
        assert!(!Bench::new(None).is_alive(), "it never shook hands");
    }

    #[test]
    fn a_peer_is_silent_only_if_it_was_sent_to_and_did_not_answer() {
        let mut bench = Bench::new(None);
        bench.for_seconds(60, |_| ());
        assert!(!bench.is_silent(), "nothing was sent");
        bench.for_seconds(5, |stats| stats.tx_bytes += 148);
        assert!(bench.is_silent());
        bench.for_seconds(5, |stats| stats.rx_bytes += 92);
        assert!(!bench.is_silent(), "it answered");
        bench.for_seconds(15, |stats| stats.tx_bytes += 148);
        assert!(bench.is_silent());
        // Added again: its counters begin at zero, and so does its time.
        bench.stats = PeerStats::default();
        bench.for_seconds(5, |_| ());
        assert!(!bench.is_silent());
        bench.for_seconds(10, |stats| stats.tx_bytes += 148);
        assert!(!bench.is_silent());
        bench.for_seconds(5, |stats| stats.tx_bytes += 148);
        assert!(bench.is_silent());
    }

    #[test]
    fn a_key_on_two_interfaces_is_silent_only_if_it_is_on_both() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut liveness = PeerLiveness::default();
        let sent = |bytes| PeerStats { tx_bytes: bytes, ..PeerStats::default() };
        let answered = |bytes| PeerStats { rx_bytes: bytes, ..sent(bytes) };
        for (seconds, one, other) in
            [(0, sent(0), sent(0)), (5, sent(1), answered(1)), (20, sent(2), answered(2))]
        {
            liveness.update([(&id("wgl0"), &one), (&id("wgl1"), &other)], at(seconds));
        }
        assert!(liveness.silent(at(20)).is_empty());
        liveness.update(
            [(&id("wgl0"), &sent(3)), (&id("wgl1"), &PeerStats { tx_bytes: 3, ..answered(2) })],
            at(40),
        );
        assert_eq!(liveness.silent(at(40)), [KEY].into());
    }
}
