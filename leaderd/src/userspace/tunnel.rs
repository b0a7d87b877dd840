//! A WireGuard interface: gotatun's device, and what gotatun does not do as the kernel does.
//!
//! - The UDP socket is open exactly while the link is up. Otherwise gotatun's device is suspended.
//! - A request touches only what it changes: a peer that is set again without a change keeps its session, and so does one whose
//!   allowed-IPs or keep-alive change. So the configuration is remembered here.
//! - An allowed-IP belongs to one peer. gotatun would route by the last one, yet list it at both.
//! - A peer may be added before the private key, where gotatun would panic: a random key stands in until there is one.
//! - A peer with a keep-alive is never given up. gotatun stops 90 s into an unanswered handshake until there is traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use gotatun::device::configure::DeviceWrite;
use gotatun::device::{Device, DeviceBuilder, Error, Peer};
use gotatun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::request::{Secret, Set, SetPeer, hex};
use super::tun::{TunReader, TunWriter};
use super::udp::Sockets;

type Transports = (Sockets, TunWriter, TunReader);
type Key = [u8; 32];

/// Two reports of one handshake differ by less than this: gotatun reports its age, on a clock of its own.
const SAME_HANDSHAKE: Duration = Duration::from_millis(500);

/// Time to send a handshake, at most. The answer is not waited for.
const SEND_HANDSHAKE: Duration = Duration::from_millis(50);

/// Cheap to share; changes take turns.
pub struct Tunnel(Mutex<State>);

struct State {
    device: Device<Transports>,
    config: Config,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Config {
    /// The public half of the private key that was set; `None` while a random one stands in.
    public_key: Option<Key>,
    link_up: bool,
    /// The UDP socket is open, and gotatun's device is not suspended.
    listening: bool,
    peers: BTreeMap<Key, Configured>,
    owners: BTreeMap<IpNet, Key>,
}

#[derive(Clone)]
struct Configured {
    preshared_key: Secret,
    keepalive: u16,
    allowed_ips: BTreeSet<IpNet>,
    /// gotatun forgets this with the session; the kernel does not.
    last_handshake: Option<SystemTime>,
}

impl Tunnel {
    /// Creates an interface without key, port and peers, whose link is down.
    ///
    /// # Errors
    /// If the kernel gives no random bytes.
    pub async fn new(writer: TunWriter, reader: TunReader) -> anyhow::Result<Self> {
        let device = DeviceBuilder::new()
            .with_udp(Sockets::default())
            .with_ip_pair(writer, reader)
            .with_private_key(random_key()?)
            .suspended(true)
            .build()
            .await?;
        Ok(Self(Mutex::new(State { device, config: Config::default() })))
    }

    /// Opens or closes the socket, as the link is up or down. Each further call with `up` tries again a port that was taken.
    ///
    /// # Errors
    /// If the port is taken.
    pub async fn link(&self, up: bool) -> io::Result<()> {
        let mut state = self.0.lock().await;
        state.config.link_up = up;
        if up && !state.config.listening {
            return state.open().await;
        }
        if !up && state.config.listening {
            state.remember_handshakes().await;
            state.device.suspend().await;
            state.config.listening = false;
        }
        Ok(())
    }

    /// Carries out a request. Leaves alone what does not change.
    ///
    /// # Errors
    /// `EADDRINUSE` if the port is taken (the rest is done, and the port is tried again); the kernel's refusal of the fwmark.
    pub async fn set(&self, set: Set) -> io::Result<()> {
        let mut state = self.0.lock().await;
        let State { device, config } = &mut *state;
        let asks_port = set.listen_port.is_some();
        let done = device.write(async |device| config.apply(device, set).await).await;
        let applied = match done {
            Ok(applied) => applied,
            Err(error) => {
                // The change needed another socket, and there is none now.
                device.suspend().await;
                config.listening = false;
                Err(as_io(error))
            }
        };
        if asks_port && applied.is_ok() && config.link_up && !config.listening {
            return state.open().await;
        }
        applied
    }

    /// Returns the answer to `get=1`, without its result and end.
    pub async fn get(&self) -> Zeroizing<String> {
        let mut state = self.0.lock().await;
        state.remember_handshakes().await;
        let State { device, config } = &*state;
        device
            .read(async |device| {
                // Long enough from the start: a string that grows leaves copies of secrets behind.
                let prefixes = config.owners.len();
                let mut text = Zeroizing::new(String::with_capacity(
                    512 + config.peers.len() * 512 + prefixes * 64,
                ));
                if config.public_key.is_some()
                    && let Some(key) = device.private_key()
                {
                    let bytes = Zeroizing::new(key.to_bytes());
                    line(&mut text, "private_key", hex(&bytes).as_str());
                }
                line(&mut text, "listen_port", device.listen_port());
                if let Some(mark) = device.fwmark().filter(|mark| *mark != 0) {
                    line(&mut text, "fwmark", mark);
                }
                let mut peers = device.peers().await;
                peers.sort_by_key(|p| *p.peer.public_key.as_bytes());
                for seen in peers {
                    let key = seen.peer.public_key.as_bytes();
                    let Some(peer) = config.peers.get(key) else { continue };
                    line(&mut text, "public_key", hex(key).as_str());
                    line(&mut text, "preshared_key", hex(&peer.preshared_key.0).as_str());
                    line(&mut text, "protocol_version", 1);
                    if let Some(endpoint) = seen.peer.endpoint {
                        line(&mut text, "endpoint", endpoint);
                    }
                    let at = peer
                        .last_handshake
                        .and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
                    let at = at.unwrap_or_default();
                    line(&mut text, "last_handshake_time_sec", at.as_secs());
                    line(&mut text, "last_handshake_time_nsec", at.subsec_nanos());
                    line(&mut text, "tx_bytes", seen.stats.tx_bytes);
                    line(&mut text, "rx_bytes", seen.stats.rx_bytes);
                    line(&mut text, "persistent_keepalive_interval", peer.keepalive);
                    for prefix in &peer.allowed_ips {
                        line(&mut text, "allowed_ip", prefix);
                    }
                }
                text
            })
            .await
    }

    /// Begins a handshake with every peer that has a keep-alive and no session, unless one is under way.
    pub async fn revive(&self) {
        let mut state = self.0.lock().await;
        if !state.config.listening {
            return;
        }
        let with_session = state.remember_handshakes().await;
        let without: Vec<PublicKey> = (state.config.peers.iter())
            .filter(|(key, peer)| peer.keepalive > 0 && !with_session.contains(*key))
            .map(|(key, _)| PublicKey::from(*key))
            .collect();
        let handshakes = without.iter().map(|key| state.device.force_handshake(key));
        let _ = tokio::time::timeout(SEND_HANDSHAKE, join_all(handshakes)).await;
    }
}

impl State {
    async fn open(&mut self) -> io::Result<()> {
        let mut opened = self.device.resume().await;
        if opened.is_ok() && self.config.peers.is_empty() {
            // gotatun opens no socket without peers. Removing peers that do not exist makes it open one.
            opened = self.device.clear_peers().await.map(drop);
        }
        self.config.listening = opened.is_ok();
        match opened {
            Ok(()) => Ok(()),
            Err(error) => {
                self.device.suspend().await;
                Err(as_io(error))
            }
        }
    }

    /// Remembers the times of the last handshakes. Returns the peers that have a session.
    async fn remember_handshakes(&mut self) -> BTreeSet<Key> {
        let now = SystemTime::now();
        let mut sessions = BTreeSet::new();
        for seen in self.device.peers().await {
            let key = *seen.peer.public_key.as_bytes();
            let at = seen.stats.last_handshake.and_then(|age| now.checked_sub(age));
            let (Some(at), Some(peer)) = (at, self.config.peers.get_mut(&key)) else { continue };
            sessions.insert(key);
            let apart = |before: SystemTime| match at.duration_since(before) {
                Ok(later) => later,
                Err(earlier) => earlier.duration(),
            };
            if peer.last_handshake.is_none_or(|before| apart(before) > SAME_HANDSHAKE) {
                peer.last_handshake = Some(at);
            }
        }
        sessions
    }
}

impl Config {
    async fn apply(
        &mut self,
        device: &mut DeviceWrite<'_, Transports>,
        set: Set,
    ) -> io::Result<()> {
        if let Some(key) = &set.private_key {
            self.set_private_key(device, key).await?;
        }
        if let Some(mark) = set.fwmark
            && mark != device.fwmark().unwrap_or(0)
        {
            device.set_fwmark(mark).map_err(as_io)?;
        }
        if let Some(port) = set.listen_port {
            device.set_listen_port(port);
        }
        if set.replace_peers {
            for key in std::mem::take(&mut self.peers).into_keys() {
                device.remove_peer(&PublicKey::from(key)).await;
            }
            self.owners.clear();
        }
        // The peers' present endpoints. Read once, if at all: gotatun returns everything about every peer.
        let mut endpoints: Option<BTreeMap<Key, SocketAddr>> = None;
        for peer in set.peers {
            // As in the kernel: a node is no peer of itself.
            if self.public_key == Some(peer.public_key) {
                continue;
            }
            if peer.remove {
                self.remove_peer(device, &peer.public_key).await;
                continue;
            }
            match self.peers.get(&peer.public_key).cloned() {
                None if peer.update_only => {}
                None => self.add_peer(device, peer).await,
                Some(present) => {
                    if endpoints.is_none() && peer.endpoint.is_some() {
                        let seen = device.peers().await.into_iter();
                        let seen = seen.filter_map(|p| {
                            Some((*p.peer.public_key.as_bytes(), p.peer.endpoint?))
                        });
                        endpoints = Some(seen.collect());
                    }
                    let endpoint =
                        endpoints.as_ref().and_then(|e| e.get(&peer.public_key)).copied();
                    self.change_peer(device, peer, present, endpoint).await;
                }
            }
        }
        Ok(())
    }

    async fn set_private_key(
        &mut self,
        device: &mut DeviceWrite<'_, Transports>,
        key: &Secret,
    ) -> io::Result<()> {
        if key.is_none() && self.public_key.is_none() {
            return Ok(());
        }
        let (private, public) = if key.is_none() {
            (random_key()?, None)
        } else {
            let private = StaticSecret::from(*key.0);
            let public = *PublicKey::from(&private).as_bytes();
            (private, Some(public))
        };
        if let Some(public) = public {
            self.remove_peer(device, &public).await;
        }
        self.public_key = public;
        // The same key again changes nothing in gotatun.
        device.set_private_key(private).await;
        Ok(())
    }

    async fn remove_peer(&mut self, device: &mut DeviceWrite<'_, Transports>, key: &Key) {
        if let Some(gone) = self.peers.remove(key) {
            for prefix in &gone.allowed_ips {
                self.owners.remove(prefix);
            }
            device.remove_peer(&PublicKey::from(*key)).await;
        }
    }

    async fn add_peer(&mut self, device: &mut DeviceWrite<'_, Transports>, asked: SetPeer) {
        let key = asked.public_key;
        let allowed_ips = self.assign(device, &key, BTreeSet::new(), &asked.allowed_ips).await;
        let configured = Configured {
            preshared_key: asked.preshared_key.unwrap_or(Secret(Zeroizing::new([0; 32]))),
            keepalive: asked.keepalive.unwrap_or(0),
            allowed_ips,
            last_handshake: None,
        };
        let mut peer = Peer::new(PublicKey::from(key));
        peer.endpoint = asked.endpoint;
        peer.preshared_key = preshared(&configured.preshared_key);
        peer.keepalive = Some(configured.keepalive);
        peer.allowed_ips = configured.allowed_ips.iter().map(network).collect();
        device.add_peer(peer);
        self.peers.insert(key, configured);
    }

    /// Touches only what changes.
    async fn change_peer(
        &mut self,
        device: &mut DeviceWrite<'_, Transports>,
        asked: SetPeer,
        present: Configured,
        endpoint: Option<SocketAddr>,
    ) {
        let key = asked.public_key;
        let begin =
            if asked.replace_allowed_ips { BTreeSet::new() } else { present.allowed_ips.clone() };
        let wanted = Configured {
            preshared_key: asked.preshared_key.unwrap_or(present.preshared_key.clone()),
            keepalive: asked.keepalive.unwrap_or(present.keepalive),
            allowed_ips: self.assign(device, &key, begin, &asked.allowed_ips).await,
            last_handshake: present.last_handshake,
        };
        for prefix in present.allowed_ips.difference(&wanted.allowed_ips) {
            self.owners.remove(prefix);
        }
        let moves = asked.endpoint.filter(|to| Some(*to) != endpoint);
        let rekeyed = wanted.preshared_key != present.preshared_key;
        let paced = wanted.keepalive != present.keepalive;
        let allowed = wanted.allowed_ips != present.allowed_ips;
        if moves.is_some() || rekeyed || paced || allowed {
            let change = |peer: &mut gotatun::device::configure::PeerMut| {
                if moves.is_some() {
                    peer.set_endpoint(moves);
                }
                if rekeyed {
                    peer.set_preshared_key(preshared(&wanted.preshared_key));
                }
                if paced {
                    peer.set_keepalive(Some(wanted.keepalive));
                }
                if allowed {
                    peer.clear_allowed_ips();
                    peer.add_allowed_ips(wanted.allowed_ips.iter().map(network));
                }
            };
            device.modify_peer(&PublicKey::from(key), change).await;
        }
        self.peers.insert(key, wanted);
    }

    /// Returns the prefixes of a peer after a request, and takes them from the peers that had them.
    async fn assign(
        &mut self,
        device: &mut DeviceWrite<'_, Transports>,
        key: &Key,
        mut prefixes: BTreeSet<IpNet>,
        asked: &[(IpNet, bool)],
    ) -> BTreeSet<IpNet> {
        for (prefix, add) in asked {
            if *add {
                prefixes.insert(*prefix)
            } else {
                prefixes.remove(prefix)
            };
        }
        let mut losers = BTreeSet::new();
        for prefix in &prefixes {
            if let Some(owner) = self.owners.insert(*prefix, *key).filter(|owner| owner != key)
                && let Some(peer) = self.peers.get_mut(&owner)
            {
                peer.allowed_ips.remove(prefix);
                losers.insert(owner);
            }
        }
        for loser in losers {
            let Some(peer) = self.peers.get(&loser) else { continue };
            let left = peer.allowed_ips.iter().map(network);
            let change = |peer: &mut gotatun::device::configure::PeerMut| {
                peer.clear_allowed_ips();
                peer.add_allowed_ips(left);
            };
            device.modify_peer(&PublicKey::from(loser), change).await;
        }
        prefixes
    }
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{key}={value}");
}

fn network(prefix: &IpNet) -> IpNetwork {
    IpNetwork::new(prefix.addr(), prefix.prefix_len())
        .expect("an IpNet has a length that its family has")
}

fn preshared(key: &Secret) -> Option<Key> {
    (!key.is_none()).then_some(*key.0)
}

/// Returns a key whose public half is unknown to all, so no handshake can begin with it.
fn random_key() -> io::Result<StaticSecret> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice())
        .map_err(|e| io::Error::other(format!("no randomness: {e}")))?;
    Ok(StaticSecret::from(*bytes))
}

fn as_io(error: Error) -> io::Error {
    match error {
        Error::Bind(error, _) | Error::IoError(error) => error,
        error => io::Error::other(error.to_string()),
    }
}

/// Returns the number that answers an error: the kernel's, negative.
pub fn errno(error: &io::Error) -> i32 {
    -error.raw_os_error().unwrap_or(Errno::EIO as i32)
}
