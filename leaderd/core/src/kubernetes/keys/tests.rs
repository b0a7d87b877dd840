use ed25519_dalek::{Signer, SigningKey};

use super::*;
use crate::kubernetes::fixture::*;
use crate::kubernetes::{RefusalReason, render};

fn signer(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn keys(wireguard: u8, control: u8) -> NodeKeys {
    NodeKeys {
        wireguard: [200 + wireguard; 32],
        control: signer(control).verifying_key().to_bytes(),
    }
}

fn publish(view: &mut ClusterView, node: &str, keys: &NodeKeys) {
    let node = view.nodes.get_mut(node).unwrap();
    annotate(node, names::WIREGUARD_KEY, &STANDARD.encode(keys.wireguard));
    annotate(node, names::CONTROL_KEY, &STANDARD.encode(keys.control));
}

fn prove(view: &mut ClusterView, node: &str, signs: u8, of: &str, keys: &NodeKeys) {
    let proof = signer(signs).sign(&keys.to_sign(&of.parse().unwrap()));
    let proof = STANDARD.encode(proof.to_bytes());
    let other = STANDARD.encode([7; 64]);
    let node = view.nodes.get_mut(node).unwrap();
    annotate(node, names::KEY_PROOF, &format!("{other}, {proof}"));
}

/// home-1 is known by keys 1 and 1.
fn cluster() -> ClusterView {
    let mut view = two_locations();
    publish(&mut view, "home-1", &keys(1, 1));
    store_mesh(&mut view);
    view
}

fn in_mesh(view: &ClusterView, node: &str) -> NodeKeys {
    let mesh = render(view, SETTINGS).mesh.expect("a mesh");
    NodeKeys::of(&mesh.nodes[&node.parse::<NodeName>().unwrap()])
}

#[test]
fn other_keys_are_refused_and_the_message_says_how_to_accept_them() {
    let mut view = cluster();
    let was = view.mesh.clone().unwrap().text;
    let new = keys(2, 2);
    publish(&mut view, "home-1", &new);
    let r = render(&view, SETTINGS);
    assert_eq!(r.text.as_deref(), Some(was.as_str()));
    let refusal = &r.refusals["home-1"];
    assert_eq!(refusal.why, RefusalReason::KeyChanged);
    let command = format!(
        "kubectl annotate --overwrite node home-1 leaderd.io/accept-key={}",
        new.fingerprint()
    );
    assert!(refusal.message.ends_with(&command), "{}", refusal.message);
    // One key of the two is enough to be another node.
    for half in [keys(1, 2), keys(2, 1)] {
        publish(&mut view, "home-1", &half);
        assert_eq!(in_mesh(&view, "home-1"), keys(1, 1));
    }
}

#[test]
fn a_person_accepts_exactly_these_keys() {
    let mut view = cluster();
    let new = keys(2, 2);
    annotate(view.nodes.get_mut("home-1").unwrap(), names::ACCEPT_KEY, &new.fingerprint());
    publish(&mut view, "home-1", &keys(3, 3));
    assert_eq!(in_mesh(&view, "home-1"), keys(1, 1));
    publish(&mut view, "home-1", &new);
    assert_eq!(in_mesh(&view, "home-1"), new);
    store_mesh(&mut view);
    assert!(render(&view, SETTINGS).refusals.is_empty());
    publish(&mut view, "home-1", &keys(1, 1));
    assert_eq!(in_mesh(&view, "home-1"), new, "not back either");
}

#[test]
fn a_node_proves_new_keys_with_its_pinned_control_key() {
    let view = cluster();
    let new = keys(2, 2);
    let with = |signs, of: &str, signed: &NodeKeys| {
        let mut view = view.clone();
        publish(&mut view, "home-1", &new);
        prove(&mut view, "home-1", signs, of, signed);
        in_mesh(&view, "home-1")
    };
    assert_eq!(with(1, "home-1", &new), new);
    assert_eq!(with(2, "home-1", &new), keys(1, 1), "signed by the new key itself");
    assert_eq!(with(1, "home-0", &new), keys(1, 1), "signed for another node");
    assert_eq!(with(1, "home-1", &keys(2, 3)), keys(1, 1), "signed for other keys");
    // A WireGuard key alone, with the control key that stays.
    let mut other = view.clone();
    publish(&mut other, "home-1", &keys(9, 1));
    prove(&mut other, "home-1", 1, "home-1", &keys(9, 1));
    assert_eq!(in_mesh(&other, "home-1"), keys(9, 1));
}

/// Whoever may write the object that holds the mesh file may write other keys into it.
#[test]
fn a_mesh_file_with_other_keys_is_rejected_and_rewritten() {
    let mut view = cluster();
    let mesh = |view: &ClusterView| mesh_in(view);
    let mut pins = PinnedKeys::default();
    pins.check_and_pin(&mesh(&view), &view).expect("the first are taken");
    let known = STANDARD.encode(keys(1, 1).wireguard);
    let object = view.mesh.as_mut().unwrap();
    object.text = object.text.replace(&known, &STANDARD.encode([66; 32])).into();
    let strange = pins.check_and_pin(&mesh(&view), &view).unwrap_err();
    let node = "home-1".parse().unwrap();
    assert_eq!(
        strange,
        [UnexpectedKeys { node, keys: NodeKeys { wireguard: [66; 32], ..keys(1, 1) } }]
    );
    view.pins = pins.clone();
    assert_eq!(in_mesh(&view, "home-1"), keys(1, 1));
    let r = render(&view, SETTINGS);
    assert!(r.refusals.is_empty(), "the node is as it was: {:?}", r.refusals);
    assert_eq!(r.mesh.unwrap().generation.0, 2, "written again");
    // A daemon that does not see the Nodes has nothing to hold it against.
    pins.pin_unchecked(&mesh(&view));
    assert_eq!(pins.of_name(&"home-1".parse().unwrap()).unwrap().wireguard, [66; 32]);
}

fn mesh_in(view: &ClusterView) -> Mesh {
    crate::mesh::parse(&view.mesh.as_ref().unwrap().text).unwrap()
}

#[test]
fn a_node_that_returns_to_the_mesh_file_keeps_its_pinned_keys() {
    let view = cluster();
    let whole = mesh_in(&view);
    let home_1: NodeName = "home-1".parse().unwrap();
    let mut without = whole.clone();
    without.edit().nodes.remove(&home_1);
    let mut other = whole.clone();
    other.edit().nodes.get_mut(&home_1).unwrap().wireguard_key.0 = [66; 32];
    let mut pins = PinnedKeys::default();
    pins.check_and_pin(&whole, &view).unwrap();
    let after = |view: &ClusterView| {
        let mut pins = pins.clone();
        pins.check_and_pin(&without, view).unwrap();
        pins.check_and_pin(&other, view).is_ok()
    };
    assert!(!after(&view));
    let mut again = view.clone();
    again.nodes.get_mut("home-1").unwrap().uid = "another".into();
    assert!(after(&again), "its Node object was deleted and made again: it is another machine");
    // While there is no Node it is in the mesh as it was, or not at all.
    again.nodes.remove("home-1");
    assert!(pins.clone().check_and_pin(&other, &again).is_err());
}

#[test]
fn a_recreated_node_is_a_new_one_once_it_has_left_the_mesh() {
    let mut view = cluster();
    view.pins.check_and_pin(&mesh_in(&view), &view.clone()).unwrap();
    let new = keys(2, 2);
    publish(&mut view, "home-1", &new);
    view.nodes.get_mut("home-1").unwrap().uid = "another".into();
    assert_eq!(in_mesh(&view, "home-1"), keys(1, 1), "all daemons see it in the mesh file");
    let mut gone = view.clone();
    gone.mesh = None;
    assert_eq!(in_mesh(&gone, "home-1"), new);
}

#[test]
fn accepted_keys_become_the_pinned_keys() {
    let mut view = cluster();
    view.pins.pin_unchecked(&mesh_in(&view));
    let new = keys(2, 2);
    publish(&mut view, "home-1", &new);
    annotate(view.nodes.get_mut("home-1").unwrap(), names::ACCEPT_KEY, &new.fingerprint());
    store_mesh(&mut view);
    let mut pins = view.pins.clone();
    assert_eq!(pins.check_and_pin(&mesh_in(&view), &view), Ok(()));
    assert_eq!(pins.of_node(&view.nodes["home-1"]), Some(new));
}
