//! A hostile node of each role sends whatever its keys let it send. No node believes it, and failover works within its time:
//! it harms what cutting its own cable could harm.

use std::collections::BTreeMap;

use leaderd_core::admin::{AdminRequest, Author};
use leaderd_core::capability::Capabilities;
use leaderd_core::ids::{Generation, Slot};
use leaderd_core::proof::{Proof, Signed, Signer, Statement, VoterSet};
use leaderd_core::state::Decision;
use leaderd_core::wire::{Frame, Hello};

use super::*;

/// A mesh with a node of each role, and every node's secret.
struct Attack {
    play: Play,
    secrets: BTreeMap<NodeName, [u8; 32]>,
    /// Decisions and proofs from before the present ones.
    old: Vec<(Decision, Proof)>,
}

impl Attack {
    /// `cloud-0` and `cloud-1` are candidates, `home-0` votes with them as witness, `cloud-2` and `cloud-3` are plain members and
    /// `paris-0` observes.
    fn new() -> Self {
        let sites = [
            Site::new("cloud", 2, 2).witness("home-0"),
            Site::new("home", 3, 0),
            Site::new("paris", 3, 0),
        ];
        let (_, secrets) = mesh_of(&sites, Policy::default());
        let play = Play::of(&sites, Policy::default(), WorldConfig::default());
        let mut this = Self { play, secrets, old: Vec::new() };
        this.remember();
        // A move, so that there is something old to replay.
        let request = AdminRequest::Promote { node: name("cloud-1"), force: false };
        this.play.world.input(&name("cloud-1"), Input::Admin { id: 1, user: None, request });
        this.play.run(secs(15));
        assert_eq!(this.play.leader_of("cloud"), "cloud-1", "{}", this.play.story());
        this
    }

    fn remember(&mut self) {
        for location in ["cloud", "home", "paris"] {
            let core = self.play.world.core(&name("paris-1")).expect("it runs");
            let location = location.parse().expect("a name");
            let decision = core.decision(&location).expect("decided").clone();
            let proof = core.proof(&location).cloned().unwrap_or_default();
            assert!(!proof.is_empty(), "{location} has proved its decision");
            self.old.push((decision, proof));
        }
    }

    /// All that this node could say of who leads a location.
    fn forged_frames(&self, hostile: &NodeName, location: &LocationName) -> Vec<Frame> {
        let mesh = &self.play.world.mesh;
        let core = self.play.world.core(&name("paris-1")).expect("it runs");
        let present = core.decision(location).expect("decided").clone();
        let worse = present.leaders.iter().map(|s| Slot(1 - s.0.min(1))).collect::<Vec<_>>();
        let mut lies = Vec::new();
        for epoch in [present.epoch.0, present.epoch.0 + 1, present.epoch.0 + 1000, u64::MAX] {
            let forged =
                Decision { epoch: Epoch(epoch), leaders: worse.clone(), ..present.clone() };
            let own = self.sign(hostile, mesh, &forged);
            let stolen = core.proof(location).cloned().unwrap_or_default();
            let proofs = [Proof::default(), stolen, own.0];
            for proof in proofs {
                let (decision, event) = (forged.clone(), None);
                lies.push(Frame::Announce { decision, proof: proof.clone(), event });
                lies.push(Frame::Hello(Hello {
                    node: hostile.clone(),
                    capabilities: Capabilities::OURS,
                    generation: Generation(1),
                    mesh_hash: [0; 8],
                    decision: Some(forged.clone()),
                    proof,
                    raft_leader: Some(hostile.clone()),
                    broken: None,
                    reaches: Vec::new(),
                    digest: Vec::new(),
                    remote: vec![forged.clone()],
                }));
            }
            let signatures = own.1;
            lies.push(Frame::Signed {
                location: location.clone(),
                epoch: forged.epoch,
                signatures,
            });
        }
        for (decision, proof) in self.old.iter().filter(|(d, _)| d.location == *location) {
            let (decision, proof) = (decision.clone(), proof.clone());
            lies.push(Frame::Announce { decision, proof, event: None });
        }
        let freeze = AdminRequest::Freeze { location: location.clone(), duration: None };
        for author in [hostile.clone(), name("cloud-0"), name("home-1")] {
            let (author, request) = (Author::new(author, None), freeze.clone());
            lies.push(Frame::Forward { id: 1, author, request });
        }
        lies
    }

    /// Its own signature, under its own name and under those of all voters.
    fn sign(
        &self,
        hostile: &NodeName,
        mesh: &leaderd_core::mesh::Mesh,
        d: &Decision,
    ) -> (Proof, Vec<Signed>) {
        let set = VoterSet::of(mesh, &d.location);
        let statement = Statement::decision(&mesh.name, d, &set);
        let signature = Signer::new(&self.secrets[hostile]).sign(&statement);
        let signed = |voter: &NodeName| Signed { voter: voter.clone(), set: set.id(), signature };
        let all: Vec<Signed> = set.voters().chain([hostile]).map(signed).collect();
        // As it comes over the wire: a proof of any signatures.
        let bytes = postcard::to_stdvec(&all).expect("plain data");
        (
            postcard::from_bytes(&bytes).expect("a proof is a list of signatures"),
            vec![signed(hostile)],
        )
    }
}

/// Returns what each node takes for decided.
fn decided(play: &Play) -> BTreeMap<(NodeName, LocationName), (u64, Vec<u8>)> {
    let mesh = &play.world.mesh;
    let pairs = mesh.nodes.keys().flat_map(|n| mesh.locations.keys().map(move |l| (n, l)));
    let known = pairs.filter_map(|(node, location)| {
        let decision = play.world.core(node)?.decision(location)?;
        let leaders = decision.leaders.iter().map(|s| s.0).collect();
        Some(((node.clone(), location.clone()), (decision.epoch.0, leaders)))
    });
    known.collect()
}

/// One hostile node sends forged frames to all nodes for three seconds, ten times a second; then another relay breaks.
fn with_hostile_node(hostile: &str, frozen: &[&str]) {
    let mut attack = Attack::new();
    let hostile = name(hostile);
    let before = decided(&attack.play);
    let locations: Vec<LocationName> = attack.play.world.mesh.locations.keys().cloned().collect();
    let victims: Vec<NodeName> =
        attack.play.world.mesh.nodes.keys().filter(|n| **n != hostile).cloned().collect();
    for _ in 0..30 {
        for location in &locations {
            for frame in attack.forged_frames(&hostile, location) {
                for victim in &victims {
                    // As the control channel hands it over: with the name that the key proves.
                    let frame = Frame::decode(&frame.encode()).expect("it is a frame");
                    let input = Input::Frame { from: hostile.clone(), frame: Box::new(frame) };
                    attack.play.world.input(victim, input);
                }
            }
        }
        attack.play.run(ms(100));
    }
    let play = &mut attack.play;
    // Some may have learned of the truth, where they had not heard of it before.
    let truth = |l: &LocationName| &before[&(name("paris-1"), l.clone())];
    for ((node, location), known) in &decided(play) {
        assert_eq!(known, truth(location), "{node} believed {hostile}: {}", play.story());
    }
    for location in &locations {
        let core = play.world.core(&name(&format!("{location}-1"))).expect("it runs");
        let status = core.status(play.world.now());
        let status = status.locations.iter().find(|l| l.name == *location).expect("known");
        let may = frozen.contains(&location.as_str());
        assert!(may || status.frozen.is_none(), "{hostile} has frozen {location}");
    }
    if frozen.contains(&"cloud") {
        let location = "cloud".parse().expect("a name");
        let request = AdminRequest::Unfreeze { location };
        play.world.input(&name("cloud-0"), Input::Admin { id: 9, user: None, request });
        play.run(secs(1));
    }
    if hostile.as_str() != "cloud-0" {
        play.fault("cloud-1", Fault::ForwardingOff, true);
        let took = play.blackout("paris-1", "cloud-3");
        assert!(took < ms(500), "{hostile}: took {took:?}: {}", play.story());
        play.run(secs(5));
        assert_eq!(play.leader_of("cloud"), "cloud-0", "{}", play.story());
    }
    play.fine();
}

#[test]
fn no_node_believes_a_hostile_member() {
    with_hostile_node("cloud-2", &["cloud"]);
}

#[test]
fn no_node_believes_a_hostile_witness() {
    with_hostile_node("home-0", &["cloud", "home"]);
}

#[test]
fn no_node_believes_a_hostile_candidate() {
    with_hostile_node("cloud-0", &["cloud"]);
}

#[test]
fn no_node_believes_a_hostile_observer() {
    with_hostile_node("paris-0", &["paris"]);
}

#[test]
fn all_nodes_have_proofs_of_all_decisions() {
    let mut play = Play::hybrid();
    play.fault("cloud-0", Fault::VxlanAll, true);
    play.run(secs(10));
    for node in play.world.mesh.nodes.keys() {
        let core = play.world.core(node).expect("it runs");
        for location in play.world.mesh.locations.keys() {
            assert!(core.proof(location).is_some(), "{node} has no proof of {location}");
        }
        let counted = core.counters();
        assert_eq!(counted.get("ignored.decision-without-a-proof"), None, "{}", play.story());
    }
    play.fine();
}

#[test]
fn a_location_that_loses_all_its_stores_counts_on_from_what_was_proved() {
    let mut play = Play::hybrid();
    for _ in 0..2 {
        play.fault("cloud-0", Fault::VxlanAll, true);
        play.run(secs(20));
        play.fault("cloud-0", Fault::VxlanAll, false);
        play.run(secs(400));
    }
    let location: LocationName = "cloud".parse().expect("a name");
    let epoch = |play: &Play, node: &str| {
        play.world.core(&name(node)).and_then(|c| c.decision(&location)).map(|d| d.epoch)
    };
    let before = epoch(&play, "home-0").expect("decided");
    assert!(before > Epoch(1), "{}", play.story());
    for node in ["cloud-0", "cloud-1", "cloud-2"] {
        play.fault(node, Fault::DiskLoss, true);
    }
    play.run(secs(1));
    for node in ["cloud-0", "cloud-1", "cloud-2"] {
        play.fault(node, Fault::DiskLoss, false);
    }
    play.run(secs(60));
    let after = epoch(&play, "home-0").expect("decided");
    assert!(after > before, "{before} then {after}: {}", play.story());
    assert_eq!(epoch(&play, "cloud-0"), Some(after));
    let core = play.world.core(&name("home-0")).expect("it runs");
    assert!(core.proof(&location).is_some());
}
