//! What one broken-into node can do to others through a real API server, with the chart's admission policies in force.

use ::tests::kilo::api::Api;
use ::tests::kilo::beside::pool_path;
use ::tests::kilo::cluster::{annotate, annotation, node_path};
use ::tests::kilo::control_plane::User;
use ::tests::kilo::made_up;
use ::tests::kilo::rig::{Rig, wait_for};
use ::tests::kilo::rules::names;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use wgctl_lab::wait_ready;

use super::beside::{LOCATION, pool_text};

const MESH: &str = "/api/v1/namespaces/leaderd/configmaps/leaderd-mesh";
const MESHES: &str = "/api/v1/namespaces/leaderd/configmaps";
const KEY: &str = "leaderd.io/wireguard-key";
const ACCEPT: &str = "leaderd.io/accept-key";

/// A request that is to be refused, or not.
type Request<'a> = (&'a str, &'a Api, Asks);

/// A request to the API server.
type Asks = Box<dyn Fn(&Api) -> Result<Value>>;

fn patch(path: String, what: Value) -> Asks {
    Box::new(move |api| api.merge_patch(&path, &what))
}

fn says(node: &str, key: &str, value: Value) -> Asks {
    patch(node_path(node), json!({"metadata": {"annotations": {key: value}}}))
}

fn status(node: &str) -> String {
    format!("{}/status", node_path(node))
}

fn mesh_file(generation: u64) -> Value {
    json!({"mesh.toml": format!("[mesh]\ngeneration = {generation}\n")})
}

/// A daemon changes what its own Node publishes and which of the other Nodes lead, and nothing else; only a node and a person
/// changes its keys; the mesh file is written from nodes, and counts up.
pub fn keys_of_a_node_are_its_own(rig: &mut Rig) -> Result<String> {
    let admin = &rig.api;
    let here = &rig.control.api_of(&rig.control.node_token("cloud-0")?)?;
    let kilo = &rig.control.api(User::Kilo)?;
    let nowhere = &rig.control.api(User::Leaderd)?;
    for policy in ["leaderd", "leaderd-keys", "leaderd-mesh"] {
        admin.get(&format!(
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{policy}"
        ))?;
    }
    // The API server learns of a policy a moment after it takes it. Another value each time: what is there already is no change.
    let tries = std::cell::Cell::new(0);
    wait_for("the policy about keys is in force", String::new, || {
        tries.set(tries.get() + 1);
        Ok(says("cloud-1", KEY, json!(tries.get().to_string()))(here).is_err())
    })?;
    wait_for("the policy about the mesh file is in force", String::new, || {
        let probe =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "leaderd-mesh"}});
        let dry = format!("{MESHES}?dryRun=All");
        let with = json!({"data": mesh_file(1), "apiVersion": "v1", "kind": "ConfigMap", "metadata": probe["metadata"]});
        Ok(nowhere.create(&dry, &with).is_err())
    })?;
    let condition = |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True", "reason": "Test"}]}});
    let leads = json!({"metadata": {"annotations": {
        "leaderd.io/epoch": "3", "leaderd.io/location": "cloud", names::LEADER: "leaderd",
    }}});
    let made = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "leaderd-mesh"}, "data": mesh_file(5)});
    let allowed: Vec<Request<'_>> = vec![
        ("its own key", here, says("cloud-0", KEY, json!("mine"))),
        ("its own proof", here, says("cloud-0", "leaderd.io/key-proof", json!("x"))),
        ("who leads, at another", here, patch(node_path("cloud-1"), leads)),
        (
            "another's endpoint, by Kilo as it always did",
            kilo,
            says("cloud-1", names::FORCE_ENDPOINT, json!("1.2.3.4:5")),
        ),
        (
            "what Kilo's agent found out",
            kilo,
            says("cloud-0", "kilo.squat.ai/last-seen", json!("1")),
        ),
        ("a kubelet's report", admin, patch(status("cloud-0"), condition("Ready"))),
        ("a person, keys", admin, says("cloud-1", KEY, json!("theirs"))),
        ("a person, accepted keys", admin, says("cloud-1", ACCEPT, json!("00"))),
        ("a person, prefixes", admin, says("cloud-1", "leaderd.io/prefixes", json!("10.9.0.0/24"))),
        ("the first mesh file", here, Box::new(move |api| api.create(MESHES, &made))),
        ("the next one", here, patch(MESH.into(), json!({"data": mesh_file(6)}))),
        ("a label at it", admin, patch(MESH.into(), json!({"metadata": {"labels": {"a": "b"}}}))),
    ];
    let refused: Vec<Request<'_>> = vec![
        ("another's key", here, says("cloud-1", KEY, json!("stolen"))),
        ("another's key, removed", here, says("cloud-1", KEY, Value::Null)),
        ("another's proof", here, says("cloud-1", "leaderd.io/key-proof", json!("x"))),
        (
            "another's key, by its status",
            here,
            patch(status("cloud-1"), json!({"metadata": {"annotations": {KEY: "stolen"}}})),
        ),
        (
            "another's address",
            here,
            patch(
                status("cloud-1"),
                json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.1.1.1"}]}}),
            ),
        ),
        ("another's readiness", here, patch(status("cloud-1"), condition("Ready"))),
        (
            "another's probe address",
            here,
            says("cloud-1", "leaderd.io/probe-address", json!("10.1.1.1")),
        ),
        ("another's endpoint", here, says("cloud-1", names::FORCE_ENDPOINT, json!("6.6.6.6:5"))),
        ("its own endpoint", here, says("cloud-0", names::FORCE_ENDPOINT, json!("6.6.6.6:5"))),
        ("another's unrelated annotation", here, says("cloud-1", "example.net/a", json!("b"))),
        ("keys that it accepts itself", here, says("cloud-0", ACCEPT, json!("00"))),
        ("its own prefixes", here, says("cloud-0", "leaderd.io/prefixes", json!("0.0.0.0/0"))),
        ("keys, on no node", nowhere, says("cloud-0", KEY, json!("x"))),
        ("keys, by Kilo", kilo, says("cloud-1", KEY, json!("x"))),
        ("who leads, by Kilo", kilo, says("cloud-1", "leaderd.io/epoch", json!("9"))),
        (
            "the same generation",
            here,
            patch(MESH.into(), json!({"data": {"mesh.toml": "[mesh]\ngeneration = 6\nx = 1\n"}})),
        ),
        ("an older generation", here, patch(MESH.into(), json!({"data": mesh_file(2)}))),
        (
            "a generation that cannot be exceeded",
            here,
            patch(MESH.into(), json!({"data": mesh_file(u64::MAX >> 1)})),
        ),
        ("the mesh file, on no node", nowhere, patch(MESH.into(), json!({"data": mesh_file(7)}))),
    ];
    for (what, api, request) in &allowed {
        request(api).with_context(|| format!("refused: {what}"))?;
    }
    for (what, api, request) in &refused {
        let why = match request(api) {
            Ok(_) => bail!("allowed: {what}"),
            Err(why) => format!("{why:#}"),
        };
        ensure!(
            why.contains("ValidatingAdmissionPolicy"),
            "{what}: refused for another reason: {why}"
        );
    }
    let node = admin.get(&node_path("cloud-1"))?;
    ensure!(annotation(&node, KEY).as_deref() == Some("theirs"), "{}", node["metadata"]);
    Ok(format!("{} requests allowed, {} refused", allowed.len(), refused.len()))
}

/// One Node with nonsense in it is held as it was and told of, others' changes go on; other keys are taken once a person accepts them, and
/// not from a mesh file that another account wrote.
pub fn a_node_with_nonsense_is_held_and_keys_are_pinned(rig: &mut Rig) -> Result<String> {
    wait_ready(&rig.world)?;
    super::api::grow(rig, 1)?;
    let text = || -> Result<String> {
        Ok(rig.api.get(MESH)?["data"]["mesh.toml"].as_str().unwrap_or_default().to_owned())
    };
    let refused = |node: &str| -> Result<Option<String>> {
        let node = rig.api.get(&node_path(node))?;
        let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ours = all.iter().find(|c| c["type"] == "MeshChangeRefused");
        Ok(ours.and_then(|c| c["reason"].as_str()).map(str::to_owned))
    };
    // A member says that it has the leader's address.
    let lan = |n: &str| rig.world.nodes[rig.node(n)].node.lan().to_string();
    let nonsense = json!(format!("{}/24", lan("cloud-0")));
    annotate(&rig.api, "cloud-2", json!({"kilo.squat.ai/force-internal-ip": nonsense}))?;
    wait_for(
        "the node is reported",
        || pool_text(rig),
        || Ok(refused("cloud-2")?.as_deref() == Some("Held")),
    )?;
    let hold_down = json!({"spec": {"policy": {"holdDown": "4s"}}});
    rig.api.merge_patch(&pool_path(LOCATION), &hold_down)?;
    wait_for(
        "another change goes on",
        || pool_text(rig),
        || Ok(text()?.contains("hold_down = \"4s\"")),
    )?;
    ensure!(text()?.contains(&format!("address = \"{}\"", lan("cloud-2"))), "{}", text()?);
    annotate(&rig.api, "cloud-2", json!({"kilo.squat.ai/force-internal-ip": null}))?;
    wait_for("the node is taken again", || pool_text(rig), || Ok(refused("cloud-2")?.is_none()))?;
    // A node publishes other keys than those that it is known by.
    let made_up = made_up::name(0);
    let key = |node: &str| -> Result<String> {
        annotation(&rig.api.get(&node_path(node))?, KEY).context("no key")
    };
    let (old, new) = (key(&made_up)?, "q".repeat(42) + "g=");
    annotate(&rig.api, &made_up, json!({KEY: new}))?;
    wait_for(
        "its keys are told of",
        || pool_text(rig),
        || Ok(refused(&made_up)?.as_deref() == Some("KeyChanged")),
    )?;
    ensure!(text()?.contains(&old) && !text()?.contains(&new), "{}", text()?);
    let events = rig.api.get("/apis/events.k8s.io/v1/namespaces/default/events")?;
    let events = events["items"].as_array().cloned().unwrap_or_default();
    let told = events.iter().find(|e| e["reason"] == "KeyChanged").context("no Event")?;
    ensure!(told["regarding"]["name"] == *made_up && told["type"] == "Warning", "{told}");
    // As the message says.
    let note = told["note"].as_str().unwrap_or_default();
    let (_, fingerprint) = note.rsplit_once("leaderd.io/accept-key=").context("no fingerprint")?;
    annotate(&rig.api, &made_up, json!({ACCEPT: fingerprint}))?;
    wait_for("the keys are taken", || pool_text(rig), || Ok(text()?.contains(&new)))?;
    wait_for("it is reported no more", || pool_text(rig), || Ok(refused(&made_up)?.is_none()))?;
    // Whoever has a daemon's token may write the mesh file. The others do not believe it, and put it right.
    let leader = key("onprem-0")?;
    let here = rig.control.api_of(&rig.control.node_token("cloud-2")?)?;
    let generation = |text: &str| -> Result<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix("generation = ")).context("none")?;
        Ok(line.parse()?)
    };
    let now = text()?;
    let g = generation(&now)?;
    let theirs = now.replace(&leader, &("z".repeat(42) + "g="));
    let theirs =
        theirs.replace(&format!("generation = {g}\n"), &format!("generation = {}\n", g + 1));
    ensure!(theirs != now);
    here.merge_patch(MESH, &json!({"data": {"mesh.toml": theirs}}))?;
    wait_for(
        "the mesh file is put right",
        || pool_text(rig),
        || {
            let now = text()?;
            Ok(now.contains(&leader) && generation(&now)? > g + 1)
        },
    )?;
    Ok(format!("held, pinned, accepted and put right by generation {}", generation(&text()?)?))
}
