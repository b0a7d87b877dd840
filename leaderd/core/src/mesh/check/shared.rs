//! What the checks share.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::diagnostic::Sink;
use super::super::draft::DraftNode;
use super::super::node::Host;
use super::super::reader::At;
use crate::ids::NodeName;

/// Complains about every value that occurred before, naming the line where.
pub(super) struct Once<K> {
    seen: BTreeMap<K, (usize, String)>,
}

impl<K: Ord> Once<K> {
    pub(super) fn new() -> Self {
        Self { seen: BTreeMap::new() }
    }

    /// `what` says what the value is, `who` whose.
    pub(super) fn see(
        &mut self,
        key: K,
        at: usize,
        what: &str,
        who: &str,
        help: &str,
        sink: &mut Sink<'_>,
    ) {
        match self.seen.get(&key) {
            Some((first, other)) => {
                let message =
                    format!("{what} of {who} is taken by {other} (line {})", sink.line(*first));
                sink.push(at, message, help);
            }
            None => {
                self.seen.insert(key, (at, who.to_owned()));
            }
        }
    }
}

/// By place in the file, so that the second of two equals is the one complained about.
pub(super) fn in_order<K, V>(map: &BTreeMap<K, At<V>>) -> Vec<(&K, &At<V>)> {
    let mut all: Vec<_> = map.iter().collect();
    all.sort_by_key(|(_, v)| v.at);
    all
}

/// The host of an endpoint, when it is an address.
pub(super) fn endpoint_ip(node: &DraftNode) -> Option<At<IpAddr>> {
    match node.endpoint.as_ref()? {
        At { value: Host::Ip(ip), at } => Some(At { value: *ip, at: *at }),
        At { value: Host::Name(_), .. } => None,
    }
}

/// Whose prefix it is, for messages.
pub(super) fn owner(name: &NodeName) -> String {
    format!("node {name}")
}
