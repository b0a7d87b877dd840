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

/// What is wrong with one node's uplink.
#[derive(Debug, Clone, Copy, Default)]
pub struct Uplink {
    pub cut: bool,
    /// 0 to 1, each way.
    pub loss: f64,
    /// Each way.
    pub delay: Duration,
}

#[derive(Debug)]
struct State {
    spec: WanSpec,
    uplinks: Vec<Uplink>,
    cut_locations: Vec<bool>,
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
            uplinks: vec![Uplink::default(); nodes],
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

    pub fn change_uplink(&self, node: usize, change: impl FnOnce(&mut Uplink)) {
        change(&mut self.lock().uplinks[node]);
    }

    pub fn cut_location(&self, location: usize, cut: bool) {
        self.lock().cut_locations[location] = cut;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}
