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
        return "the API: nodes, locationpools.leaderd.io and ConfigMap leaderd-mesh were not read yet".to_owned();
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
