//! The ends of meters: where they are, which addresses are theirs, and the ports that meters beside each other use.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Meter;
use crate::ns::Namespace;

/// Addresses by which an end is known: its own, and those that its own node's CNI gives to its packets.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub addresses: Vec<IpAddr>,
    /// And every address of this /24 (its first three bytes): the node's in its pod CIDR, which may change.
    pub within: Option<[u8; 3]>,
}

impl Known {
    pub fn has(&self, address: IpAddr) -> bool {
        let inside = |three: [u8; 3]| matches!(address, IpAddr::V4(a) if a.octets()[..3] == three);
        self.addresses.contains(&address) || self.within.is_some_and(inside)
    }
}

#[derive(Debug)]
pub struct End<'a> {
    pub ns: &'a Namespace,
    /// Where packets to it go.
    pub address: IpAddr,
    pub known: Known,
}

impl<'a> End<'a> {
    /// One that has no other address.
    pub fn of(ns: &'a Namespace, address: IpAddr) -> Self {
        Self { ns, address, known: Known { addresses: vec![address], within: None } }
    }
}

/// Ports of one of several meters beside each other. The ends of all may be in one network namespace.
#[derive(Debug, Clone, Copy)]
pub struct Lane {
    number: u16,
    of: u16,
}

impl Lane {
    pub const ALONE: Self = Self { number: 0, of: 1 };
    const FIRST_PORT: u16 = 9001;
    /// Ports of a lane: two inboxes, the source of the one flow, TCP.
    const PORTS: u16 = 4;
    /// Fresh source ports are taken in turn from here, so with 1,000 a second one comes back after 45 s.
    const FIRST_SOURCE: u16 = 15_000;
    const SOURCES: u16 = 45_000;
    /// Where several run, ends may be nodes, and ports from here on may be in use there: chosen by the kernel, or WireGuard's.
    const NODES_OWN: u16 = 32_000;

    pub fn new(number: usize, of: usize) -> Self {
        Self { number: number as u16, of: of as u16 }
    }

    pub fn port(self, meter: Meter) -> u16 {
        self.first() + meter as u16
    }

    pub fn source_of_one_flow(self) -> u16 {
        self.first() + 2
    }

    pub fn tcp(self) -> u16 {
        self.first() + 3
    }

    fn first(self) -> u16 {
        Self::FIRST_PORT + self.number * Self::PORTS
    }

    pub fn fresh_source(self, number: u64) -> u16 {
        let all = if self.of == 1 { Self::SOURCES } else { Self::NODES_OWN - Self::FIRST_SOURCE };
        let share = all / self.of;
        Self::FIRST_SOURCE + self.number * share + (number % u64::from(share)) as u16
    }
}

/// What arrived from an address that is none of the sender's, by that address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rewritten(pub BTreeMap<IpAddr, u64>);

impl Rewritten {
    pub fn count(&mut self, from: IpAddr) {
        *self.0.entry(from).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(from, n)| *self.0.entry(*from).or_default() += n);
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// What is more than in an earlier count of the same.
    pub fn since(&self, earlier: &Self) -> Self {
        let more = |(from, n): (&IpAddr, &u64)| {
            let n = n - earlier.0.get(from).copied().unwrap_or(0);
            (n > 0).then_some((*from, n))
        };
        Self(self.0.iter().filter_map(more).collect())
    }
}

impl fmt::Display for Rewritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.0.iter().map(|(from, n)| format!("{n} from {from}")).collect();
        f.write_str(&each.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_no_port() {
        let mut seen = std::collections::BTreeSet::new();
        for lane in (0..4).map(|n| Lane::new(n, 4)) {
            let fixed = [
                lane.port(Meter::NewFlows),
                lane.port(Meter::Established),
                lane.source_of_one_flow(),
                lane.tcp(),
            ];
            let fresh = (0..20_000).map(|n| lane.fresh_source(n));
            let mine: std::collections::BTreeSet<u16> = fixed.into_iter().chain(fresh).collect();
            assert!(mine.iter().all(|p| *p < Lane::NODES_OWN && seen.insert(*p)));
        }
    }

    #[test]
    fn an_end_is_known_by_its_addresses_and_those_within_its_network() {
        let known =
            Known { addresses: vec!["10.0.0.3".parse().unwrap()], within: Some([10, 42, 3]) };
        for (address, is) in
            [("10.0.0.3", true), ("10.42.3.77", true), ("10.42.4.77", false), ("fd00::1", false)]
        {
            assert_eq!(known.has(address.parse().unwrap()), is, "{address}");
        }
    }

    #[test]
    fn what_was_rewritten_before_does_not_count() {
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut earlier = Rewritten::default();
        earlier.count(a);
        let mut later = earlier.clone();
        later.count(a);
        later.count(b);
        let more = later.since(&earlier);
        assert_eq!(
            (more.total(), more.to_string()),
            (2, "1 from 10.0.0.1, 1 from 10.0.0.2".into())
        );
        assert_eq!(earlier.since(&earlier).total(), 0);
    }
}
