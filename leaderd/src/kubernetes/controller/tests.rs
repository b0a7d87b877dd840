//! What the loop does next, with an API server that does not exist.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kube::runtime::watcher::Event as Change;
use leaderd_core::ids::NodeName;
use leaderd_core::kubernetes::{
    Action, ClusterNode, ClusterView, MeshObject, Rendered, names, render,
};
use serde_json::json;

use super::*;

/// One location of eight nodes, of which three may lead.
fn mesh() -> (ClusterView, String, Arc<Mesh>) {
    let mut view = ClusterView::default();
    for n in 1..=8_u8 {
        let own = [
            (names::KILO_LOCATION, "home".to_owned()),
            (names::WIREGUARD_KEY, BASE64.encode([n; 32])),
            (names::CONTROL_KEY, BASE64.encode([0x80 | n; 32])),
        ];
        let node = ClusterNode {
            name: format!("home-{n}"),
            annotations: own.map(|(k, v)| (k.to_owned(), v)).into(),
            internal: vec![format!("10.0.0.{n}").parse().unwrap()],
            external: (n <= 3)
                .then(|| format!("203.0.113.{n}").parse().unwrap())
                .into_iter()
                .collect(),
            pod_cidrs: vec![format!("10.42.{n}.0/24").parse().unwrap()],
            ..ClusterNode::default()
        };
        view.nodes.insert(node.name.clone(), node);
    }
    let rendered = render(&view, "");
    let text = rendered.text.unwrap_or_else(|| panic!("{:?}", rendered.problems));
    let mesh = rendered.mesh.unwrap();
    (view, text, mesh)
}

fn status(mesh: &Mesh, me: &str, probe_address: &str) -> Status {
    Status {
        mesh: mesh.name.clone(),
        node: me.parse().unwrap(),
        location: "home".parse().unwrap(),
        generation: mesh.generation,
        mesh_hash: String::new(),
        other_generations: Default::default(),
        backend: "kernel".to_owned(),
        probe_addresses: vec![probe_address.parse().unwrap()],
        locations: vec![],
        relay_pairs: Vec::new(),
    }
}

fn state(status: Status) -> Box<DaemonState> {
    Box::new(DaemonState { status, events: vec![], connected: true })
}

fn new_controller(me: &NodeName, dir: &std::path::Path) -> Controller {
    let config = Config {
        me: me.clone(),
        namespace: "leaderd".into(),
        settings: String::new(),
        state: dir.to_owned(),
        own: Default::default(),
    };
    let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let client = kube::Client::try_from(nowhere).unwrap();
    Controller::new(
        client,
        RetryAfter::default(),
        config,
        watch::channel(None).0,
        Counters::default(),
    )
}

#[tokio::test]
async fn a_plain_member_publishes_its_annotations_and_plans_nothing_from_old_state() {
    let (_, text, mesh) = mesh();
    let me =
        mesh.nodes.keys().find(|n| !watches_cluster(&mesh, n)).expect("a plain member").clone();
    let dir = tempfile::tempdir().unwrap();
    let mut controller = new_controller(&me, dir.path());
    let (asked, mut requests) = mpsc::channel(1);
    let (_decides, decided) = watch::channel(0);
    controller.daemon = Some(Daemon { asker: crate::admin::Asker(asked), decided });
    (controller.mesh_text, controller.mesh) = (text.into(), Some(mesh.clone()));
    controller.status = Some(state(status(&mesh, me.as_str(), "10.42.1.1")));
    controller.next_poll = Instant::now() + RECONCILE_INTERVAL;

    assert!(controller.update_scope() && controller.cache.scope() == Scope::OwnNode);
    assert!(controller.status.is_none() && controller.next_poll <= Instant::now());
    controller.poll_daemon();
    assert!(controller.polling, "its own daemon is polled");
    let mut running = mem::take(&mut controller.running);
    let asked = tokio::select! {
        request = requests.recv() => request,
        _ = running.next() => None,
    };
    assert!(matches!(asked, Some(Request::Snapshot(_))));

    let node = json!({"metadata": {"name": me.as_str()}});
    for change in
        [Change::Init, Change::InitApply(serde_json::from_value(node).unwrap()), Change::InitDone]
    {
        controller.cache.apply_node(change);
    }
    for change in [Change::Init, Change::InitDone] {
        controller.cache.apply_mesh(change);
    }
    controller.handle_completion(Completion::Status(Some(state(status(
        &mesh,
        me.as_str(),
        "10.42.9.9",
    )))));
    let busy: Vec<&str> = controller.busy.iter().map(String::as_str).collect();
    assert_eq!(busy, [PUBLISH_KEYS], "its own annotations, and nothing from a view of one Node");

    // It may lead now, and polls its daemon before it plans anything.
    let mut other = (*mesh).clone();
    let slot = other.nodes.values().find_map(|n| n.slot);
    other.edit().nodes.get_mut(&me).unwrap().slot = slot;
    controller.mesh = Some(Arc::new(other));
    assert!(controller.update_scope() && controller.cache.scope() == Scope::Cluster);
    assert!(controller.status.is_none() && controller.next_poll <= Instant::now());
}

#[tokio::test]
async fn a_daemon_with_outdated_settings_restores_the_previous_mesh() {
    let (mut view, text, mesh) = mesh();
    view.mesh = Some(MeshObject { resource_version: String::new(), text: text.clone().into() });
    let dir = tempfile::tempdir().unwrap();
    let mut controller = new_controller(mesh.nodes.keys().next().unwrap(), dir.path());
    controller.cache.view = view;
    assert_eq!(controller.cache.mesh_state, super::super::watch_cache::MeshObjectState::Lost);
    let written = |outdated: bool| {
        let text = Some("another".to_owned());
        let rendered = Rendered { text, mesh: Some(mesh.clone()), outdated, ..Rendered::default() };
        match controller.restore_mesh(&rendered).unwrap().action {
            Action::Mesh { text, .. } => text,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((written(false), written(true)), ("another".to_owned(), text));
}

#[tokio::test]
async fn a_mesh_file_with_other_keys_is_rejected_until_its_node_explains_them() {
    let (view, text, mesh) = mesh();
    let dir = tempfile::tempdir().unwrap();
    let mut controller = new_controller(mesh.nodes.keys().next().unwrap(), dir.path());
    let put = |controller: &mut Controller, text: &str| {
        let object = MeshObject { resource_version: "1".into(), text: text.to_owned().into() };
        controller.cache.view.mesh = Some(object);
        controller.update_mesh();
    };
    controller.cache.view = view;
    put(&mut controller, &text);
    let in_force = |controller: &Controller| controller.meshes.borrow().as_ref().unwrap().hash;
    assert_eq!(in_force(&controller), mesh.hash);
    // An attacker who may write the object gives home-2 another key.
    let theirs = text.replace(&BASE64.encode([2; 32]), &BASE64.encode([99; 32]));
    assert_ne!(theirs, text);
    put(&mut controller, &theirs);
    assert_eq!(in_force(&controller), mesh.hash);
    let untrusted = controller.untrusted.as_mut().expect("it is not trusted");
    assert_eq!(untrusted.keys[0].node.as_str(), "home-2");
    let accepted = untrusted.keys[0].keys.fingerprint();
    controller.log_untrusted();
    assert_eq!(
        controller.counters.get("kubernetes_meshes_refused"),
        0,
        "another watch may be late"
    );
    controller.untrusted.as_mut().unwrap().since -= mesh::TRUST_GRACE;
    controller.log_untrusted();
    controller.log_untrusted();
    assert_eq!(controller.counters.get("kubernetes_meshes_refused"), 1, "logged once");
    // A person accepts it.
    let mut node = json!({"metadata": {"name": "home-2", "annotations": {}}});
    node["metadata"]["annotations"][names::ACCEPT_KEY] = json!(accepted);
    controller.handle_event(WatchEvent::Node(Change::Apply(serde_json::from_value(node).unwrap())));
    assert_ne!(in_force(&controller), mesh.hash);
    assert!(controller.untrusted.is_none());
}
