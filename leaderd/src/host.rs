//! Checks settings of this host that leaderd does not change and that break the mesh. Each finding is noted in the status and logged
//! once.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use leaderd_core::ids::NodeName;
use leaderd_core::io::Input;
use leaderd_core::mesh::{Mesh, Node};
use tokio::sync::{mpsc, watch};
use wgctl::net::{foreign_rules, read_sysctl};
use wgctl_plan::{InterfaceName, Rule};

use crate::lan::device_of;

/// Time between two checks. A changed mesh is checked at once.
const LOOK: Duration = Duration::from_secs(30);

/// The kernel's own rules for the tables `main` and `default` (ip-rule(8)).
const MAIN_PRIORITY: u32 = 32766;

/// `rp_filter`: drops packets that come back on another interface (RFC 3704, strict).
const STRICT: &str = "1";

/// Checks until the engine is gone.
pub async fn watch(
    me: NodeName,
    mut meshes: watch::Receiver<Arc<Mesh>>,
    inputs: mpsc::Sender<Input>,
) {
    let mut told: Vec<String> = Vec::new();
    loop {
        let mesh = meshes.borrow_and_update().clone();
        let name = me.clone();
        // Not here: the engine shares this thread.
        let looked = tokio::task::spawn_blocking(move || look(&mesh, &name)).await;
        let notes = looked.unwrap_or_default();
        if notes != told {
            for note in notes.iter().filter(|note| !told.contains(note)) {
                tracing::warn!(why = note, "a setting of this host is against the mesh");
            }
            told.clone_from(&notes);
            if inputs.send(Input::HostNotes { part: "host".into(), notes }).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            changed = meshes.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

fn look(mesh: &Mesh, me: &NodeName) -> Vec<String> {
    let Some(node) = mesh.node(me) else { return Vec::new() };
    let device = node.device.clone().or_else(|| device_of(node.address));
    let filter = |of: &str| read_sysctl(&format!("net/ipv4/conf/{of}/rp_filter")).ok();
    let mut notes = Vec::new();
    if let Some(device) = device {
        notes.extend(strict_filter(&device, filter("all"), filter(device.as_str())));
    }
    let rules = foreign_rules().unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot read the kernel's rules");
        Vec::new()
    });
    notes.extend(caught_by_rules(mesh, node, &rules));
    notes
}

/// The kernel takes the greater of `all` and the device's own (ip-sysctl: `rp_filter`): strict only where neither is loose (2).
fn strict_filter(
    device: &InterfaceName,
    all: Option<String>,
    own: Option<String>,
) -> Option<String> {
    let greatest = all.max(own)?;
    (greatest == STRICT).then(|| {
        format!(
            "rp_filter is strict on {device}: what comes from other locations by one way and goes back by another is dropped; set \
             net.ipv4.conf.{device}.rp_filter=2 (in /etc/sysctl.d)"
        )
    })
}

/// Finds rules of others that look packets of this node or its workloads up in another table before `main`, where leaderd's routes are.
/// (AWS VPC CNI has them for Pods on secondary interfaces.) Where leaderd's routes are in tables of their own, its rules come first.
fn caught_by_rules(mesh: &Mesh, me: &Node, rules: &[Rule]) -> Vec<String> {
    let ours_in_main = mesh.locations.get(&me.location).is_some_and(|l| !l.overlay.is_foreign());
    if !ours_in_main {
        return Vec::new();
    }
    let catches = |rule: &&Rule| {
        let Some(from) = rule.from else { return false };
        let before_main = rule.priority < MAIN_PRIORITY && !is_kernels_table(rule.table);
        before_main && (me.prefixes.iter().any(|p| overlap(p, &from)) || holds(&from, me.address))
    };
    let caught: Vec<&Rule> = rules.iter().filter(catches).collect();
    let Some(first) = caught.first() else { return Vec::new() };
    let more = match caught.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    vec![format!(
        "rules of others come before leaderd's routes for what this node sends (`ip rule`: {first}{more}): put nothing in table {} against other \
         locations, or use overlay `cni` or `external`, whose routes come before such rules",
        first.table
    )]
}

/// `local`, `main` and `default` (rt_tables).
const fn is_kernels_table(table: u32) -> bool {
    matches!(table, 253..=255)
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn holds(net: &IpNet, address: IpAddr) -> bool {
    net.prefix_len() > 0 && net.contains(&address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::example_mesh;
    use leaderd_core::mesh::Overlay;
    use wgctl_plan::Family;

    #[test]
    fn a_filter_is_strict_if_neither_setting_is_loose() {
        let device: InterfaceName = "eth0".parse().unwrap();
        for (all, own, strict) in [
            ("0", "0", false),
            ("1", "0", true),
            ("0", "1", true),
            ("1", "1", true),
            ("2", "1", false),
            ("1", "2", false),
        ] {
            let note = strict_filter(&device, Some(all.into()), Some(own.into()));
            assert_eq!(note.is_some(), strict, "{all} {own}");
            assert!(note.is_none_or(|n| n.contains("net.ipv4.conf.eth0.rp_filter=2")));
        }
        assert_eq!(strict_filter(&device, None, None), None);
    }

    #[test]
    fn rules_before_main_that_catch_what_this_node_sends_are_told_where_our_routes_are_in_main() {
        let mut mesh = example_mesh();
        let me = mesh.nodes.values().find(|n| !n.prefixes.is_empty()).unwrap().clone();
        let inside: IpNet = IpNet::from(me.prefixes[0].hosts().next().unwrap());
        let rule = |priority, from: Option<IpNet>, table| Rule {
            family: Family::V4,
            priority,
            from,
            to: None,
            iif: None,
            table,
        };
        let elsewhere = "198.18.0.0/24".parse().unwrap();
        let rules = [
            rule(0, None, 255),
            rule(512, Some(inside), 254),
            rule(1000, Some(elsewhere), 9),
            rule(1536, Some(inside), 2),
            rule(1537, Some(IpNet::from(me.address)), 3),
            rule(40_000, Some(inside), 2),
        ];
        let site = mesh.edit().locations.get_mut(&me.location).unwrap();
        site.overlay = Overlay::Direct;
        let notes = caught_by_rules(&mesh, &me, &rules);
        assert_eq!(notes.len(), 1);
        assert!(
            notes[0].contains("1536: IPv4 from") && notes[0].contains("and 1 more"),
            "{notes:?}"
        );
        assert!(caught_by_rules(&mesh, &me, &rules[..3]).is_empty());
        mesh.edit().locations.get_mut(&me.location).unwrap().overlay = Overlay::External;
        assert!(caught_by_rules(&mesh, &me, &rules).is_empty(), "our rule comes before theirs");
    }
}
