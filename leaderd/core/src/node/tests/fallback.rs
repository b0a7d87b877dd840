//! Life without a quorum, and when it ends.

use super::*;

/// A node of the location that knows by a decision of a voter who leads it.
fn bench(me: &str, mesh: Mesh, leaders: &[u8]) -> Bench {
    let mut bench = Bench::of(me, mesh);
    let Frame::Announce { mut decision, proof, event } = announce(5, 0) else { unreachable!() };
    decision.leaders = leaders.iter().map(|s| Slot(*s)).collect();
    bench.frame("cloud-0", Frame::Announce { decision, proof, event });
    bench
}

/// These say hello, without a raft leader or with this one, for a while.
fn hear(bench: &mut Bench, nodes: &[&str], raft_leader: Option<&str>) {
    for _ in 0..40 {
        for node in nodes {
            bench.frame(node, hello(node, raft_leader));
        }
        bench.later(Duration::from_millis(500));
    }
}

fn chosen(bench: &Bench) -> Option<Vec<u8>> {
    let cloud = "cloud".parse().unwrap();
    let leaders = bench.node.effective_leaders(&cloud)?;
    bench.node.fallback.is_active(&cloud).then(|| leaders.iter().map(|s| s.0).collect())
}

#[test]
fn a_dead_leader_is_not_followed_again_when_the_quorum_is_back() {
    let mut bench = bench("member-0", mesh(3, 1, 0), &[0]);
    hear(&mut bench, &["cloud-1", "cloud-2"], None);
    assert_eq!(chosen(&bench), Some(vec![1]));
    hear(&mut bench, &["cloud-1", "cloud-2"], Some("cloud-2"));
    assert_eq!(chosen(&bench), Some(vec![1]), "nobody has heard the decided leader yet");
    hear(&mut bench, &["cloud-0", "cloud-1", "cloud-2"], Some("cloud-2"));
    assert_eq!(chosen(&bench), None, "it is alive");
}

#[test]
fn a_decision_newer_than_the_loss_ends_the_own_ranking() {
    let mut bench = bench("member-0", mesh(3, 1, 0), &[0]);
    hear(&mut bench, &["cloud-1", "cloud-2"], None);
    assert_eq!(chosen(&bench), Some(vec![1]));
    bench.frame("cloud-2", announce(6, 2));
    hear(&mut bench, &["cloud-1", "cloud-2"], Some("cloud-2"));
    assert_eq!(chosen(&bench), None);
}

#[test]
fn the_own_ranking_skips_drained_candidates() {
    let mut bench = bench("member-0", mesh(3, 1, 0), &[0]);
    let Frame::Hello(mut digest) = hello("cloud-0", Some("cloud-0")) else { unreachable!() };
    digest.digest = (0..3)
        .map(|slot| crate::status::CandidateStatus { drained: slot == 1, ..candidate(slot) })
        .collect();
    bench.frame("cloud-0", Frame::Hello(digest));
    hear(&mut bench, &["cloud-1", "cloud-2"], None);
    assert_eq!(chosen(&bench), Some(vec![2]));
    hear(&mut bench, &["cloud-1"], None);
    assert_eq!(chosen(&bench), Some(vec![1]), "for want of another");
}

#[test]
fn the_own_ranking_has_as_many_leaders_as_the_policy() {
    let mut mesh = mesh(3, 1, 0);
    mesh.edit().policy.leaders = 2;
    let mut bench = bench("member-0", mesh, &[0, 1]);
    hear(&mut bench, &["cloud-1", "cloud-2"], None);
    assert_eq!(chosen(&bench), Some(vec![1, 2]));
}

/// Relay pairs go around a dead relay there; a ranking of this node's own would only part the two ends.
#[test]
fn of_another_location_the_last_decision_stays_though_it_has_lost_its_quorum() {
    let mut bench = bench("home-0", mesh(3, 1, 0), &[2]);
    hear(&mut bench, &["cloud-0", "cloud-1"], None);
    assert_eq!(chosen(&bench), None);
    assert_eq!(bench.node.effective_leaders(&"cloud".parse().unwrap()), Some(vec![Slot(2)]));
}
