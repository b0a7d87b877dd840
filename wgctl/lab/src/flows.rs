//! The chain behind the fault `vxlan-new-flows`: who is a new flow, and what happens to it.

use std::fmt::Write as _;

/// Mark of VXLAN flows seen before the fault.
const SEEN: u32 = 0x489;
/// A flow is an established one once it has sent this many packets. Probes and meter packets of new flows send one,
/// and those whose 16-bit outer source port collides within [`world`](crate::world)'s 4 s timeout hardly ever get so far.
const ESTABLISHED_AFTER: u32 = 3;

/// The VXLAN ports of a node, and whether packets of others are to be tracked there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flows {
    pub ports: Vec<u16>,
    /// Source NAT of a CNI, and relays with state, need conntrack for everything; else only what is watched here is tracked.
    pub tracked: bool,
}

fn set(ports: &[u16]) -> String {
    let all: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!("{{ {} }}", all.join(", "))
}

impl Flows {
    /// While the fault is off (`dying` is empty) it marks the flows that have sent several packets; when it is on, what has no mark is
    /// dropped on the dying ports. Outer VXLAN flows are one-way and never get established for conntrack, so its states cannot tell
    /// them apart. ICMP passes always, as in the report.
    pub fn chain(&self, dying: &[u16]) -> String {
        let all = set(&self.ports);
        let mut out = String::from(
            "add table inet lab_flows\nflush table inet lab_flows\ntable inet lab_flows {\n",
        );
        let (incoming, outgoing) = if self.tracked {
            // Outer packets end here: no NAT of anybody's is about them.
            (format!("iifname \"eth0\" udp dport {all} notrack"), String::new())
        } else {
            let rest = format!("udp dport != {all} notrack\n  meta l4proto != udp notrack");
            ("notrack".to_owned(), rest)
        };
        let _ = write!(
            out,
            " chain untracked_in {{\n  type filter hook prerouting priority raw;\n  {incoming}\n }}\n \
             chain untracked_out {{\n  type filter hook output priority raw;\n  {outgoing}\n }}\n \
             chain out {{\n  type filter hook output priority 0;\n"
        );
        // Bits after the UDP header: VXLAN 64, Ethernet 112 (type at 96), IPv4 protocol at +72, IPv6 next header at +48.
        for icmp in ["@th,224,16 0x0800 @th,312,8 1", "@th,224,16 0x86dd @th,288,8 58"] {
            let _ = writeln!(out, "  udp dport {all} {icmp} accept");
        }
        if dying.is_empty() {
            let old = format!("ct original packets >= {ESTABLISHED_AFTER}");
            let _ = writeln!(out, "  udp dport {all} {old} ct mark set {SEEN}");
        } else {
            let _ = writeln!(out, "  udp dport {} ct mark != {SEEN} drop", set(dying));
        }
        out.push_str(" }\n}\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_marked_on_all_ports_and_dropped_on_those_that_die() {
        let flows = Flows { ports: vec![4790, 8472], tracked: true };
        let calm = flows.chain(&[]);
        assert!(calm.contains("udp dport { 4790, 8472 } ct original packets >= 3 ct mark set"));
        assert!(!calm.contains("drop"));
        let broken = flows.chain(&[8472]);
        assert!(broken.contains("udp dport { 8472 } ct mark != 1161 drop"));
    }

    #[test]
    fn where_something_needs_conntrack_packets_are_tracked() {
        let chain = |tracked| Flows { ports: vec![4790], tracked }.chain(&[]);
        assert!(chain(false).contains("\n  notrack\n"));
        assert!(!chain(true).contains("\n  notrack\n"));
    }
}
