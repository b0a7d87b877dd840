//! Disks that hang: a raft leader that can write nothing can decide nothing, and must not keep the others from it.

use super::cluster::{Cluster, mesh, name};
use crate::admin::AdminRequest;
use crate::ids::NodeName;

/// Three candidates; gives the raft leader too, which is not the location leader.
fn settled(seed: u64) -> (Cluster, NodeName) {
    let c = Cluster::settled(mesh(3, 0, 0), seed);
    let raft_leader = c.raft_leader().unwrap();
    assert_ne!(raft_leader, name("cloud-0"));
    (c, raft_leader)
}

/// Has something written down.
fn drain(c: &mut Cluster, node: &NodeName) {
    c.ask(&AdminRequest::Drain { node: node.clone() });
}

#[test]
fn a_raft_leader_whose_disk_hangs_hands_over_and_the_rest_decide() {
    let (mut c, stuck) = settled(41);
    c.hung.entry(stuck.clone()).or_default();
    c.run(10_000);
    assert_eq!(c.raft_leader().as_ref(), Some(&stuck), "nothing was to be written");
    drain(&mut c, &stuck);
    c.until(5000, "hand-over", |c| c.raft_leader().is_some_and(|n| n != stuck));
    let other = c.raft_leader().unwrap();
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    let slot = c.mesh.nodes[&other].slot.unwrap().0;
    c.until(5000, "failover", |c| c.leaders()[&name("cloud-0")].1 == [slot]);
}

#[test]
fn a_disk_that_hangs_after_it_took_one_of_several_writes_is_noticed() {
    let (mut c, stuck) = settled(42);
    c.hung.entry(stuck.clone()).or_default();
    drain(&mut c, &stuck);
    c.run(50);
    assert!(c.hung[&stuck].len() >= 2, "{}", c.hung[&stuck].len());
    c.write_one(&stuck);
    c.until(5000, "hand-over", |c| c.raft_leader().is_some_and(|n| n != stuck));
}

#[test]
fn a_disk_that_is_slow_but_goes_on_hands_nothing_over() {
    let (mut c, slow) = settled(43);
    c.hung.entry(slow.clone()).or_default();
    drain(&mut c, &slow);
    let mut written = 0;
    for _ in 0..20 {
        c.run(1500);
        written += u32::from(c.write_one(&slow));
        assert_eq!(c.raft_leader().as_ref(), Some(&slow));
    }
    assert!(written >= 2, "{written}");
}

/// Its vote for itself is written, and nothing after. It applies nothing of its term, so it is no settled leader.
#[test]
fn a_node_whose_disk_hangs_while_it_becomes_raft_leader_hands_over() {
    let (mut c, before) = settled(44);
    let all = ["cloud-1", "cloud-2"].map(name);
    let stuck = all.into_iter().find(|n| *n != before).unwrap();
    c.hung.entry(stuck.clone()).or_default();
    let (now, id) = (c.now(), crate::group::id_of(&c.mesh, &stuck));
    let group = c.groups.get_mut(&before).unwrap();
    assert!(group.raft.transfer(id));
    group.handle_timeout(now);
    for _ in 0..5000 {
        c.run(1);
        if c.raft_leader().as_ref() == Some(&stuck) {
            break;
        }
        c.write_one(&stuck);
    }
    assert_eq!(c.raft_leader().as_ref(), Some(&stuck));
    c.until(8000, "hand-over", |c| c.raft_leader().is_some_and(|n| n != stuck));
}
