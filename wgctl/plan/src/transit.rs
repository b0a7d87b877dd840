//! Traffic between locations whose source addresses no NAT rule of this node may rewrite.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What a relay forwards for others: packets between `near` and `far`, in either direction, that are neither from nor to `own`, and
/// not to an address of this node. They stay out of connection tracking. Packets from `own` to `far` are tracked, and keep their source
/// too.
///
/// Only addresses count, so both directions of a connection are treated alike, whichever devices they take.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Transit {
    /// Behind this node itself, and its own address: connections that begin or end here stay tracked.
    pub own: Prefixes,
    /// On this side of the relay: the location.
    pub near: Prefixes,
    /// On the far side: the other locations.
    pub far: Prefixes,
}

impl fmt::Display for Transit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (near, far, own) = (self.near.len(), self.far.len(), self.own.len());
        write!(f, "transit between {near} near and {far} far prefixes, without {own} own")
    }
}

/// A set of addresses, as the smallest number of prefixes. So two sets of the same addresses are equal.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "BTreeSet<IpNet>")]
pub struct Prefixes(BTreeSet<IpNet>);

impl FromIterator<IpNet> for Prefixes {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let all: Vec<IpNet> = prefixes.into_iter().collect();
        Self(IpNet::aggregate(&all).into_iter().collect())
    }
}
impl From<BTreeSet<IpNet>> for Prefixes {
    fn from(prefixes: BTreeSet<IpNet>) -> Self {
        prefixes.into_iter().collect()
    }
}
impl Deref for Prefixes {
    type Target = BTreeSet<IpNet>;
    fn deref(&self) -> &BTreeSet<IpNet> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(of: &[&str]) -> Prefixes {
        of.iter().map(|p| p.parse::<IpNet>().unwrap()).collect()
    }

    #[test]
    fn sets_of_the_same_addresses_are_equal() {
        let one = prefixes(&["10.42.1.0/24", "fd42::/64", "10.42.0.0/24", "10.42.1.7/32"]);
        assert_eq!(one, prefixes(&["10.42.0.0/23", "fd42::/64"]));
        assert_ne!(one, prefixes(&["10.42.0.0/23"]));
        assert!(prefixes(&[]).is_empty());
    }

    #[test]
    fn neighbours_that_make_no_greater_prefix_stay_apart() {
        let two = prefixes(&["10.42.1.0/24", "10.42.2.0/24"]);
        assert_eq!(
            two.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.42.1.0/24", "10.42.2.0/24"]
        );
    }
}
