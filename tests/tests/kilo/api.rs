//! What leaderd asks of the real API server, how it does when that has too much to do, and what people type to kubectl.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ::tests::kilo::beside::{NAMESPACE, POOLS, pool_path};
use ::tests::kilo::cluster::node_path;
use ::tests::kilo::control_plane::{Request, User};
use ::tests::kilo::made_up;
use ::tests::kilo::rig::{Rig, wait_for};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wgctl_lab::{System, system::Leaderd, wait_ready};

use super::beside::{LOCATION, led_by, pool_text};

const MESH: &str = "/api/v1/namespaces/leaderd/configmaps/leaderd-mesh";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
/// Until a request that was begun has its seat.
const TAKES_A_SEAT: Duration = Duration::from_millis(300);
/// How long the API server refuses what leaderd asks.
const THROTTLED: Duration = Duration::from_secs(20);
/// Requests of one daemon in that time: pauses grow from half a second to ten, and its three watches go on.
const FEW: usize = 12;
/// How long nothing new must be asked for, after it settled.
const LOOK: Duration = Duration::from_secs(10);
/// More nodes than every daemon would be a deputy of.
const MADE_UP: usize = 20;

/// leaderd's own routes carry, and Kilo's do not matter.
fn steer_natively(rig: &Rig) -> Result<()> {
    for pool in [LOCATION, "onprem"] {
        rig.api.merge_patch(&pool_path(pool), &json!({"spec": {"steering": "native"}}))?;
    }
    wait_for("the mesh has the new steering", String::new, || {
        let mesh = rig.api.get(MESH)?;
        let text = mesh["data"]["mesh.toml"].as_str().unwrap_or_default();
        Ok(text.contains("[locations.") && !text.contains("steering = \"kilo\""))
    })
}

/// Made-up nodes are in the mesh, and every daemon watches what it is to watch.
pub fn grow(rig: &Rig, count: usize) -> Result<()> {
    steer_natively(rig)?;
    let regions: Vec<String> =
        rig.world.topology.locations.iter().map(|l| l.name.clone()).collect();
    made_up::create(&rig.api, count, &regions)?;
    wait_for("the made-up nodes are in the mesh", String::new, || {
        let mesh = rig.api.get(MESH)?;
        let text = mesh["data"]["mesh.toml"].as_str().unwrap_or_default();
        Ok((0..count).all(|n| text.contains(&format!("[nodes.{}]", made_up::name(n)))))
    })
}

/// Who does not lead sees its own Node and the mesh file, and becomes a candidate all the same; candidates see all.
pub fn members_look_at_their_own_node(rig: &mut Rig) -> Result<String> {
    wait_ready(&rig.world)?;
    grow(rig, MADE_UP)?;
    let of = |name: &str, all: &[Request]| -> Vec<String> {
        let from = rig.world.nodes[rig.node(name)].node.management().to_string();
        let watch = |r: &&Request| r.from == from && r.verb == "watch";
        all.iter().filter(watch).map(|r| r.uri.clone()).collect()
    };
    let own = |name: &str| format!("fieldSelector=metadata.name%3D{name}");
    let member = "cloud-2";
    wait_for("a member watches its own Node", String::new, || {
        let all = rig.control.requests()?;
        Ok(of(member, &all).iter().any(|uri| uri.contains("/nodes?") && uri.contains(&own(member))))
    })?;
    std::thread::sleep(LOOK);
    let all = rig.control.requests()?;
    for name in ["cloud-0", "cloud-1", "onprem-0", "onprem-1"] {
        let watched = of(name, &all);
        ensure!(!watched.iter().any(|uri| uri.contains(&own(name))), "{name} leads: {watched:?}");
    }
    // Its keys are put back, though it sees nothing but itself.
    let gone = json!({"metadata": {"annotations": {"leaderd.io/control-key": null}}});
    let before = rig.api.get(&node_path(member))?;
    rig.api.merge_patch(&node_path(member), &gone)?;
    wait_for("the member publishes its keys again", String::new, || {
        let now = rig.api.get(&node_path(member))?;
        let key = |n: &Value| n["metadata"]["annotations"]["leaderd.io/control-key"].clone();
        Ok(key(&now) == key(&before))
    })?;
    // It is to lead: it sees all from then on.
    let seen = of(member, &rig.control.requests()?).len();
    rig.api.merge_patch(
        &node_path(member),
        &json!({"metadata": {"annotations": {"kilo.squat.ai/force-endpoint": "198.51.100.77:51820"}}}),
    )?;
    let names = json!({"spec": {"candidates": {"names": ["cloud-0", "cloud-1", member]}}});
    rig.api.merge_patch(&pool_path(LOCATION), &names)?;
    wait_for(
        "the new candidate watches all Nodes",
        || pool_text(rig),
        || {
            let since = of(member, &rig.control.requests()?).split_off(seen);
            Ok(since.iter().any(|uri| uri.contains("/nodes?") && !uri.contains("metadata.name"))
                && since.iter().any(|uri| uri.contains("/locationpools?")))
        },
    )?;
    Ok(format!("{} requests in all", rig.control.requests()?.len()))
}

/// Every write names its field manager; what others add to the mesh's object stays; an old version is refused; no Node is made.
pub fn writes_are_leaderds_own(rig: &mut Rig) -> Result<String> {
    wait_ready(&rig.world)?;
    let managers = |object: &Value| -> Vec<String> {
        let all = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let name = |m: &Value| {
            let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", word(&m["manager"]), word(&m["operation"]), word(&m["subresource"]))
        };
        all.iter().map(|m| name(m).trim().to_owned()).collect()
    };
    let mesh = rig.api.get(MESH)?;
    let node = rig.api.get(&node_path("cloud-0"))?;
    ensure!(managers(&node).contains(&"leaderd Apply".to_owned()), "{:?}", managers(&node));
    let label = json!({"metadata": {"labels": {"argocd.example.net/instance": "mesh"}}});
    rig.api.merge_patch(MESH, &label)?;
    let old = mesh["metadata"]["resourceVersion"].clone();
    let leaderd = rig.control.api(User::Leaderd)?;
    let apply = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"mesh.toml": "nonsense"},
        "metadata": {"name": "leaderd-mesh", "resourceVersion": old},
    });
    let refused =
        leaderd.apply(MESH, "leaderd", &apply).err().context("an old version is applied")?;
    ensure!(format!("{refused:#}").contains("409"), "{refused:#}");
    let nobody = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "nobody", "annotations": {"leaderd.io/x": "y"}}});
    let made = leaderd.apply(&node_path("nobody"), "leaderd", &nobody);
    let why = made.err().context("a Node is made by applying to it")?;
    ensure!(format!("{why:#}").contains("403"), "{why:#}");
    // A change of the mesh.
    rig.api.merge_patch(&pool_path(LOCATION), &json!({"spec": {"policy": {"holdDown": "3s"}}}))?;
    wait_for(
        "the mesh is written again",
        || pool_text(rig),
        || Ok(rig.api.get(MESH)?["data"]["mesh.toml"] != mesh["data"]["mesh.toml"]),
    )?;
    let now = rig.api.get(MESH)?;
    ensure!(
        now["metadata"]["labels"]["argocd.example.net/instance"] == "mesh",
        "another's label is gone: {}",
        now["metadata"]["labels"]
    );
    ensure!(managers(&now).contains(&"leaderd Apply".to_owned()), "{:?}", managers(&now));
    wait_for(
        "the pool has a status by leaderd",
        || pool_text(rig),
        || {
            let pool = rig.api.get(&pool_path(LOCATION))?;
            Ok(managers(&pool).contains(&"leaderd Update status".to_owned()))
        },
    )?;
    let node = rig.api.get(&node_path("cloud-0"))?;
    wait_for("the node's condition is leaderd's", String::new, || {
        let node = rig.api.get(&node_path("cloud-0"))?;
        Ok(managers(&node).contains(&"leaderd Update status".to_owned()))
    })?;
    Ok(format!("the Node is managed by: {}", managers(&node).join(", ")))
}

/// The API server gives leaderd's account one seat, which another client holds (API Priority and Fairness), and answers 429. With none at
/// all it still serves one request at a time, and that is all that leaderd asks in peace.
pub fn a_throttled_account_waits_and_recovers(rig: &mut Rig) -> Result<String> {
    wait_ready(&rig.world)?;
    let old = led_by(rig).context("no node leads")?;
    let traffic = rig.traffic()?;
    wait_for(
        "another could lead",
        || pool_text(rig),
        || {
            let standbys = rig.api.get(&pool_path(LOCATION))?["status"]["standbys"].clone();
            Ok(standbys.as_array().is_some_and(|s| !s.is_empty()))
        },
    )?;
    jail(rig, true)?;
    let leaderd = rig.control.api(User::Leaderd)?;
    let schema = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/jail";
    let jail_uid = rig.api.get(schema)?["metadata"]["uid"].clone();
    wait_for("the API server ranks leaderd's account anew", String::new, || {
        Ok(leaderd.flow_schema(POOLS)? == jail_uid)
    })?;
    let refused = || leaderd.get(POOLS).is_err_and(|why| format!("{why:#}").contains("429"));
    let mut seat = None;
    wait_for("leaderd's account is throttled", String::new, || {
        // A daemon may have the seat just now: then this one gets none. An `Api` of the thread's own.
        seat = None;
        seat = Some(rig.control.api(User::Leaderd)?.hold(EVENTS));
        std::thread::sleep(TAKES_A_SEAT);
        Ok((0..10).all(|_| refused()))
    })?;
    let location = rig.world.topology.location(LOCATION)?;
    let standby = rig.world.nodes_in(location).find(|n| {
        let node = &rig.world.nodes[*n].node;
        node.slot.is_some() && node.name != old
    });
    let (from, to) = (rig.node(&old), standby.context("no standby")?);
    let to_name = rig.world.nodes[to].node.name.clone();
    let since = wgctl_lab::wall_micros();
    let before = rig.control.requests()?.len();
    // A decision that is to be told, and cannot be.
    Leaderd.hand_over(&rig.world, from, to)?;
    wait_for("the other leads", String::new, || Ok(led_by(rig).as_deref() == Some(&to_name)))?;
    std::thread::sleep(THROTTLED);
    let during = rig.control.requests()?.split_off(before);
    ensure!(rig.api.get(&pool_path(LOCATION))?["status"]["leader"] == *old, "it was told already");
    traffic.wait_steady("while the API server refuses")?;
    let account = traffic.account(since);
    account.nothing_lost()?;
    let mut most = 0;
    for n in &rig.world.nodes {
        let from = n.node.management().to_string();
        let asked = during.iter().filter(|r| r.from == from).count();
        ensure!(
            asked <= FEW,
            "{} asks {asked} times within {THROTTLED:?}: {during:#?}",
            n.node.name
        );
        most = most.max(asked);
    }
    let refused = during.iter().filter(|r| r.status == 429).count();
    ensure!(refused > 0, "no request was throttled: {during:?}");
    drop(seat);
    jail(rig, false)?;
    let freed = std::time::Instant::now();
    wait_for(
        "the pool's status says who leads",
        || pool_text(rig),
        || Ok(rig.api.get(&pool_path(LOCATION))?["status"]["leader"] == *to_name),
    )?;
    let took = freed.elapsed();
    Ok(format!(
        "{refused} requests refused in {} s, at most {most} of one daemon; told {:.1} s after; {account}",
        THROTTLED.as_secs(),
        took.as_secs_f64()
    ))
}

/// One seat for leaderd's account (none at all is served as one), or as before.
fn jail(rig: &Rig, shut: bool) -> Result<()> {
    let level = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration", "metadata": {"name": "jail"},
        "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 0, "lendablePercent": 0, "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"},
        }},
    });
    let schema = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "jail"},
        "spec": {"matchingPrecedence": 2, "priorityLevelConfiguration": {"name": "jail"}, "rules": [{
            "subjects": [{"kind": "ServiceAccount", "serviceAccount": {"name": "leaderd", "namespace": NAMESPACE}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}],
        }]},
    });
    let verb = if shut { "apply" } else { "delete" };
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [level, schema]});
    rig.control.kubectl(&[verb, "-f", "-"], &list.to_string()).map(drop)
}

/// What people type, to the real kubectl.
pub fn people_use_kubectl(rig: &mut Rig) -> Result<String> {
    wait_ready(&rig.world)?;
    let kubectl = |args: &[&str]| rig.control.kubectl(args, "");
    let wait = ["wait", "--for=condition=Ready", "--timeout=60s", "lp/cloud"];
    kubectl(&wait)?;
    for (path, words) in [
        ("lp", "Who may lead a location"),
        ("lp.spec", "Nodes that shall not lead for now"),
        ("lp.spec.policy.holdDown", "Least time between two automatic failovers"),
        ("lp.status", "Who could take over now"),
        ("lp.status.candidates", "Packets lost on the way through it"),
        ("lp.status.conditions", "Why, in one word"),
    ] {
        let said = kubectl(&["explain", path])?;
        let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(flat.contains(words), "explain {path} does not say '{words}': {said}");
        // A field without a word on it.
        ensure!(!said.contains("<no description>"), "explain {path}: {said}");
    }
    let head = |args: &[&str]| -> Result<String> {
        let table = kubectl(args)?;
        let words = table.lines().next().unwrap_or_default().split_whitespace();
        Ok(words.collect::<Vec<_>>().join(" "))
    };
    let columns = "NAME LOCATION LEADER EPOCH CAUSE SINCE READY";
    ensure!(head(&["get", "lp"])? == format!("{columns} AGE"), "{}", head(&["get", "lp"])?);
    let wide = head(&["get", "leaderd", "-o", "wide"])?;
    ensure!(wide == format!("{columns} STEERING STANDBYS AGE"), "{wide}");
    let leader = led_by(rig).context("no node leads")?;
    let other = if leader == "cloud-0" { "cloud-1" } else { "cloud-0" };
    wait_for(
        "the standby is shown",
        || pool_text(rig),
        || {
            let row = kubectl(&["get", "lp", "cloud", "-o", "wide", "--no-headers"])?;
            Ok(row.contains(&leader) && row.contains(&format!("[\"{other}\"]")))
        },
    )?;
    // As Flux and Argo CD ask: the status is of this spec, and the pool is ready or says what stands in its way.
    let pool = rig.api.get(&pool_path(LOCATION))?;
    ensure!(pool["status"]["observedGeneration"] == pool["metadata"]["generation"]);
    for condition in pool["status"]["conditions"].as_array().context("no conditions")? {
        for field in ["type", "status", "reason", "message", "lastTransitionTime"] {
            ensure!(
                condition[field].as_str().is_some_and(|t| !t.is_empty()),
                "{field}: {condition}"
            );
        }
        ensure!(condition["observedGeneration"] == pool["metadata"]["generation"], "{condition}");
    }
    let nowhere = json!({"apiVersion": "leaderd.io/v1alpha1", "kind": "LocationPool", "metadata": {"name": "nowhere"}, "spec": {"location": "nowhere"}});
    rig.api.create(POOLS, &nowhere)?;
    kubectl(&["wait", "--for=condition=Stalled", "--timeout=60s", "lp/nowhere"])?;
    // What happened to it.
    let (from, to) = (rig.node(&leader), rig.node(other));
    Leaderd.hand_over(&rig.world, from, to)?;
    wait_for(
        "kubectl tells of the promotion",
        || pool_text(rig),
        || {
            let events = kubectl(&["events", "--for", "locationpool/cloud"])?;
            Ok(events.lines().any(|l| l.contains("Promotion") && l.contains("Normal")))
        },
    )?;
    let events = rig.api.get("/apis/events.k8s.io/v1/namespaces/default/events")?;
    let all = events["items"].as_array().cloned().unwrap_or_default();
    let told = all.iter().find(|e| e["reason"] == "Promotion").context("no such event")?;
    ensure!(told["action"] == "MoveLeader", "{told}");
    plugin(rig)
}

/// `kubectl leaderd` finds the Pod; beyond that a kubelet would be needed, of which the API server says that there is none.
fn plugin(rig: &Rig) -> Result<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubectl");
    let config = rig.world.dir.join("plugin.kubeconfig");
    rig.control.write_kubeconfig(User::Admin, &config)?;
    let path = format!(
        "{}:{}:{}",
        directory.display(),
        rig.programs.kilo.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let run = |args: &[&str]| -> Result<(bool, String)> {
        let out = Command::new(rig.programs.kilo.join("kubectl"))
            .arg("leaderd")
            .args(["--kubeconfig", config.to_str().context("a path")?])
            .args(args)
            .env("PATH", &path)
            .env("HOME", &rig.world.dir)
            .output()?;
        let said = [out.stdout, out.stderr].concat();
        Ok((out.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    let (_, said) = run(&["status"])?;
    ensure!(said.contains("no Pod of leaderd runs in namespace leaderd"), "{said}");
    for node in ["cloud-0", "cloud-1"] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("leaderd-{node}"), "labels": {"app.kubernetes.io/name": "leaderd"}},
            "spec": {"nodeName": node, "containers": [{"name": "leaderd", "image": "leaderd"}], "serviceAccountName": "leaderd", "automountServiceAccountToken": false},
        });
        let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        rig.api.create(&pods, &pod)?;
        let ready = if node == "cloud-1" { "True" } else { "False" };
        let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
        rig.api.merge_patch(&format!("{pods}/leaderd-{node}/status"), &status)?;
    }
    let (done, said) = run(&["--help"])?;
    ensure!(done && said.contains("kubectl leaderd explain last"), "{said}");
    let (_, said) = run(&["--node", "onprem-0", "status"])?;
    ensure!(said.contains("they run on: cloud-0 cloud-1"), "{said}");
    let mut end = String::new();
    for (args, node) in
        [(&["status"][..], "cloud-1"), (&["--node", "cloud-0", "status"], "cloud-0")]
    {
        let (done, said) = run(args)?;
        // The API server goes to the kubelet of the right node, and none runs there.
        let asked = format!(
            "https://{node}:10250/exec/leaderd/leaderd-{node}/leaderd?command=wgctl&command=status&"
        );
        ensure!(!done && said.contains(&asked), "{said}");
        end = said.trim().to_owned();
    }
    Ok(format!("kubectl leaderd status: {end}"))
}
