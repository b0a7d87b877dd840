//! Decisions that carry a proof, and those that carry none: who can make, raise or replay one.

use super::*;
use crate::capability::{Capabilities, Capability};
use crate::io::StoredGroup;
use crate::mesh::ProofPolicy;
use crate::proof::tests::{of_signed, proof, sign, with_keys};
use crate::proof::{Proof, VoterSet};

const MAJORITY: [&str; 2] = ["cloud-0", "cloud-2"];

fn cloud() -> LocationName {
    "cloud".parse().unwrap()
}

fn decision(epoch: u64, slot: u8) -> Decision {
    Decision {
        location: cloud(),
        epoch: Epoch(epoch),
        leaders: vec![Slot(slot)],
        cause: Fault::NewFlow.into(),
        at: WallTime(0),
    }
}

fn signed_mesh() -> Mesh {
    with_keys(mesh(3, 1, 0))
}

fn known(bench: &Bench) -> (u64, u8) {
    let known = bench.node.decision(&cloud());
    known.map_or((0, 0), |d| (d.epoch.0, d.leaders[0].0))
}

fn say(bench: &mut Bench, from: &str, decision: &Decision, proof: Proof) -> Vec<Effect> {
    bench.frame(from, Frame::Announce { decision: decision.clone(), proof, event: None })
}

/// A decision signed by these voters, from any node.
fn proved(bench: &mut Bench, from: &str, epoch: u64, slot: u8, who: &[&str]) -> (u64, u8) {
    let decision = decision(epoch, slot);
    let proof = proof(&bench.node.mesh.clone(), &decision, who);
    say(bench, from, &decision, proof);
    known(bench)
}

fn signing(node: &str, signs: bool) -> Frame {
    let Frame::Hello(mut hello) = hello(node, None) else { unreachable!() };
    if signs {
        hello.capabilities = Capabilities::OURS.with(Capability::Proofs);
    }
    Frame::Hello(hello)
}

#[test]
fn a_proof_is_believed_from_any_node_and_an_incomplete_one_from_none() {
    let mut bench = Bench::of("home-0", signed_mesh());
    assert_eq!(proved(&mut bench, "home-2", 5, 1, &MAJORITY), (5, 1));
    assert_eq!(proved(&mut bench, "member-0", 6, 2, &MAJORITY), (6, 2));
    for (from, who) in [
        ("cloud-0", &[][..]),
        ("cloud-0", &["cloud-0"]),
        ("cloud-1", &["cloud-1", "cloud-1"]),
        ("home-1", &["home-0", "home-1", "home-2"]),
        ("member-0", &["member-0", "cloud-0"]),
    ] {
        assert_eq!(proved(&mut bench, from, 7, 0, who), (6, 2), "{from} with {who:?}");
    }
    assert_eq!(bench.counted("ignored.decision-without-a-proof"), 3);
    assert_eq!(proved(&mut bench, "cloud-1", 5, 1, &MAJORITY), (6, 2), "replayed");
    // Signatures of a lower epoch under a higher one, and of another location.
    let stolen = proof(&bench.node.mesh.clone(), &decision(6, 2), &MAJORITY);
    say(&mut bench, "cloud-0", &decision(9, 2), stolen.clone());
    let home = Decision { location: "home".parse().unwrap(), ..decision(9, 2) };
    say(&mut bench, "cloud-0", &home, stolen);
    assert_eq!(known(&bench), (6, 2));
    assert!(bench.node.decision(&home.location).is_none());
    // A proved epoch may be far ahead: most voters say so.
    assert_eq!(proved(&mut bench, "cloud-1", 1 << 40, 1, &MAJORITY), (1 << 40, 1));
}

#[test]
fn until_most_voters_are_known_to_sign_decisions_count_as_before() {
    let mut bench = Bench::of("home-0", signed_mesh());
    let tell = |bench: &mut Bench, epoch| {
        say(bench, "cloud-0", &decision(epoch, 1), Proof::default());
        known(bench).0
    };
    assert_eq!(tell(&mut bench, 1), 1);
    let note = |bench: &Bench| {
        let status = bench.node.status(bench.now);
        status.locations[0].notes.iter().find(|n| n.contains("not proved")).cloned()
    };
    assert!(note(&bench).unwrap().contains("0 of 3 voters"), "{:?}", note(&bench));
    bench.frame("cloud-0", signing("cloud-0", true));
    bench.frame("cloud-1", signing("cloud-1", false));
    assert_eq!(tell(&mut bench, 2), 2);
    bench.frame("cloud-2", signing("cloud-2", true));
    assert_eq!(tell(&mut bench, 3), 2, "most are known to sign");
    assert_eq!(bench.counted("ignored.decision-without-a-proof"), 1);
    assert_eq!(proved(&mut bench, "cloud-0", 3, 0, &MAJORITY), (3, 0));
    assert_eq!(note(&bench), None);
    // A step back of most voters is a step back of the location.
    bench.frame("cloud-2", signing("cloud-2", false));
    assert_eq!(tell(&mut bench, 4), 4);
}

#[test]
fn a_location_that_has_proved_a_decision_is_held_to_it_while_no_node_is_heard() {
    let mut bench = Bench::of("home-0", signed_mesh());
    assert_eq!(proved(&mut bench, "cloud-0", 5, 1, &MAJORITY), (5, 1));
    say(&mut bench, "cloud-0", &decision(6, 0), Proof::default());
    assert_eq!(known(&bench), (5, 1));
    // Also after a restart: the proof is in the store.
    let stored = bench.node.decisions.stored(&cloud());
    let restored = StoredGroup { decision: stored, ..StoredGroup::default() };
    let mut again = Bench::with_disk("home-0", signed_mesh(), [(cloud(), restored)].into());
    assert_eq!(known(&again), (5, 1));
    say(&mut again, "cloud-0", &decision(6, 0), Proof::default());
    assert_eq!(known(&again), (5, 1));
}

#[test]
fn at_a_restart_a_decision_that_was_proved_goes_before_one_that_is_only_committed() {
    use protobuf::Message as _;
    let mesh = signed_mesh();
    let mut snapshot = raft::eraftpb::Snapshot::default();
    let mut state = crate::state::LocationState::new(cloud());
    state.decision = Some(decision(2, 1));
    snapshot.data = state.encode().into();
    let meta = snapshot.mut_metadata();
    (meta.index, meta.term) = (5, 1);
    meta.mut_conf_state().voters = vec![1, 2, 3];
    let snapshot = Some((5, snapshot.write_to_bytes().unwrap()));
    let started = |row: Option<(Decision, Proof)>| {
        let decision = row.map(|row| postcard::to_allocvec(&row).unwrap());
        let stored = StoredGroup { snapshot: snapshot.clone(), decision, ..StoredGroup::default() };
        known(&Bench::with_disk("cloud-0", mesh.clone(), [(cloud(), stored)].into()))
    };
    let d = decision(1, 0);
    assert_eq!(started(Some((d.clone(), proof(&mesh, &d, &MAJORITY)))), (1, 0));
    // From before proofs, a restart changes no route.
    assert_eq!(started(Some((d, Proof::default()))), (2, 1));
    assert_eq!(started(None), (2, 1));
}

#[test]
fn where_proofs_are_required_nothing_else_is_believed_from_the_start() {
    let mesh = signed_mesh().with(|m| m.proof = ProofPolicy::Require);
    let mut bench = Bench::of("home-0", mesh);
    say(&mut bench, "cloud-0", &decision(6, 0), Proof::default());
    assert_eq!(known(&bench), (0, 0));
    assert_eq!(proved(&mut bench, "cloud-0", 1, 1, &MAJORITY), (1, 1));
}

#[test]
fn the_first_proof_replaces_a_made_up_epoch_that_was_believed_before() {
    let mut bench = Bench::of("home-0", signed_mesh());
    say(&mut bench, "cloud-1", &decision(1 << 31, 1), Proof::default());
    assert_eq!(known(&bench), (1 << 31, 1));
    for node in ["cloud-0", "cloud-2"] {
        bench.frame(node, signing(node, true));
    }
    assert_eq!(proved(&mut bench, "cloud-0", 3, 0, &MAJORITY), (3, 0));
}

#[test]
fn a_location_that_has_lost_its_stores_is_shown_what_it_had_proved() {
    let mut bench = Bench::of("home-0", signed_mesh());
    proved(&mut bench, "cloud-0", 9, 1, &MAJORITY);
    let shown = |effects: Vec<Effect>| {
        effects.into_iter().find_map(|e| match e {
            Effect::SendFrame { to, frame } => match *frame {
                Frame::Announce { decision, proof, .. } => Some((to, decision.epoch.0, proof)),
                _ => None,
            },
            _ => None,
        })
    };
    let (to, epoch, proof) = shown(bench.frame("cloud-2", signing("cloud-2", true))).unwrap();
    assert_eq!((to, epoch), (name("cloud-2"), 9));
    assert!(shown(bench.frame("member-0", signing("member-0", true))).is_none(), "no voter");

    // The voter with an empty store counts on from there, and made-up claims count for nothing.
    let mut voter = Bench::of("cloud-2", signed_mesh());
    for node in ["cloud-0", "cloud-1"] {
        voter.frame(node, signing(node, true));
    }
    voter.later(Duration::from_secs(2));
    let Frame::Report(mut claim) = report(&[Verdict::Forwarding]) else { unreachable!() };
    claim.epoch = Epoch(1000);
    voter.frame("home-1", Frame::Report(claim));
    let next = |voter: &Bench| voter.node.groups[&cloud()].next_epoch().0;
    assert_eq!(next(&voter), 1);
    say(&mut voter, "home-0", &decision(9, 1), proof);
    assert_eq!(next(&voter), 10);
    assert_eq!(known(&voter), (9, 1));
}

#[test]
fn signatures_by_the_voters_before_a_change_are_believed_until_the_next() {
    let mut bench = Bench::of("home-0", signed_mesh());
    let d = decision(7, 1);
    let before = proof(&bench.node.mesh.clone(), &d, &MAJORITY);
    let with = |candidates: u8, generation: u64| {
        with_keys(mesh(candidates, 1, 0)).with(|m| m.generation.0 = generation)
    };
    bench.feed(Input::MeshChanged(Box::new(with(4, 2))));
    say(&mut bench, "cloud-0", &d, before);
    assert_eq!(known(&bench), (7, 1));
    let d = decision(8, 0);
    let first = proof(&signed_mesh(), &d, &MAJORITY);
    bench.feed(Input::MeshChanged(Box::new(with(5, 3))));
    say(&mut bench, "cloud-0", &d, first);
    assert_eq!(known(&bench), (7, 1), "two files behind");
    let present = proof(&bench.node.mesh.clone(), &d, &["cloud-1", "cloud-3", "cloud-4"]);
    say(&mut bench, "cloud-0", &d, present);
    assert_eq!(known(&bench), (8, 0));
}

#[test]
fn a_proof_by_the_present_voters_takes_the_place_of_one_by_those_before_and_only_what_counts_is_kept()
 {
    let mut bench = Bench::of("home-0", signed_mesh());
    let d = decision(7, 1);
    let before = VoterSet::of(&bench.node.mesh, &cloud());
    proved(&mut bench, "cloud-0", 7, 1, &MAJORITY);
    let mesh = with_keys(mesh(4, 1, 0)).with(|m| m.generation.0 = 2);
    bench.feed(Input::MeshChanged(Box::new(mesh)));
    let after = VoterSet::of(&bench.node.mesh, &cloud());
    let kept = |bench: &Bench| {
        let proof = bench.node.proof(&cloud()).unwrap();
        (proof.is_of(&before), proof.is_of(&after), proof.len())
    };
    assert_eq!(kept(&bench), (true, false, 2));
    // A majority by name only: one of the signatures is of something else.
    let mut forged = sign(&decision(8, 1), &after, &["cloud-3"]);
    forged.extend(sign(&d, &after, &MAJORITY));
    say(&mut bench, "cloud-1", &d, of_signed(forged.clone()));
    assert_eq!(kept(&bench), (true, false, 2));
    forged.extend(sign(&d, &after, &["cloud-1"]));
    say(&mut bench, "cloud-1", &d, of_signed(forged));
    assert_eq!(kept(&bench), (false, true, 3));
    assert_eq!(known(&bench), (7, 1));
}

#[test]
fn a_node_whose_key_is_another_than_the_mesh_file_names_does_not_say_that_it_signs() {
    let signs = |key: &str| {
        let mut bench = Bench::of("cloud-0", signed_mesh());
        let asked = |effects: Vec<Effect>| {
            effects.into_iter().find_map(|e| match e {
                Effect::Sign { id, statement } => Some((id, statement)),
                _ => None,
            })
        };
        bench.node.check_own_key();
        let (id, statement) = asked(bench.effects()).unwrap();
        let signature = crate::proof::tests::signer(&name(key)).sign(&statement);
        bench.feed(Input::Signed { id, signature });
        bench.node.capabilities().has(Capability::Proofs)
    };
    assert!(signs("cloud-0"));
    assert!(!signs("cloud-1"));
}

#[test]
fn signatures_in_another_voters_name_or_of_no_voter_are_ignored() {
    let mut bench = Bench::of("cloud-0", signed_mesh());
    let d = decision(1, 1);
    let set = crate::proof::VoterSet::of(&bench.node.mesh, &cloud());
    for (from, voter) in [("cloud-1", "cloud-2"), ("member-0", "member-0"), ("home-1", "cloud-1")] {
        let signatures = crate::proof::tests::sign(&d, &set, &[voter]);
        bench.frame(from, Frame::Signed { location: cloud(), epoch: d.epoch, signatures });
    }
    assert_eq!(bench.counted("ignored.signature-of-no-voter"), 3);
}
