//! leaderd's chart on a real API server: what it refuses, and what the daemons' account may do.

use ::tests::kilo::api::Api;
use ::tests::kilo::beside::{POOLS, create_pool, pool_path};
use ::tests::kilo::cluster::{NODES, annotate, node_path};
use ::tests::kilo::control_plane::User;
use ::tests::kilo::rig::{Rig, wait_for};
use ::tests::kilo::rules::names;
use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// A mistake in a pool, and the field that the refusal names.
fn mistakes() -> Vec<(Value, &'static str)> {
    vec![
        (json!({}), "spec.location"),
        (json!({"location": ""}), "spec.location"),
        (json!({"location": "two words"}), "spec.location"),
        (json!({"location": "x", "steering": "magic"}), "spec.steering"),
        (json!({"location": "x", "steering": "kilo", "policy": {"leaders": 2}}), "leaders"),
        (json!({"location": "x", "candidates": {"names": ["a", "a"]}}), "spec.candidates.names"),
        (json!({"location": "x", "candidates": {"max": 0}}), "spec.candidates.max"),
        (json!({"location": "x", "candidates": {"max": 16}}), "spec.candidates.max"),
        (json!({"location": "x", "witnesses": ["a", "b", "c", "d", "e"]}), "spec.witnesses"),
        (json!({"location": "x", "drained": [""]}), "spec.drained"),
        (
            json!({"location": "x", "policy": {"probeInterval": "soon"}}),
            "spec.policy.probeInterval",
        ),
        (json!({"location": "x", "policy": {"probeInterval": "1us"}}), "spec.policy.probeInterval"),
        (json!({"location": "x", "policy": {"lossThreshold": 2}}), "spec.policy.lossThreshold"),
        (json!({"location": "x", "policy": {"lossThreshold": 0}}), "spec.policy.lossThreshold"),
        (
            json!({"location": "x", "policy": {"falseFailoversPerYear": 0}}),
            "spec.policy.falseFailoversPerYear",
        ),
        (
            json!({"location": "x", "policy": {"falseFailoversPerYear": 1e-9}}),
            "falseFailoversPerYear",
        ),
        (json!({"location": "x", "freeze": "yes"}), "spec.freeze"),
    ]
}

/// Mistakes that need no look at the nodes are refused at once, with the name of the field, and sound pools are taken.
pub fn bad_pools_are_rejected(rig: &mut Rig) -> Result<String> {
    let all = mistakes();
    for (spec, field) in &all {
        let said = create_pool(&rig.api, "mistake", spec.clone());
        let Err(why) = said else { anyhow::bail!("the API server takes {spec}") };
        let why = format!("{why:#}");
        ensure!(why.contains("422"), "{spec}: not refused as invalid: {why}");
        ensure!(why.contains(field), "{spec}: the refusal does not name {field}: {why}");
    }
    let sound = json!({
        "location": "third", "steering": "native", "freeze": true, "drained": ["a"], "witnesses": ["cloud-0"],
        "candidates": {"names": ["a", "b"], "matchLabels": {"example.net/relay": "true"}, "priorities": {"a": 5}, "max": 2},
        "policy": {"probeInterval": "50ms", "lossThreshold": 0.3, "holdDown": "2s", "failBack": true, "leaders": 2},
    });
    create_pool(&rig.api, "sound", sound)?;
    let moved = rig.api.merge_patch(&pool_path("sound"), &json!({"spec": {"location": "other"}}));
    ensure!(moved.is_err(), "a pool's location can be changed");
    ensure!(rig.api.get(&pool_path("mistake")).is_err(), "a refused pool is there");
    Ok(format!("{} mistakes refused by name", all.len()))
}

/// A request that is to be refused.
type Request = Box<dyn Fn(&Api) -> Result<Value>>;

/// The daemons' account reads Nodes and changes its own annotations of them, and nothing else.
pub fn rights_are_no_more_than_needed(rig: &mut Rig) -> Result<String> {
    let leaderd = rig.control.api(User::Leaderd)?;
    let node = node_path("cloud-0");
    leaderd.get(NODES)?;
    leaderd.get(POOLS)?;
    annotate(&leaderd, "cloud-0", json!({"leaderd.io/epoch": "1", names::LEADER: "leaderd"}))?;
    annotate(&leaderd, "cloud-0", json!({"leaderd.io/epoch": null, names::LEADER: null}))?;
    // The API server learns of a policy a moment after it takes it. Another label each time: what is there already is no change.
    let tries = std::cell::Cell::new(0);
    wait_for("the admission policy is in force", String::new, || {
        tries.set(tries.get() + 1);
        let label = json!({"metadata": {"labels": {"try": tries.get().to_string()}}});
        Ok(leaderd.merge_patch(&node, &label).is_err())
    })?;
    let patch = |what: Value| move |api: &Api| api.merge_patch(&node_path("cloud-0"), &what);
    let refused: Vec<(&str, Request)> = vec![
        ("a label of a node", Box::new(patch(json!({"metadata": {"labels": {"a": "c"}}})))),
        ("another's annotation", Box::new(patch(json!({"metadata": {"annotations": {"a": "b"}}})))),
        (
            "Kilo's endpoint",
            Box::new(patch(
                json!({"metadata": {"annotations": {names::FORCE_ENDPOINT: "1.2.3.4:5"}}}),
            )),
        ),
        (
            "a taint",
            Box::new(patch(json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}))),
        ),
        ("the node itself", Box::new(move |api: &Api| api.delete(&node))),
        ("secrets", Box::new(|api: &Api| api.get("/api/v1/secrets"))),
        (
            "another's ConfigMap",
            Box::new(|api: &Api| api.get("/api/v1/namespaces/kube-system/configmaps/leaderd-mesh")),
        ),
        (
            "its own settings",
            Box::new(|api: &Api| {
                api.merge_patch(
                    "/api/v1/namespaces/leaderd/configmaps/leaderd-settings",
                    &json!({"data": {}}),
                )
            }),
        ),
    ];
    // Nothing of it is used: pools and the mesh are listed and watched, a status is replaced.
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"generateName": "leaderd-"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal", "reason": "Told", "action": "Tell",
        "reportingController": "leaderd", "reportingInstance": "cloud-0",
        "regarding": {"kind": "Pod", "namespace": "kube-system", "name": "another"},
    });
    let unused: Vec<(&str, Request)> = vec![
        (
            "Events of another namespace",
            Box::new(move |api: &Api| {
                api.create("/apis/events.k8s.io/v1/namespaces/kube-system/events", &event)
            }),
        ),
        ("a pool by name", Box::new(|api: &Api| api.get(&pool_path("cloud")))),
        (
            "a pool's status bit by bit",
            Box::new(|api: &Api| {
                let path = format!("{}/status", pool_path("cloud"));
                api.merge_patch(&path, &json!({"status": {"problems": []}}))
            }),
        ),
        (
            "the mesh by name",
            Box::new(|api: &Api| api.get("/api/v1/namespaces/leaderd/configmaps/leaderd-mesh")),
        ),
    ];
    let refused: Vec<(&str, Request)> = refused.into_iter().chain(unused).collect();
    for (what, request) in &refused {
        let why = match request(&leaderd) {
            Ok(_) => anyhow::bail!("leaderd's account may touch {what}"),
            Err(why) => format!("{why:#}"),
        };
        ensure!(
            why.contains("403") || why.contains("422"),
            "{what}: refused for another reason: {why}"
        );
    }
    Ok(format!("{} requests refused", refused.len()))
}
