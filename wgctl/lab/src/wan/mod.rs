//! The WAN between locations, emulated in user space: the host kernel may lack netem.
//!
//! Each candidate's `wan0` is a TUN device whose descriptor the forwarder holds, so it sees whole IPv4 packets and no
//! Ethernet. One thread reads them, decides what happens to each (lost, late, doubled, overtaken, too big), keeps them
//! in a heap by due time, and writes them to the destination's device.

mod forwarder;
mod icmp;
mod path;
mod tun;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

pub use tun::open as open_tun;

use crate::scenario::WanSpec;

/// One node's connection to the WAN.
#[derive(Debug)]
pub struct Port {
    pub tun: OwnedFd,
    pub address: Ipv4Addr,
    /// Index of the location.
    pub location: usize,
    /// Index of the node.
    pub node: usize,
}

/// What is wrong with one node's uplink (each way), or with one direction between two nodes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    pub cut: bool,
    /// 0 to 1.
    pub loss: f64,
    pub delay: Duration,
}

#[derive(Debug)]
struct State {
    spec: WanSpec,
    uplinks: Vec<Link>,
    /// From node × to node.
    pairs: Vec<Link>,
    cut_locations: Vec<bool>,
}

impl State {
    /// The links that a packet between two nodes crosses.
    fn links(&self, from: usize, to: usize) -> [Link; 3] {
        [self.uplinks[from], self.pairs[from * self.uplinks.len() + to], self.uplinks[to]]
    }
}

/// Handle on a running forwarder.
#[derive(Debug, Clone)]
pub struct Wan {
    state: Arc<Mutex<State>>,
}

impl Wan {
    pub fn start(spec: &WanSpec, ports: Vec<Port>, nodes: usize, locations: usize) -> Result<Self> {
        let state = State {
            spec: spec.clone(),
            uplinks: vec![Link::default(); nodes],
            pairs: vec![Link::default(); nodes * nodes],
            cut_locations: vec![false; locations],
        };
        let state = Arc::new(Mutex::new(state));
        let mut forwarder = forwarder::Forwarder::new(ports, locations, Arc::clone(&state))?;
        thread::Builder::new()
            .name("wan".into())
            .spawn(move || {
                if let Err(e) = forwarder.run() {
                    eprintln!("lab: the WAN emulator failed: {e:#}");
                    std::process::exit(1);
                }
            })
            .context("cannot start the WAN thread")?;
        Ok(Self { state })
    }

    pub fn set(&self, spec: &WanSpec) {
        self.lock().spec = spec.clone();
    }

    pub fn change_uplink(&self, node: usize, change: impl FnOnce(&mut Link)) {
        change(&mut self.lock().uplinks[node]);
    }

    /// Changes what goes from one node to another; the other direction stays as it is.
    pub fn change_pair(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        let mut state = self.lock();
        let nodes = state.uplinks.len();
        change(&mut state.pairs[from * nodes + to]);
    }

    pub fn cut_location(&self, location: usize, cut: bool) {
        self.lock().cut_locations[location] = cut;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_pair_is_cut_in_that_direction_and_no_other_pair_is() {
        let mut state = State {
            spec: WanSpec::default(),
            uplinks: vec![Link::default(); 3],
            pairs: vec![Link::default(); 9],
            cut_locations: Vec::new(),
        };
        let wan = Wan { state: Arc::new(Mutex::new(state)) };
        wan.change_pair(0, 2, |l| l.cut = true);
        state = Arc::try_unwrap(wan.state).unwrap().into_inner().unwrap();
        let pairs = (0..3).flat_map(|a| (0..3).map(move |b| (a, b)));
        let cut = |(a, b): &(usize, usize)| state.links(*a, *b).iter().any(|l| l.cut);
        assert_eq!(pairs.filter(cut).collect::<Vec<_>>(), [(0, 2)]);
    }
}
