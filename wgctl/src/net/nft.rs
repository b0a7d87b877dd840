//! The nftables table that preserves source addresses: encoded as netlink messages, and decoded from them.
//!
//! ```text
//! table inet leaderd {
//!   set own4 { type ipv4_addr; flags interval; … }        and near4, far4, own6, near6, far6
//!   chain prerouting {
//!     type filter hook prerouting priority raw; policy accept;
//!     meta nfproto ipv4 ip saddr @near4 ip saddr != @own4 ip daddr @far4 fib daddr type != local notrack
//!     meta nfproto ipv4 ip daddr @near4 ip daddr != @own4 ip saddr @far4 fib daddr type != local notrack
//!     the same in IPv6
//!   }
//!   chain postrouting {
//!     type nat hook postrouting priority srcnat - 1; policy accept;
//!     meta nfproto ipv4 ip daddr @far4 ip saddr @own4 snat ip to ip saddr
//!     the same in IPv6
//!   }
//! }
//! ```
//!
//! Transit is not tracked, so no NAT rule sees it. Connections of the node's own workload are tracked, and are translated to the source
//! that they already have: the first NAT of a connection holds, so a later chain's masquerade leaves them alone.
//!
//! Numbers are those of the kernel's `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`.

mod encode;
mod read;

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use wgctl_plan::{Family, Prefixes, Transit};

use super::netlink::*;
pub use encode::{remove, set};
pub use read::{generation, read};

pub const TABLE: &str = "leaderd";

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}
const NEWTABLE: u16 = kind(0);
const GETTABLE: u16 = kind(1);
const DELTABLE: u16 = kind(2);
const NEWCHAIN: u16 = kind(3);
const GETCHAIN: u16 = kind(4);
const NEWRULE: u16 = kind(6);
const GETRULE: u16 = kind(7);
const NEWSET: u16 = kind(9);
const GETSET: u16 = kind(10);
const NEWSETELEM: u16 = kind(12);
const GETSETELEM: u16 = kind(13);
const GETGEN: u16 = kind(16);

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// `struct nfgenmsg`.
const HEADER: usize = 4;

const GEN_ID: u16 = 1;
/// The table's name, in messages of every kind.
const OF_TABLE: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_ID: u16 = 10;
const SET_FLAG_INTERVAL: u32 = 4;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_INTERVAL_END: u32 = 1;
const DATA_VALUE: u16 = 1;

const NF_INET_PRE_ROUTING: u32 = 0;
const NF_INET_POST_ROUTING: u32 = 4;
const NF_ACCEPT: u32 = 1;

/// A chain of the table.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Chain {
    name: &'static str,
    /// The kernel's name for it.
    kind: &'static str,
    hook: u32,
    priority: i32,
}

const PREROUTING: Chain = Chain {
    name: "prerouting",
    kind: "filter",
    hook: NF_INET_PRE_ROUTING,
    // `NF_IP_PRI_RAW`: after reassembly of fragments, before connection tracking.
    priority: -300,
};
const POSTROUTING: Chain = Chain {
    name: "postrouting",
    kind: "nat",
    hook: NF_INET_POST_ROUTING,
    // Just before `NF_IP_PRI_NAT_SRC`, where CNIs and kube-proxy have theirs.
    priority: 99,
};
const CHAINS: [Chain; 2] = [PREROUTING, POSTROUTING];

/// Elements in one message: an attribute has at most 64 KiB.
const CHUNK: usize = 1000;

fn message(kind: u16, flags: u16) -> Message {
    Message::new(kind, flags, &[NFPROTO_INET, 0, 0, 0])
}

fn in_table(kind: u16, flags: u16) -> Message {
    message(kind, flags).attr_str(OF_TABLE, TABLE)
}

fn batch(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[NFPROTO_UNSPEC, 0, high, low])
}

/// Netfilter's numbers are in network byte order.
trait BigEndian {
    fn be32(self, kind: u16, value: u32) -> Self;
}
impl BigEndian for Message {
    fn be32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }
}

fn be32(attrs: Attrs<'_>, kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attrs.get(kind)?.try_into().ok()?))
}

/// A set of the table: which addresses, and of which family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Set {
    name: &'static str,
    family: Family,
    part: Part,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Own,
    Near,
    Far,
}

const SETS: [Set; 6] = {
    use Family::{V4, V6};
    [
        Set { name: "own4", family: V4, part: Part::Own },
        Set { name: "near4", family: V4, part: Part::Near },
        Set { name: "far4", family: V4, part: Part::Far },
        Set { name: "own6", family: V6, part: Part::Own },
        Set { name: "near6", family: V6, part: Part::Near },
        Set { name: "far6", family: V6, part: Part::Far },
    ]
};

impl Part {
    fn of(self, transit: &Transit) -> &Prefixes {
        match self {
            Self::Own => &transit.own,
            Self::Near => &transit.near,
            Self::Far => &transit.far,
        }
    }
}

const fn address_length(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

/// First and last address of a range, as numbers.
type Range = (u128, u128);

/// Returns the set's addresses as ranges that neither overlap nor touch; the kernel refuses others.
fn ranges(prefixes: &Prefixes, family: Family) -> Vec<Range> {
    let mut all: Vec<Range> = Vec::new();
    let of_family = prefixes.iter().filter(|p| Family::of_net(p) == family);
    // The prefixes of one family are in order and disjoint.
    for (first, last) in of_family.map(range) {
        match all.last_mut() {
            Some(before) if before.1.checked_add(1) == Some(first) => before.1 = last,
            _ => all.push((first, last)),
        }
    }
    all
}

fn range(prefix: &IpNet) -> Range {
    match prefix {
        IpNet::V4(p) => (u32::from(p.network()).into(), u32::from(p.broadcast()).into()),
        IpNet::V6(p) => (p.network().into(), p.broadcast().into()),
    }
}

fn prefixes((first, last): Range, family: Family) -> Vec<IpNet> {
    match family {
        Family::V4 => {
            let ip = |n: u128| Ipv4Addr::from(u32::try_from(n).unwrap_or(u32::MAX));
            Ipv4Subnets::new(ip(first), ip(last), 0).map(IpNet::V4).collect()
        }
        Family::V6 => {
            let ip = Ipv6Addr::from;
            Ipv6Subnets::new(ip(first), ip(last), 0).map(IpNet::V6).collect()
        }
    }
}

const fn greatest(family: Family) -> u128 {
    match family {
        Family::V4 => u32::MAX as u128,
        Family::V6 => u128::MAX,
    }
}

/// An element of an interval set: the first address of a range, or the first one after it.
type Element = (u128, bool);

fn elements(prefixes: &Prefixes, family: Family) -> Vec<Element> {
    let ends = |(first, last): Range| {
        // A range up to the greatest address has no end element.
        let end = (last < greatest(family)).then(|| (last + 1, true));
        std::iter::once((first, false)).chain(end)
    };
    ranges(prefixes, family).into_iter().flat_map(ends).collect()
}

/// Returns the ranges of these elements, in any order; `None` if they are no ranges.
fn from_elements(mut elements: Vec<Element>, family: Family) -> Option<Vec<Range>> {
    // If one range ends where another begins, the end comes first.
    elements.sort_by_key(|(address, end)| (*address, !*end));
    let mut all = Vec::new();
    let mut elements = elements.into_iter().peekable();
    // Some programs put an end before the first range.
    while elements.next_if(|(address, end)| *end && *address == 0).is_some() {}
    while let Some((first, end)) = elements.next() {
        if end {
            return None;
        }
        match elements.next() {
            Some((after, true)) => all.push((first, after.checked_sub(1)?)),
            Some((_, false)) => return None,
            None => all.push((first, greatest(family))),
        }
    }
    Some(all)
}

fn new_set(set: &Set, id: u32) -> Message {
    // nft's own type numbers, by which it shows the elements as addresses.
    let key_type = match set.family {
        Family::V4 => 7,
        Family::V6 => 8,
    };
    in_table(NEWSET, NLM_F_CREATE)
        .attr_str(SET_NAME, set.name)
        .be32(SET_FLAGS, SET_FLAG_INTERVAL)
        .be32(SET_KEY_TYPE, key_type)
        .be32(SET_KEY_LEN, address_length(set.family) as u32)
        .be32(SET_ID, id)
}

fn new_elements<'a>(set: &'a Set, elements: &'a [Element]) -> impl Iterator<Item = Message> + 'a {
    elements.chunks(CHUNK).map(|chunk| {
        in_table(NEWSETELEM, NLM_F_CREATE).attr_str(ELEMENTS_SET, set.name).nested(
            ELEMENTS,
            |list| {
                chunk.iter().fold(list, |list, (address, end)| {
                    list.nested(LIST_ELEMENT, |e| {
                        let bytes = address.to_be_bytes();
                        let key = &bytes[16 - address_length(set.family)..];
                        let e = if *end { e.be32(ELEMENT_FLAGS, ELEMENT_INTERVAL_END) } else { e };
                        e.nested(ELEMENT_KEY, |k| k.attr(DATA_VALUE, key))
                    })
                })
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::encode::{RULES, comment};
    use super::*;

    fn set_of(of: &[&str]) -> Prefixes {
        of.iter().map(|p| p.parse::<IpNet>().unwrap()).collect()
    }

    #[test]
    fn addresses_survive_the_way_into_elements_and_back() {
        for of in [
            &[][..],
            &["0.0.0.0/0"],
            &["255.255.255.255/32", "0.0.0.0/32"],
            &["10.42.1.0/24", "10.42.2.0/24", "10.42.9.0/24", "10.42.9.0/32"],
            &["::/0"],
            &["fd42::/64", "fd42:0:0:1::/64", "fd42:0:0:2::/64", "ffff::/16"],
        ] {
            let prefixes = set_of(of);
            for family in [Family::V4, Family::V6] {
                let mut elements = elements(&prefixes, family);
                elements.reverse();
                let back = from_elements(elements, family).unwrap();
                let back: Prefixes =
                    back.into_iter().flat_map(|r| super::prefixes(r, family)).collect();
                let wanted: Prefixes =
                    prefixes.iter().copied().filter(|p| Family::of_net(p) == family).collect();
                assert_eq!(back, wanted);
            }
        }
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let ranges = ranges(&set_of(&["10.0.1.0/24", "10.0.2.0/24", "10.0.9.0/24"]), Family::V4);
        assert_eq!(ranges.len(), 2, "{ranges:x?}");
    }

    #[test]
    fn elements_that_are_no_ranges_are_recognised() {
        for elements in [vec![(7, true)], vec![(1, false), (2, false), (3, true)]] {
            assert_eq!(from_elements(elements, Family::V4), None);
        }
    }

    #[test]
    fn every_rule_has_a_name_of_its_own() {
        let mut names = RULES.map(|(family, job)| comment(family, job)).to_vec();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), RULES.len());
    }
}
