//! When peers were last heard, by the monotonic clock. WireGuard tells the wall clock's time of a peer's last handshake; somebody may
//! set that clock, so only a change of what it tells counts, and when that was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use wgctl_plan::{InterfaceName, WgPublicKey};

use crate::wireguard::PeerStats;

/// A peer that was heard within this time is alive where it is (WireGuard's `REJECT_AFTER_TIME`, 180 s).
const ALIVE: Duration = Duration::from_secs(180);

/// A peer that was sent to and has not answered for so long is silent: WireGuard itself begins a new handshake then
/// (`KEEPALIVE_TIMEOUT` + `REKEY_TIMEOUT`).
const SILENT: Duration = Duration::from_secs(15);

type Id = (InterfaceName, WgPublicKey);

/// See the module.
#[derive(Debug, Default)]
pub struct Heard(BTreeMap<Id, Peer>);

#[derive(Debug)]
struct Peer {
    rx_bytes: u64,
    tx_bytes: u64,
    handshake: Option<SystemTime>,
    /// When what it sent last changed what WireGuard tells; before that, when it was first looked at.
    since: Instant,
    /// Seen to change. Until then a handshake may be of any time.
    changed: bool,
    /// Something was sent since.
    asked: bool,
}

impl Heard {
    /// The counters of all peers, as they were read at `now`.
    pub fn note<'a>(
        &mut self,
        stats: impl IntoIterator<Item = (&'a Id, &'a PeerStats)>,
        now: Instant,
    ) {
        let mut before = std::mem::take(&mut self.0);
        for (id, stats) in stats {
            let PeerStats { rx_bytes, tx_bytes, last_handshake: handshake } = *stats;
            let peer = match before.remove(id) {
                // A peer that was made anew counts from zero.
                Some(peer) if peer.tx_bytes <= tx_bytes && peer.rx_bytes <= rx_bytes => {
                    if peer.rx_bytes != rx_bytes || peer.handshake != handshake {
                        Peer {
                            rx_bytes,
                            tx_bytes,
                            handshake,
                            since: now,
                            changed: true,
                            asked: false,
                        }
                    } else {
                        Peer { asked: peer.asked || tx_bytes > peer.tx_bytes, tx_bytes, ..peer }
                    }
                }
                _ => {
                    Peer { rx_bytes, tx_bytes, handshake, since: now, changed: false, asked: false }
                }
            };
            self.0.insert(id.clone(), peer);
        }
    }

    /// The peer is alive at the endpoint that it has now. One that was never seen to change gets the benefit of the doubt for as
    /// long as a silent one.
    pub fn is_alive(&self, id: &Id, now: Instant) -> bool {
        self.0.get(id).is_some_and(|peer| {
            let limit = if peer.changed { ALIVE } else { SILENT };
            peer.handshake.is_some() && now.duration_since(peer.since) < limit
        })
    }

    /// The keys of peers that were sent to and have not been heard for some time, on any interface.
    pub fn silent(&self, now: Instant) -> BTreeSet<WgPublicKey> {
        let is_silent = |p: &Peer| p.asked && now.duration_since(p.since) >= SILENT;
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
    use super::*;

    const KEY: WgPublicKey = WgPublicKey([7; 32]);

    fn id(interface: &str) -> Id {
        (interface.parse().unwrap(), KEY)
    }

    /// One peer, looked at every 5 s.
    struct Bench {
        heard: Heard,
        now: Instant,
        stats: PeerStats,
    }

    impl Bench {
        fn new(handshake: Option<SystemTime>) -> Self {
            let stats = PeerStats { rx_bytes: 0, tx_bytes: 0, last_handshake: handshake };
            let mut bench = Self { heard: Heard::default(), now: Instant::now(), stats };
            bench.heard.note([(&id("wgl0"), &stats)], bench.now);
            bench
        }

        fn for_seconds(&mut self, seconds: u64, mut each: impl FnMut(&mut PeerStats)) {
            for _ in 0..seconds / 5 {
                self.now += Duration::from_secs(5);
                each(&mut self.stats);
                self.heard.note([(&id("wgl0"), &self.stats)], self.now);
            }
        }

        fn is_alive(&self) -> bool {
            self.heard.is_alive(&id("wgl0"), self.now)
        }

        fn is_silent(&self) -> bool {
            self.heard.silent(self.now).contains(&KEY)
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
            assert!(bench.is_alive() && !bench.is_silent(), "it was heard all the time");
            bench.for_seconds(175, |stats| stats.tx_bytes += 100);
            assert!(bench.is_alive());
            bench.for_seconds(5, |_| ());
            assert!(!bench.is_alive(), "three minutes without a word");
            bench.for_seconds(5, |stats| stats.last_handshake = Some(handshake + minutes));
            assert!(bench.is_alive(), "a handshake alone is a sign of life");
        }
    }

    #[test]
    fn a_handshake_from_before_the_first_look_counts_for_a_moment_only() {
        let mut bench = Bench::new(Some(SystemTime::now()));
        bench.for_seconds(10, |stats| stats.tx_bytes += 100);
        assert!(bench.is_alive());
        bench.for_seconds(5, |stats| stats.tx_bytes += 100);
        assert!(!bench.is_alive() && bench.is_silent());
        assert!(!Bench::new(None).is_alive(), "it never shook hands");
    }

    #[test]
    fn a_peer_is_silent_only_if_it_was_sent_to_in_vain() {
        let mut bench = Bench::new(None);
        bench.for_seconds(60, |_| ());
        assert!(!bench.is_silent(), "nothing was sent");
        bench.for_seconds(5, |stats| stats.tx_bytes += 148);
        assert!(bench.is_silent());
        bench.for_seconds(5, |stats| stats.rx_bytes += 92);
        assert!(!bench.is_silent(), "it answered");
        bench.for_seconds(15, |stats| stats.tx_bytes += 148);
        assert!(bench.is_silent());
        // Made anew: its counters begin at zero, and so does its time.
        bench.stats = PeerStats::default();
        bench.for_seconds(5, |_| ());
        assert!(!bench.is_silent());
        bench.for_seconds(10, |stats| stats.tx_bytes += 148);
        assert!(!bench.is_silent());
        bench.for_seconds(5, |stats| stats.tx_bytes += 148);
        assert!(bench.is_silent());
    }

    #[test]
    fn a_key_on_two_interfaces_is_silent_when_it_is_on_both() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut heard = Heard::default();
        let sent = |bytes| PeerStats { tx_bytes: bytes, ..PeerStats::default() };
        let answered = |bytes| PeerStats { rx_bytes: bytes, ..sent(bytes) };
        for (seconds, one, other) in
            [(0, sent(0), sent(0)), (5, sent(1), answered(1)), (20, sent(2), answered(2))]
        {
            heard.note([(&id("wgl0"), &one), (&id("wgl1"), &other)], at(seconds));
        }
        assert!(heard.silent(at(20)).is_empty());
        heard.note(
            [(&id("wgl0"), &sent(3)), (&id("wgl1"), &PeerStats { tx_bytes: 3, ..answered(2) })],
            at(40),
        );
        assert_eq!(heard.silent(at(40)), [KEY].into());
    }
}
