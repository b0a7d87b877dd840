//! What the loop does next, with an API server that is not there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kube::runtime::watcher::Event as Change;
use leaderd_core::cluster::{Action, ClusterNode, ClusterView, MeshObject, Rendered, names};
use leaderd_core::ids::NodeName;
use leaderd_core::mesh::parse;
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
    let rendered = cluster::render(&view, "");
    let text = rendered.text.unwrap_or_else(|| panic!("{:?}", rendered.problems));
    let mesh = Arc::new(parse(&text).unwrap());
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
    }
}

fn known(status: Status) -> Box<Known> {
    Box::new(Known { status, events: vec![], hears: true })
}

fn shell(me: &NodeName, state: &std::path::Path) -> Shell {
    let config = Config {
        me: me.clone(),
        namespace: "leaderd".into(),
        settings: String::new(),
        state: state.to_owned(),
        own: Default::default(),
    };
    let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let client = kube::Client::try_from(nowhere).unwrap();
    let out = Out { meshes: watch::channel(None).0 };
    Shell::new(client, Asked::default(), config, out, Counters::default())
}

#[tokio::test]
async fn a_plain_member_publishes_what_its_daemon_says_and_weighs_nothing_old() {
    let (_, text, mesh) = mesh();
    let me = mesh.nodes.keys().find(|n| !cluster::looks(&mesh, n)).expect("a plain member").clone();
    let state = tempfile::tempdir().unwrap();
    let mut shell = shell(&me, state.path());
    let (asked, mut requests) = mpsc::channel(1);
    let (_decides, decided) = watch::channel(0);
    shell.daemon = Some(Daemon { asker: crate::admin::Asker(asked), decided });
    shell.in_force = Some((text, Some(mesh.clone())));
    shell.status = Some(known(status(&mesh, me.as_str(), "10.42.1.1")));
    shell.next_ask = Instant::now() + ANEW;

    assert!(shell.rescope() && shell.seen.scope() == Scope::Own);
    assert!(shell.status.is_none() && shell.next_ask <= Instant::now());
    shell.ask();
    assert!(shell.asking, "its own daemon is asked");
    let mut under_way = std::mem::take(&mut shell.under_way);
    let asked = tokio::select! {
        request = requests.recv() => request,
        _ = under_way.next() => None,
    };
    assert!(matches!(asked, Some(Request::Snapshot(_))));

    let node = json!({"metadata": {"name": me.as_str()}});
    for change in
        [Change::Init, Change::InitApply(serde_json::from_value(node).unwrap()), Change::InitDone]
    {
        shell.seen.node(change);
    }
    for change in [Change::Init, Change::InitDone] {
        shell.seen.mesh(change);
    }
    shell.done(Done::Status(Some(known(status(&mesh, me.as_str(), "10.42.9.9")))));
    let busy: Vec<&str> = shell.busy.iter().map(String::as_str).collect();
    assert_eq!(busy, [OWN], "its own annotations, and nothing by a view of one Node");

    // It may lead now, and asks before it weighs anything.
    let mut other = (*mesh).clone();
    let slot = other.nodes.values().find_map(|n| n.slot);
    other.nodes.get_mut(&me).unwrap().slot = slot;
    shell.in_force = Some((String::new(), Some(Arc::new(other))));
    assert!(shell.rescope() && shell.seen.scope() == Scope::All);
    assert!(shell.status.is_none() && shell.next_ask <= Instant::now());
}

#[tokio::test]
async fn a_mesh_that_is_lost_comes_back_as_it_was_where_it_is_others_to_change() {
    let (mut view, text, mesh) = mesh();
    view.mesh = Some(MeshObject { resource_version: String::new(), text: text.clone() });
    let state = tempfile::tempdir().unwrap();
    let mut shell = shell(mesh.nodes.keys().next().unwrap(), state.path());
    shell.seen.view = view;
    assert_eq!(shell.seen.held, super::super::seen::Held::Lost);
    let written = |outdated: bool| {
        let text = Some("another".to_owned());
        let rendered =
            Rendered { text, mesh: Some((*mesh).clone()), outdated, ..Rendered::default() };
        match shell.lost_mesh(&rendered).unwrap().action {
            Action::Mesh { text, .. } => text,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((written(false), written(true)), ("another".to_owned(), text));
}

#[tokio::test]
async fn a_mesh_file_with_other_keys_is_not_taken_before_its_node_says_why() {
    let (view, text, mesh) = mesh();
    let state = tempfile::tempdir().unwrap();
    let mut shell = shell(mesh.nodes.keys().next().unwrap(), state.path());
    let put = |shell: &mut Shell, text: &str| {
        let object = MeshObject { resource_version: "1".into(), text: text.to_owned() };
        shell.seen.view.mesh = Some(object);
        shell.take_mesh();
    };
    shell.seen.view = view;
    put(&mut shell, &text);
    let in_force = |shell: &Shell| shell.out.meshes.borrow().as_ref().unwrap().hash;
    assert_eq!(in_force(&shell), mesh.hash);
    // Somebody who may write the object gives home-2 a key of theirs.
    let theirs = text.replace(&BASE64.encode([2; 32]), &BASE64.encode([99; 32]));
    assert_ne!(theirs, text);
    put(&mut shell, &theirs);
    assert_eq!(in_force(&shell), mesh.hash);
    let doubt = shell.doubted.as_mut().expect("it is not believed");
    assert_eq!(doubt.strange[0].node.as_str(), "home-2");
    let accepted = doubt.strange[0].keys.fingerprint();
    shell.say_doubt();
    assert_eq!(shell.counters.get("kubernetes_meshes_refused"), 0, "another watch may be late");
    shell.doubted.as_mut().unwrap().since -= mesh::DOUBT;
    shell.say_doubt();
    shell.say_doubt();
    assert_eq!(shell.counters.get("kubernetes_meshes_refused"), 1, "said once");
    // A person accepts it.
    let mut node = json!({"metadata": {"name": "home-2", "annotations": {}}});
    node["metadata"]["annotations"][names::ACCEPT_KEY] = json!(accepted);
    shell.word(Word::Node(Change::Apply(serde_json::from_value(node).unwrap())));
    assert_ne!(in_force(&shell), mesh.hash);
    assert!(shell.doubted.is_none());
}
