//! What a node without a mesh waits for, in words.

use leaderd_core::cluster::{Rendered, Subject, names};
use leaderd_core::mesh::Mesh;

use super::Config;
use super::seen::Seen;

/// The first thing that is missing. `rendered` is what the mesh would be, once the view is whole.
pub fn waits_for(
    config: &Config,
    seen: &Seen,
    rendered: Option<&Rendered>,
    in_force: Option<&Mesh>,
) -> String {
    let me = &config.me;
    let Some(rendered) = rendered.filter(|_| seen.is_whole()) else {
        return format!("the API: not read yet: {}", seen.unread().join(", "));
    };
    let Some(node) = seen.view.nodes.get(me.as_str()) else {
        return format!(
            "a Node {me} in the cluster; if this node has another name there, say it with --node"
        );
    };
    if config.own.iter().any(|(k, v)| node.annotations.get(k) != Some(v)) {
        return "the public keys of this node in its annotations".to_owned();
    }
    let about = |subject: &Subject| {
        rendered.problems.iter().find(|p| p.subject == *subject).map(|p| p.message.clone())
    };
    if let Some(message) = about(&Subject::Node(me.to_string())) {
        return message;
    }
    if ![names::KILO_LOCATION, names::REGION]
        .iter()
        .any(|n| node.annotations.contains_key(*n) || node.labels.contains_key(*n))
    {
        return format!(
            "a location: annotation {} or label {}",
            names::KILO_LOCATION,
            names::REGION
        );
    }
    if let Some(message) = about(&Subject::Settings).or_else(|| about(&Subject::Mesh)) {
        return message;
    }
    match in_force.map(|mesh| mesh.node(me)) {
        None => "a mesh in ConfigMap leaderd-mesh".to_owned(),
        Some(None) => "a mesh that this node is in".to_owned(),
        Some(Some(_)) => "a mesh with the keys that this node has now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Node};
    use kube::runtime::watcher::Event;
    use leaderd_core::cluster::Problem;
    use leaderd_core::mesh::{ExampleKeys, example, parse};
    use serde_json::json;

    use super::super::prefixes::Kind;
    use super::*;

    #[test]
    fn what_is_missing_is_said_in_the_order_in_which_it_comes() {
        let config = Config {
            me: "home-0".parse().unwrap(),
            namespace: "leaderd".into(),
            settings: String::new(),
            state: "state".into(),
            own: [(names::CONTROL_KEY.to_owned(), "key".to_owned())].into(),
        };
        let node = |annotations: serde_json::Value| -> Node {
            let meta = json!({"name": "home-0", "annotations": annotations});
            serde_json::from_value(json!({ "metadata": meta })).unwrap()
        };
        let mut seen = Seen::default();
        let mut rendered = Rendered::default();
        let says = |seen: &Seen, rendered: &Rendered, mesh: Option<&Mesh>, words: &str| {
            let said = waits_for(&config, seen, Some(rendered), mesh);
            assert!(said.contains(words), "{said:?} has no {words:?}");
        };
        says(&seen, &rendered, None, "nodes, locationpools.leaderd.io, ConfigMap leaderd-mesh");
        seen.node(Event::Init);
        seen.node(Event::InitDone);
        seen.pool(Event::Init);
        seen.pool(Event::InitDone);
        seen.mesh(Event::<ConfigMap>::Init);
        seen.mesh(Event::InitDone);
        seen = seen.looking_at(&[Kind::Calico]);
        says(&seen, &rendered, None, "not read yet: blockaffinities");
        seen = seen.looking_at(&[]);
        says(&seen, &rendered, None, "a Node home-0");
        seen.node(Event::Apply(node(json!({}))));
        says(&seen, &rendered, None, "public keys");
        seen.node(Event::Apply(node(json!({names::CONTROL_KEY: "key"}))));
        says(&seen, &rendered, None, "a location");
        seen.node(Event::Apply(node(
            json!({names::CONTROL_KEY: "key", names::KILO_LOCATION: "home"}),
        )));
        says(&seen, &rendered, None, "ConfigMap");
        let subject = Subject::Node("home-0".into());
        rendered.problems = vec![Problem { subject, message: "no Pod CIDR".into() }];
        says(&seen, &rendered, None, "no Pod CIDR");
        rendered.problems.clear();
        let keys = |i: u8| ExampleKeys { wireguard: [i; 32], control: [100 + i; 32] };
        let text = example(&std::array::from_fn(|i| keys(i as u8 + 1)));
        let mesh = parse(&text).unwrap();
        says(&seen, &rendered, Some(&mesh), "with the keys");
        let mut without = mesh;
        without.nodes.remove(&config.me);
        says(&seen, &rendered, Some(&without), "that this node is in");
    }
}
