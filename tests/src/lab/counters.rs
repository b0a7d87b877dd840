//! Packets and processor time, as the kernel counts them: the same way for every system.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use wgctl_lab::{Namespace, World};

/// `/proc/net/dev` of a network namespace, kept open: reading it again needs no way into the namespace.
#[derive(Debug)]
pub struct Devices {
    file: File,
}

/// Packets of one device, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    pub received: u64,
    pub sent: u64,
}

impl Devices {
    pub fn of(ns: &Namespace) -> Result<Self> {
        ns.run(Self::here)
    }

    /// Of the calling thread's network namespace.
    pub fn here() -> Result<Self> {
        let file = File::open("/proc/thread-self/net/dev").context("/proc/thread-self/net/dev")?;
        Ok(Self { file })
    }

    pub fn read(&self) -> Result<BTreeMap<String, Packets>> {
        let mut text = Vec::new();
        let mut buffer = [0u8; 4096];
        loop {
            match self.file.read_at(&mut buffer, text.len() as u64)? {
                0 => return Ok(parse(&String::from_utf8_lossy(&text))),
                n => text.extend_from_slice(&buffer[..n]),
            }
        }
    }
}

/// Name: bytes packets and six more received, then bytes packets sent (`proc_pid_net(5)`).
fn parse(text: &str) -> BTreeMap<String, Packets> {
    let line = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let all: Vec<u64> = counts.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        Some((name.trim().to_owned(), Packets { received: *all.get(1)?, sent: *all.get(9)? }))
    };
    text.lines().filter_map(line).collect()
}

/// Everything that the systems cost, added up over the mesh since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Packets that candidates sent to the WAN.
    pub wan: u64,
    /// Packets that nodes sent to their LANs.
    pub lan: u64,
    /// Nanoseconds of processor time of `wireguard-go`.
    pub tunnels: u64,
    /// Nanoseconds of processor time of all other processes on nodes.
    pub daemons: u64,
}

impl Cost {
    pub fn since(self, before: Self) -> Self {
        Self {
            wan: self.wan.saturating_sub(before.wan),
            lan: self.lan.saturating_sub(before.lan),
            tunnels: self.tunnels.saturating_sub(before.tunnels),
            daemons: self.daemons.saturating_sub(before.daemons),
        }
    }

    pub fn of(world: &World) -> Result<Self> {
        let mut cost = Self::default();
        // The switches' ends of the cables are in the lab's own namespace.
        let switches = Devices::here()?.read()?;
        cost.lan =
            switches.iter().filter(|(n, _)| n.starts_with("lan-n")).map(|(_, p)| p.received).sum();
        for (i, n) in world.nodes.iter().enumerate() {
            if n.node.slot.is_some() {
                cost.wan += Devices::of(&n.ns)?.read()?.get("wan0").map_or(0, |p| p.sent);
            }
            for pid in world.processes(i)? {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                let time = processor_time(pid);
                match name.trim() {
                    "wireguard-go" => cost.tunnels += time,
                    _ => cost.daemons += time,
                }
            }
        }
        Ok(cost)
    }
}

/// Nanoseconds, of all threads that are there now (`schedstat`: time on the processor comes first).
fn processor_time(pid: i32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of = |thread: fs::DirEntry| -> Option<u64> {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    threads.flatten().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_by_device() {
        let text = "Inter-|   Receive\n face |bytes packets\n    lo: 100 2 0 0 0 0 0 0 300 4 0 0 0 0 0 0\nwan0:7 8 0 0 0 0 0 0 9 10 0 0 0 0 0 0\n";
        let all = parse(text);
        assert_eq!(all["lo"], Packets { received: 2, sent: 4 });
        assert_eq!(all["wan0"], Packets { received: 8, sent: 10 });
        assert_eq!(all.len(), 2);
    }
}
