//! The table as messages to the kernel.

use wgctl_plan::{Family, Transit};

use super::super::netlink::*;
use super::*;

/// Expressions of a rule, one after another; all use one register.
pub(super) struct Rule(Message);

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

    pub(super) fn expression(self, name: &str, data: impl FnOnce(Message) -> Message) -> Self {
        Self(self.0.nested(LIST_ELEMENT, |m| {
            m.attr_str(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, data)
        }))
    }

    pub(super) fn compare(self, op: u32, value: &[u8]) -> Self {
        self.expression("cmp", |m| {
            m.be32(Self::CMP_SREG, Self::REGISTER)
                .be32(Self::CMP_OP, op)
                .nested(Self::CMP_DATA, |d| d.attr(DATA_VALUE, value))
        })
    }

    pub(super) fn of_family(self, family: Family) -> Self {
        let number = nfproto(family);
        self.expression("meta", |m| {
            m.be32(Self::META_DREG, Self::REGISTER).be32(Self::META_KEY, Self::META_NFPROTO)
        })
        .compare(Self::CMP_EQ, &[number])
    }

    /// Loads the source or the destination address.
    pub(super) fn load(self, family: Family, end: End) -> Self {
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

    pub(super) fn lookup(self, family: Family, part: Part, flags: u32) -> Self {
        let set = SETS.iter().find(|s| s.family == family && s.part == part);
        let set = set.expect("there is a set of every part and family");
        self.expression("lookup", |m| {
            m.attr_str(Self::LOOKUP_SET, set.name)
                .be32(Self::LOOKUP_SREG, Self::REGISTER)
                .be32(Self::LOOKUP_FLAGS, flags)
        })
    }

    pub(super) fn unless_for_this_node(self) -> Self {
        self.expression("fib", |m| {
            m.be32(Self::FIB_DREG, Self::REGISTER)
                .be32(Self::FIB_RESULT, Self::FIB_ADDRESS_TYPE)
                .be32(Self::FIB_FLAGS, Self::FIB_DESTINATION)
        })
        .compare(Self::CMP_NEQ, &Self::RTN_LOCAL.to_ne_bytes())
    }

    pub(super) fn notrack(self) -> Self {
        Self(self.0.nested(LIST_ELEMENT, |m| m.attr_str(EXPRESSION_NAME, "notrack")))
    }

    /// Source NAT to the address that was loaded last.
    pub(super) fn snat_to_loaded(self, family: Family) -> Self {
        self.expression("nat", |m| {
            m.be32(Self::NAT_TYPE, Self::NAT_SNAT)
                .be32(Self::NAT_FAMILY, nfproto(family).into())
                .be32(Self::NAT_REG_ADDR_MIN, Self::REGISTER)
        })
    }
}

pub(super) const fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum End {
    Source,
    Destination,
}

/// What a rule does to packets of a family.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Job {
    /// Transit whose near side is at this end of the packet is not tracked.
    Untrack { near: End },
    /// What the node's own workload sends to the far side keeps its source.
    KeepSource,
}

/// In the order of [`CHAINS`].
pub(super) const RULES: [(Family, Job); 6] = [
    (Family::V4, Job::Untrack { near: End::Source }),
    (Family::V4, Job::Untrack { near: End::Destination }),
    (Family::V6, Job::Untrack { near: End::Source }),
    (Family::V6, Job::Untrack { near: End::Destination }),
    (Family::V4, Job::KeepSource),
    (Family::V6, Job::KeepSource),
];

impl Job {
    pub(super) const fn chain(self) -> Chain {
        match self {
            Self::Untrack { .. } => PREROUTING,
            Self::KeepSource => POSTROUTING,
        }
    }
}

pub(super) fn expressions(family: Family, job: Job, list: Message) -> Message {
    let rule = Rule(list).of_family(family);
    // The cheapest first: most packets of a node are not to or from a far prefix.
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

/// Returns a comment with a hash of the rule: kernels of different versions dump a rule differently, but keep its comment. A rule of
/// another program has none or a different one.
pub(super) fn comment(family: Family, job: Job) -> Vec<u8> {
    let bytes = expressions(family, job, Message::new(0, 0, &[])).into_bytes();
    // FNV-1a.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let text = format!("leaderd {hash:016x}\0");
    // Type 0 is a comment, in nft's format.
    [&[0, text.len() as u8], text.as_bytes()].concat()
}

pub(super) fn new_rule(family: Family, job: Job, flags: u16) -> Message {
    in_table(NEWRULE, NLM_F_CREATE | NLM_F_APPEND | flags)
        .attr_str(RULE_CHAIN, job.chain().name)
        .nested(RULE_EXPRESSIONS, |list| expressions(family, job, list))
        .attr(RULE_USERDATA, &comment(family, job))
}

pub(super) fn new_chain(chain: &Chain) -> Message {
    in_table(NEWCHAIN, NLM_F_CREATE)
        .attr_str(CHAIN_NAME, chain.name)
        .nested(CHAIN_HOOK, |h| {
            h.be32(HOOK_NUMBER, chain.hook).attr(HOOK_PRIORITY, &chain.priority.to_be_bytes())
        })
        .be32(CHAIN_POLICY, NF_ACCEPT)
        .attr_str(CHAIN_TYPE, chain.kind)
}

/// Returns a transaction that replaces the table, if any, with one for this transit.
pub fn set(transit: &Transit) -> Vec<Message> {
    let mut all = vec![
        batch(BATCH_BEGIN),
        // Adds it first: to delete a table that does not exist is an error.
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

/// Returns a transaction that deletes the table.
pub fn remove() -> Vec<Message> {
    vec![batch(BATCH_BEGIN), in_table(DELTABLE, NLM_F_ACK), batch(BATCH_END)]
}
