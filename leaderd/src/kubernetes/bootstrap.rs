//! What a node without a mesh waits for.

use leaderd_core::kubernetes::{Rendered, Subject, names};
use leaderd_core::mesh::Mesh;

use super::Config;
use super::watch_cache::WatchCache;

/// Returns the first requirement that is missing. `rendered`: what the mesh would be, once the view is complete.
pub fn missing(
    config: &Config,
    cache: &WatchCache,
    rendered: Option<&Rendered>,
    mesh: Option<&Mesh>,
) -> String {
    let me = &config.me;
    let Some(rendered) = rendered.filter(|_| cache.is_complete()) else {
        return format!("the API: not read yet: {}", cache.unread().join(", "));
    };
    let Some(node) = cache.view.nodes.get(me.as_str()) else {
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
    match mesh.map(|mesh| mesh.node(me)) {
        None => "a mesh in ConfigMap leaderd-mesh".to_owned(),
        Some(None) => "a mesh that this node is in".to_owned(),
        Some(Some(_)) => "a mesh with the keys that this node has now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Node};
    use kube::runtime::watcher::Event;
    use leaderd_core::kubernetes::Problem;
    use leaderd_core::mesh::{ExampleKeys, example, parse};
    use serde_json::json;

    use super::super::prefixes::PrefixKind;
    use super::*;

    #[test]
    fn missing_requirements_are_named_in_order() {
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
        let mut cache = WatchCache::default();
        let mut rendered = Rendered::default();
        let read = |mut cache: WatchCache| {
            cache.apply_node(Event::Init);
            cache.apply_node(Event::InitDone);
            cache.apply_pool(Event::Init);
            cache.apply_pool(Event::InitDone);
            cache.apply_mesh(Event::<ConfigMap>::Init);
            cache.apply_mesh(Event::InitDone);
            cache
        };
        let says = |cache: &WatchCache, rendered: &Rendered, mesh: Option<&Mesh>, words: &str| {
            let said = missing(&config, cache, Some(rendered), mesh);
            assert!(said.contains(words), "{said:?} has no {words:?}");
        };
        says(&cache, &rendered, None, "nodes, locationpools.leaderd.io, ConfigMap leaderd-mesh");
        cache = read(WatchCache::new(None, &[PrefixKind::Calico]));
        says(&cache, &rendered, None, "not read yet: blockaffinities");
        cache = read(WatchCache::default());
        says(&cache, &rendered, None, "a Node home-0");
        cache.apply_node(Event::Apply(node(json!({}))));
        says(&cache, &rendered, None, "public keys");
        cache.apply_node(Event::Apply(node(json!({names::CONTROL_KEY: "key"}))));
        says(&cache, &rendered, None, "a location");
        cache.apply_node(Event::Apply(node(
            json!({names::CONTROL_KEY: "key", names::KILO_LOCATION: "home"}),
        )));
        says(&cache, &rendered, None, "ConfigMap");
        let subject = Subject::Node("home-0".into());
        rendered.problems = vec![Problem { subject, message: "no Pod CIDR".into() }];
        says(&cache, &rendered, None, "no Pod CIDR");
        rendered.problems.clear();
        let keys = |i: u8| ExampleKeys { wireguard: [i; 32], control: [100 + i; 32] };
        let text = example(&std::array::from_fn(|i| keys(i as u8 + 1)));
        let mesh = parse(&text).unwrap();
        says(&cache, &rendered, Some(&mesh), "with the keys");
        let mut without = mesh;
        without.edit().nodes.remove(&config.me);
        says(&cache, &rendered, Some(&without), "that this node is in");
    }
}
