//! The nftables table that keeps sources what they are, as netlink messages, and read back from them.
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
//! What is in transit is not tracked, so no NAT rule sees it. What the node's own workload begins is tracked, and gets the source that it has
//! already: the first NAT of a connection holds, so a later chain's masquerade leaves it alone.
//!
//! Numbers are those of the kernel's `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use wgctl_plan::{Family, Prefixes, Transit};

use super::netlink::*;

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
    /// As the kernel calls it.
    kind: &'static str,
    hook: u32,
    priority: i32,
}

const PREROUTING: Chain = Chain {
    name: "prerouting",
    kind: "filter",
    hook: NF_INET_PRE_ROUTING,
    // `NF_IP_PRI_RAW`: after fragments are put together, before connections are tracked.
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

/// All of netfilter is in the network's byte order.
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

/// The set's addresses as ranges that neither overlap nor touch, which the kernel would refuse.
fn ranges(prefixes: &Prefixes, family: Family) -> Vec<Range> {
    let mut all: Vec<Range> = Vec::new();
    let of_family = prefixes.iter().filter(|p| Family::of_net(p) == family);
    // Of one family they are in order, and none holds another.
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

/// An element of an interval set: where a range begins, or the first address after it.
type Element = (u128, bool);

fn elements(prefixes: &Prefixes, family: Family) -> Vec<Element> {
    let ends = |(first, last): Range| {
        // A range up to the greatest address has no end.
        let end = (last < greatest(family)).then(|| (last + 1, true));
        std::iter::once((first, false)).chain(end)
    };
    ranges(prefixes, family).into_iter().flat_map(ends).collect()
}

/// The ranges that these elements, in any order, make; `None` if they make none.
fn from_elements(mut elements: Vec<Element>, family: Family) -> Option<Vec<Range>> {
    // Where one range ends and another begins, the end comes first.
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
    // The types of nft, by which it shows the elements as addresses.
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

/// Expressions of a rule, one after another; all use one register.
struct Rule(Message);

impl Rule {
    const REGISTER: u32 = 1;
    const META_DREG: u16 = 1;
    const META_KEY: u16 = 2;
    const META_NFPROTO: u32 = 15;
    const CMP_SREG: u16 = 1;
    const CMP_OP: u16 = 2;
    const CMP_DATA: u16 = 3;
    const CMP_EQ: u32 = 0;
    const CMP_NEQ: u32 = 1;
    const PAYLOAD_DREG: u16 = 1;
    const PAYLOAD_BASE: u16 = 2;
    const PAYLOAD_OFFSET: u16 = 3;
    const PAYLOAD_LEN: u16 = 4;
    const PAYLOAD_NETWORK_HEADER: u32 = 1;
    const LOOKUP_SET: u16 = 1;
    const LOOKUP_SREG: u16 = 2;
    const LOOKUP_FLAGS: u16 = 5;
    const LOOKUP_INVERT: u32 = 1;
    const FIB_DREG: u16 = 1;
    const FIB_RESULT: u16 = 2;
    const FIB_FLAGS: u16 = 3;
    const FIB_ADDRESS_TYPE: u32 = 3;
    const FIB_DESTINATION: u32 = 2;
    const RTN_LOCAL: u32 = 2;
    const NAT_TYPE: u16 = 1;
    const NAT_FAMILY: u16 = 2;
    const NAT_REG_ADDR_MIN: u16 = 3;
    const NAT_SNAT: u32 = 0;

    fn expression(self, name: &str, data: impl FnOnce(Message) -> Message) -> Self {
        Self(self.0.nested(LIST_ELEMENT, |m| {
            m.attr_str(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, data)
        }))
    }

    fn compare(self, op: u32, value: &[u8]) -> Self {
        self.expression("cmp", |m| {
            m.be32(Self::CMP_SREG, Self::REGISTER)
                .be32(Self::CMP_OP, op)
                .nested(Self::CMP_DATA, |d| d.attr(DATA_VALUE, value))
        })
    }

    fn of_family(self, family: Family) -> Self {
        let number = nfproto(family);
        self.expression("meta", |m| {
            m.be32(Self::META_DREG, Self::REGISTER).be32(Self::META_KEY, Self::META_NFPROTO)
        })
        .compare(Self::CMP_EQ, &[number])
    }

    /// Loads the source or the destination.
    fn load(self, family: Family, end: End) -> Self {
        let offset = match (family, end) {
            (Family::V4, End::Source) => 12,
            (Family::V4, End::Destination) => 16,
            (Family::V6, End::Source) => 8,
            (Family::V6, End::Destination) => 24,
        };
        self.expression("payload", |m| {
            m.be32(Self::PAYLOAD_DREG, Self::REGISTER)
                .be32(Self::PAYLOAD_BASE, Self::PAYLOAD_NETWORK_HEADER)
                .be32(Self::PAYLOAD_OFFSET, offset)
                .be32(Self::PAYLOAD_LEN, address_length(family) as u32)
        })
    }

    fn lookup(self, family: Family, part: Part, flags: u32) -> Self {
        let set = SETS.iter().find(|s| s.family == family && s.part == part);
        let set = set.expect("there is a set of every part and family");
        self.expression("lookup", |m| {
            m.attr_str(Self::LOOKUP_SET, set.name)
                .be32(Self::LOOKUP_SREG, Self::REGISTER)
                .be32(Self::LOOKUP_FLAGS, flags)
        })
    }

    fn unless_for_this_node(self) -> Self {
        self.expression("fib", |m| {
            m.be32(Self::FIB_DREG, Self::REGISTER)
                .be32(Self::FIB_RESULT, Self::FIB_ADDRESS_TYPE)
                .be32(Self::FIB_FLAGS, Self::FIB_DESTINATION)
        })
        .compare(Self::CMP_NEQ, &Self::RTN_LOCAL.to_ne_bytes())
    }

    fn notrack(self) -> Self {
        Self(self.0.nested(LIST_ELEMENT, |m| m.attr_str(EXPRESSION_NAME, "notrack")))
    }

    /// Source NAT to the address that was loaded last.
    fn snat_to_loaded(self, family: Family) -> Self {
        self.expression("nat", |m| {
            m.be32(Self::NAT_TYPE, Self::NAT_SNAT)
                .be32(Self::NAT_FAMILY, nfproto(family).into())
                .be32(Self::NAT_REG_ADDR_MIN, Self::REGISTER)
        })
    }
}

const fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Source,
    Destination,
}

/// What a rule does to packets of a family.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Job {
    /// Transit whose near side is at this end of the packet is not tracked.
    Untrack { near: End },
    /// What the node's own workload sends to the far side keeps its source.
    KeepSource,
}

/// In the order of [`CHAINS`].
const RULES: [(Family, Job); 6] = [
    (Family::V4, Job::Untrack { near: End::Source }),
    (Family::V4, Job::Untrack { near: End::Destination }),
    (Family::V6, Job::Untrack { near: End::Source }),
    (Family::V6, Job::Untrack { near: End::Destination }),
    (Family::V4, Job::KeepSource),
    (Family::V6, Job::KeepSource),
];

impl Job {
    const fn chain(self) -> Chain {
        match self {
            Self::Untrack { .. } => PREROUTING,
            Self::KeepSource => POSTROUTING,
        }
    }
}

fn expressions(family: Family, job: Job, list: Message) -> Message {
    let rule = Rule(list).of_family(family);
    // The cheapest first: most packets of a node go nowhere far.
    match job {
        Job::Untrack { near } => {
            let far = if near == End::Source { End::Destination } else { End::Source };
            rule.load(family, near)
                .lookup(family, Part::Near, 0)
                .lookup(family, Part::Own, Rule::LOOKUP_INVERT)
                .load(family, far)
                .lookup(family, Part::Far, 0)
                .unless_for_this_node()
                .notrack()
        }
        Job::KeepSource => rule
            .load(family, End::Destination)
            .lookup(family, Part::Far, 0)
            .load(family, End::Source)
            .lookup(family, Part::Own, 0)
            .snat_to_loaded(family),
    }
    .0
}

/// A comment that names what the rule is: the kernel shows a rule in its own words, which differ from one version to the next, but
/// keeps this. A rule that is replaced has none or another.
fn comment(family: Family, job: Job) -> Vec<u8> {
    let bytes = expressions(family, job, Message::new(0, 0, &[])).into_bytes();
    // FNV-1a.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let text = format!("leaderd {hash:016x}\0");
    // Type 0 is a comment, in nft's format.
    [&[0, text.len() as u8], text.as_bytes()].concat()
}

fn new_rule(family: Family, job: Job, flags: u16) -> Message {
    in_table(NEWRULE, NLM_F_CREATE | NLM_F_APPEND | flags)
        .attr_str(RULE_CHAIN, job.chain().name)
        .nested(RULE_EXPRESSIONS, |list| expressions(family, job, list))
        .attr(RULE_USERDATA, &comment(family, job))
}

fn new_chain(chain: &Chain) -> Message {
    in_table(NEWCHAIN, NLM_F_CREATE)
        .attr_str(CHAIN_NAME, chain.name)
        .nested(CHAIN_HOOK, |h| {
            h.be32(HOOK_NUMBER, chain.hook).attr(HOOK_PRIORITY, &chain.priority.to_be_bytes())
        })
        .be32(CHAIN_POLICY, NF_ACCEPT)
        .attr_str(CHAIN_TYPE, chain.kind)
}

/// A transaction that puts the table of this transit in the place of any that is there.
pub fn set(transit: &Transit) -> Vec<Message> {
    let mut all = vec![
        batch(BATCH_BEGIN),
        // Deleted without being there it would be an error.
        in_table(NEWTABLE, NLM_F_CREATE),
        in_table(DELTABLE, 0),
        in_table(NEWTABLE, NLM_F_CREATE),
    ];
    all.extend(CHAINS.iter().map(new_chain));
    for (id, set) in (1..).zip(&SETS) {
        all.push(new_set(set, id));
        all.extend(new_elements(set, &elements(set.part.of(transit), set.family)));
    }
    for (at, (family, job)) in RULES.into_iter().enumerate() {
        let flags = if at + 1 == RULES.len() { NLM_F_ACK } else { 0 };
        all.push(new_rule(family, job, flags));
    }
    all.push(batch(BATCH_END));
    all
}

/// A transaction that deletes the table.
pub fn remove() -> Vec<Message> {
    vec![batch(BATCH_BEGIN), in_table(DELTABLE, NLM_F_ACK), batch(BATCH_END)]
}

/// A number that is another one after every transaction of anybody's.
pub fn generation(netlink: &mut Netlink) -> Result<u32, Failed> {
    let answer = netlink.get(Message::new(GETGEN, 0, &[NFPROTO_UNSPEC, 0, 0, 0]))?;
    Ok(be32(answer.attrs(HEADER), GEN_ID).unwrap_or(0))
}

/// Stands for a table of ours that somebody changed: never wanted, so always repaired.
fn tampered() -> Transit {
    Transit::default()
}

/// The transit of the table that is there.
pub fn read(netlink: &mut Netlink) -> Result<Option<Transit>, Failed> {
    const ENOENT: i32 = nix::errno::Errno::ENOENT as i32;
    let table = match netlink.get(in_table(GETTABLE, 0)) {
        Ok(table) => table,
        Err(failed) if failed.errno == ENOENT => return Ok(None),
        Err(failed) => return Err(failed),
    };
    // A dormant one, for one.
    if be32(table.attrs(HEADER), TABLE_FLAGS) != Some(0) || !as_programmed(netlink)? {
        return Ok(Some(tampered()));
    }
    let mut found = [const { Vec::new() }; 3];
    for set in &SETS {
        let request = in_table(GETSETELEM, 0).attr_str(ELEMENTS_SET, set.name);
        let mut elements = Vec::new();
        for part in netlink.dump(request)? {
            let list = Attrs::of(part.attrs(HEADER).get(ELEMENTS).unwrap_or_default());
            elements.extend(list.filter_map(|(_, e)| element(Attrs::of(e))));
        }
        let Some(ranges) = from_elements(elements, set.family) else { return Ok(Some(tampered())) };
        found[set.part as usize].extend(ranges.into_iter().flat_map(|r| prefixes(r, set.family)));
    }
    let [own, near, far] = found.map(|prefixes: Vec<IpNet>| prefixes.into_iter().collect());
    Ok(Some(Transit { own, near, far }))
}

fn element(attrs: Attrs<'_>) -> Option<Element> {
    let key = Attrs::of(attrs.get(ELEMENT_KEY)?).get(DATA_VALUE)?;
    let mut bytes = [0; 16];
    bytes.get_mut(16usize.checked_sub(key.len())?..)?.copy_from_slice(key);
    let end = be32(attrs, ELEMENT_FLAGS).is_some_and(|flags| flags & ELEMENT_INTERVAL_END != 0);
    Some((u128::from_be_bytes(bytes), end))
}

/// True if chain, sets and rules are those that [`set`] makes, whatever is in the sets.
fn as_programmed(netlink: &mut Netlink) -> Result<bool, Failed> {
    // A kernel that does not filter by table tells of all tables.
    let mut ours = |kind| {
        let all = netlink.dump(in_table(kind, 0))?;
        let ours = |m: &Received| {
            m.payload.first() == Some(&NFPROTO_INET) && m.attrs(HEADER).str(OF_TABLE) == Some(TABLE)
        };
        Ok::<_, std::io::Error>(all.into_iter().filter(ours).collect::<Vec<_>>())
    };
    let chains = ours(GETCHAIN)?;
    let is = |m: &Received, chain: &Chain| {
        let attrs = m.attrs(HEADER);
        let hook = Attrs::of(attrs.get(CHAIN_HOOK).unwrap_or_default());
        attrs.str(CHAIN_NAME) == Some(chain.name)
            && attrs.str(CHAIN_TYPE) == Some(chain.kind)
            && be32(attrs, CHAIN_POLICY) == Some(NF_ACCEPT)
            && be32(hook, HOOK_NUMBER) == Some(chain.hook)
            && be32(hook, HOOK_PRIORITY) == Some(chain.priority as u32)
    };
    let sets = ours(GETSET)?;
    let set = |set: &Set| {
        sets.iter().map(|m| m.attrs(HEADER)).any(|attrs| {
            attrs.str(SET_NAME) == Some(set.name)
                && be32(attrs, SET_FLAGS) == Some(SET_FLAG_INTERVAL)
                && be32(attrs, SET_KEY_LEN) == Some(address_length(set.family) as u32)
        })
    };
    let rules = ours(GETRULE)?;
    let rules = rules.iter().map(|m| m.attrs(HEADER).get(RULE_USERDATA).map(<[u8]>::to_vec));
    let wanted = RULES.map(|(family, job)| Some(comment(family, job)));
    Ok(chains.len() == CHAINS.len()
        && CHAINS.iter().all(|chain| chains.iter().any(|m| is(m, chain)))
        && sets.len() == SETS.len()
        && SETS.iter().all(set)
        && rules.eq(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_of(of: &[&str]) -> Prefixes {
        of.iter().map(|p| p.parse::<IpNet>().unwrap()).collect()
    }

    #[test]
    fn what_is_written_as_elements_is_read_as_the_same_addresses() {
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
    fn elements_that_make_no_ranges_are_told() {
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
