//! What is signed, byte for byte, and what is a proof.

use super::*;
use crate::fault::Fault;
use crate::group::tests::cluster::{mesh, name};
use crate::ids::{Epoch, Slot};
use crate::time::WallTime;

/// The control key of a node in tests.
pub(crate) fn signer(node: &NodeName) -> Signer {
    let mut seed = [0; 32];
    seed[..node.as_str().len()].copy_from_slice(node.as_str().as_bytes());
    Signer::new(&seed)
}

fn signed_mesh(candidates: u8) -> Mesh {
    with_keys(mesh(candidates, 0, 0))
}

pub(crate) fn with_keys(mut mesh: Mesh) -> Mesh {
    for node in mesh.edit().nodes.values_mut() {
        node.control_key = signer(&node.name).public();
    }
    mesh
}

fn decision(epoch: u64, leaders: &[u8]) -> Decision {
    Decision {
        location: "cloud".parse().unwrap(),
        epoch: Epoch(epoch),
        leaders: leaders.iter().map(|s| Slot(*s)).collect(),
        cause: Fault::NewFlow.into(),
        at: WallTime(0),
    }
}

fn set(mesh: &Mesh) -> VoterSet {
    VoterSet::of(mesh, &"cloud".parse().unwrap())
}

pub(crate) fn proof(mesh: &Mesh, decision: &Decision, who: &[&str]) -> Proof {
    Proof(sign(decision, &VoterSet::of(mesh, &decision.location), who))
}

pub(crate) fn of_signed(signed: Vec<Signed>) -> Proof {
    Proof(signed)
}

pub(crate) fn sign(decision: &Decision, set: &VoterSet, who: &[&str]) -> Vec<Signed> {
    let one = |who: &&str| {
        let statement = Statement::decision("test", decision, set);
        Signed { voter: name(who), set: set.id(), signature: signer(&name(who)).sign(&statement) }
    };
    who.iter().map(one).collect()
}

fn is_proof(signed: &[Signed], decision: &Decision, set: &VoterSet) -> bool {
    Proof(signed.to_vec()).checked("test", decision, &[set]).is_some()
}

#[test]
fn what_is_signed_stays_as_it_is_byte_for_byte() {
    let mesh = signed_mesh(3);
    let statement = Statement::decision("test", &decision(300, &[1, 0]), &set(&mesh));
    let hex: String = statement.0.iter().map(|b| format!("{b:02x}")).collect();
    insta::assert_snapshot!(hex);
    let signature = signer(&name("cloud-0")).sign(&statement);
    let hex: String =
        [signature.0, signature.1].concat().iter().map(|b| format!("{b:02x}")).collect();
    insta::assert_snapshot!("signature", hex);
}

#[test]
fn a_majority_of_the_voters_is_a_proof_and_nothing_less() {
    let (mesh, d) = (signed_mesh(3), decision(7, &[1]));
    let set = set(&mesh);
    let two = sign(&d, &set, &["cloud-0", "cloud-2"]);
    assert!(is_proof(&two, &d, &set));
    assert!(!is_proof(&[], &d, &set) && !is_proof(&two[..1], &d, &set));
    let twice = sign(&d, &set, &["cloud-0", "cloud-0", "cloud-0"]);
    assert!(!is_proof(&twice, &d, &set), "one voter counts once");
    let strangers = sign(&d, &set, &["home-0", "home-1", "cloud-0"]);
    assert!(!is_proof(&strangers, &d, &set), "who has no vote does not count");
}

#[test]
fn a_proof_is_of_one_decision_of_one_mesh_and_one_set_of_voters() {
    let (mesh, d) = (signed_mesh(3), decision(7, &[1]));
    let voters = set(&mesh);
    let two = sign(&d, &voters, &["cloud-0", "cloud-2"]);
    for other in [decision(8, &[1]), decision(7, &[0]), decision(7, &[1, 0]), decision(7, &[])] {
        assert!(!is_proof(&two, &other, &voters), "{other:?}");
    }
    let elsewhere = Decision { location: "home".parse().unwrap(), ..d.clone() };
    assert!(!is_proof(&two, &elsewhere, &voters));
    assert!(Proof(two.clone()).checked("another", &d, &[&voters]).is_none());
    // Another vote, or another key: what was signed for the set before proves nothing in the new one.
    let more = set(&signed_mesh(4));
    let renamed: Vec<Signed> = two.iter().map(|s| Signed { set: more.id(), ..s.clone() }).collect();
    assert!(!is_proof(&two, &d, &more) && !is_proof(&renamed, &d, &more));
    assert!(Proof(two.clone()).checked("test", &d, &[&more, &voters]).is_some(), "the file before");
    let mut rekeyed = mesh.clone();
    rekeyed.edit().nodes.get_mut(&name("cloud-1")).unwrap().control_key = ControlPublicKey([9; 32]);
    assert!(!is_proof(&two, &d, &set(&rekeyed)));
}

#[test]
fn wrong_signatures_in_a_voters_name_do_not_hide_its_own() {
    let (mesh, d) = (signed_mesh(3), decision(7, &[1]));
    let set = set(&mesh);
    let mut all = sign(&decision(6, &[0]), &set, &["cloud-0", "cloud-2"]);
    assert!(!is_proof(&all, &d, &set));
    all.extend(sign(&d, &set, &["cloud-0", "cloud-2"]));
    let proof = Proof::of("test", &d, &[&set], all.iter()).unwrap();
    assert_eq!(proof.0.len(), 2, "only what counts is kept");
}

#[test]
fn a_proof_has_a_bounded_number_of_signatures() {
    let (mesh, d) = (signed_mesh(3), decision(7, &[1]));
    let set = set(&mesh);
    let mut all = vec![sign(&decision(6, &[0]), &set, &["cloud-0"])[0].clone(); MAX_SIGNATURES];
    all.extend(sign(&d, &set, &["cloud-0", "cloud-2"]));
    assert!(!is_proof(&all, &d, &set), "what comes behind so many is not looked at");
}

#[test]
fn a_proof_by_the_voters_before_a_change_is_none_by_those_after_it_though_some_of_them_have_signed()
{
    let d = decision(7, &[1]);
    let (before, after) = (set(&signed_mesh(3)), set(&signed_mesh(4)));
    let mut all = sign(&d, &before, &["cloud-0", "cloud-1"]);
    all.extend(sign(&d, &after, &["cloud-0", "cloud-1"]));
    let proof = |all: &[Signed]| Proof::of("test", &d, &[&after, &before], all.iter()).unwrap();
    assert!(proof(&all).is_of(&before) && !proof(&all).is_of(&after));
    assert!(proof(&all).checked("test", &d, &[&after]).is_none(), "who knows the new file only");
    all.extend(sign(&d, &after, &["cloud-1", "cloud-3"]));
    assert!(proof(&all).is_of(&after) && proof(&all).checked("test", &d, &[&after]).is_some());
}
