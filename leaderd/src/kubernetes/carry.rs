//! One request for each thing that is to be done in the cluster. Every version that is given is a precondition: who comes second
//! gets a conflict, and looks again. Every request names its field manager, so that `managedFields` says what is leaderd's.
//!
//! What leaderd says within an object, and all that it says there, is applied (server-side apply): labels and annotations that others
//! add to the object stay. What is to go whoever set it (Kilo's leader annotation, a condition of a node that leads no more), and a
//! status that is leaderd's alone, are patched and replaced: an apply only gives up what nobody else claims.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Node, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Client, Resource as _};
use leaderd_core::cluster::{
    Action, ChangeRefused, ClusterEvent, ClusterView, PoolStatus, RelayForwarding,
};
use leaderd_core::ids::NodeName;
use serde_json::{Value, json};

use super::COMPONENT;
use super::contact::{CallError, call};
use super::convert::{CONDITION, MESH_KEY, REFUSED};
use super::crd::LocationPool;
use super::seen::MESH_OBJECT;

/// Events about objects without a namespace go here, as those of Kubernetes itself do.
const EVENTS: &str = "default";

/// Longest text of an Event, in bytes (validation of events.k8s.io/v1).
const MAX_NOTE: usize = 1024;

/// Where and as whom requests are made.
#[derive(Clone)]
pub struct Carrier {
    pub client: Client,
    pub namespace: String,
    pub me: NodeName,
}

/// What is asked of the API, complete: no view is looked at while it is under way.
#[derive(Clone, PartialEq, Debug)]
pub enum Call {
    /// Is the server there? Cheap, and allowed to every daemon.
    Beat,
    Own(BTreeMap<String, String>),
    Mesh {
        resource_version: Option<String>,
        text: String,
    },
    /// The events are for after it.
    Node {
        node: String,
        status: bool,
        patch: Value,
        events: Vec<Event>,
    },
    /// The same.
    Pool {
        pool: String,
        resource_version: String,
        status: Box<PoolStatus>,
        events: Vec<Event>,
    },
    Event(Box<Event>),
}

impl Call {
    /// `None` for what is not asked of the API.
    pub fn of(action: Action, view: &ClusterView, me: &NodeName) -> Option<Self> {
        Some(match action {
            Action::Mesh { resource_version, text } => Self::Mesh { resource_version, text },
            Action::Annotate(change) => Self::Node {
                patch: json!({"metadata": {
                    "resourceVersion": change.resource_version,
                    "annotations": change.annotations,
                }}),
                node: change.node,
                status: false,
                events: Vec::new(),
            },
            Action::RelayForwarding { node, resource_version, condition } => {
                let before = view.nodes.get(&node).and_then(|n| n.relay_forwarding.as_ref());
                let before = before.map(|(status, _)| status.as_str());
                let patch = condition_patch(
                    CONDITION,
                    Some(&resource_version),
                    before,
                    condition,
                    Timestamp::now(),
                );
                Self::Node { node, status: true, patch, events: Vec::new() }
            }
            Action::ChangeRefused { node, uid, resource_version, refused, event } => {
                let now = Timestamp::now();
                let told = refused.iter().filter(|_| event);
                let events = told.map(|r| node_event((&node, &uid), r, me, now)).collect();
                let before = view.nodes.get(&node).and_then(|n| n.change_refused.as_ref());
                let before = before.map(|_| "True");
                let condition = refused.map(|r| RelayForwarding {
                    status: "True",
                    reason: r.reason.to_owned(),
                    message: r.message,
                });
                let patch =
                    condition_patch(REFUSED, Some(&resource_version), before, condition, now);
                Self::Node { node, status: true, patch, events }
            }
            Action::PoolStatus { pool, resource_version, status, events } => {
                let events = events.into_iter().map(|e| event(e, view, me, Timestamp::now()));
                Self::Pool { pool, resource_version, status, events: events.collect() }
            }
            Action::Command(_) => return None,
        })
    }

    /// For the log.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Beat => "get of this node",
            Self::Own(_) => "annotations of this node",
            Self::Mesh { .. } => "ConfigMap leaderd-mesh",
            Self::Node { status: false, .. } => "annotations of a node",
            Self::Node { status: true, .. } => "condition of a node",
            Self::Pool { .. } => "status of a LocationPool",
            Self::Event(_) => "an Event",
        }
    }
}

impl Carrier {
    /// Done once this returns, or not at all.
    pub async fn carry_out(&self, call_: Call) -> Result<(), CallError> {
        let post =
            PostParams { field_manager: Some(COMPONENT.to_owned()), ..PostParams::default() };
        let ours = PatchParams::apply(COMPONENT);
        let nodes = || Api::<Node>::all(self.client.clone());
        match call_ {
            Call::Beat => call(nodes().get_metadata(self.me.as_str())).await.map(drop),
            Call::Own(annotations) => {
                let patch = Patch::Apply(own_annotations(&self.me, &annotations));
                call(nodes().patch_metadata(self.me.as_str(), &ours.force(), &patch))
                    .await
                    .map(drop)
            }
            Call::Mesh { resource_version, text } => {
                let api = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
                let object = mesh_object(resource_version.clone(), text);
                match resource_version {
                    // An apply without a version would write over what somebody else has made in the meantime.
                    None => call(api.create(&post, &object)).await.map(drop),
                    Some(_) => call(api.patch(MESH_OBJECT, &ours.force(), &Patch::Apply(&object)))
                        .await
                        .map(drop),
                }
            }
            Call::Node { node, status: false, patch, .. } => {
                let patch = Patch::Merge(patch);
                call(nodes().patch_metadata(&node, &ours, &patch)).await.map(drop)
            }
            Call::Node { node, status: true, patch, .. } => {
                let patch = Patch::Strategic(patch);
                call(nodes().patch_status(&node, &ours, &patch)).await.map(drop)
            }
            Call::Pool { pool, resource_version, status, events: _ } => {
                let kind = ApiResource::erase::<LocationPool>(&());
                let api = Api::<DynamicObject>::all_with(self.client.clone(), &kind);
                // A replacement, as a merge would keep what is no longer said. The spec is not touched through `status`.
                let mut object = DynamicObject::new(&pool, &kind).data(json!({ "status": status }));
                object.metadata.resource_version = Some(resource_version);
                call(api.replace_status(&pool, &post, &object)).await.map(drop)
            }
            Call::Event(event) => {
                let api = Api::<Event>::namespaced(self.client.clone(), EVENTS);
                call(api.create(&post, &event)).await.map(drop)
            }
        }
    }
}

/// All that this node's daemon says of its own Node. The server refuses it where there is no such Node: the account may not make one.
fn own_annotations(me: &NodeName, annotations: &BTreeMap<String, String>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": me.as_str(), "annotations": annotations},
    })
}

fn mesh_object(resource_version: Option<String>, text: String) -> ConfigMap {
    let label = ("app.kubernetes.io/managed-by".to_owned(), COMPONENT.to_owned());
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(MESH_OBJECT.to_owned()),
            resource_version,
            labels: Some([label].into()),
            ..ObjectMeta::default()
        },
        data: Some([(MESH_KEY.to_owned(), text)].into()),
        ..ConfigMap::default()
    }
}

/// A strategic merge patch of a node's status: other conditions than that of type `kind` stay as they are. `before`: its status now.
pub fn condition_patch(
    kind: &str,
    resource_version: Option<&str>,
    before: Option<&str>,
    condition: Option<RelayForwarding>,
    now: Timestamp,
) -> Value {
    let condition = match condition {
        None => json!({"type": kind, "$patch": "delete"}),
        Some(RelayForwarding { status, reason, message }) => {
            let mut condition = json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": Time(now),
            });
            if before != Some(status) {
                condition["lastTransitionTime"] = json!(Time(now));
            }
            condition
        }
    };
    let mut patch = json!({"status": {"conditions": [condition]}});
    if let Some(version) = resource_version {
        patch["metadata"] = json!({ "resourceVersion": version });
    }
    patch
}

/// What leaderd did, of an Event's reason.
fn did(reason: &str) -> &'static str {
    match reason {
        "FailStatic" => "KeepLeader",
        "FailoverVerified" => "VerifyLeader",
        "Operator" => "Obey",
        "Notice" => "Observe",
        _ => "MoveLeader",
    }
}

fn event(event: ClusterEvent, view: &ClusterView, me: &NodeName, now: Timestamp) -> Event {
    let related = event.node.map(|name| {
        let uid = view.nodes.get(&name).map(|n| n.uid.clone());
        node_reference(name, uid)
    });
    let pool = ObjectReference {
        api_version: Some(LocationPool::api_version(&()).into()),
        kind: Some(LocationPool::kind(&()).into()),
        name: Some(event.pool),
        uid: Some(event.pool_uid),
        ..ObjectReference::default()
    };
    let type_ = if event.warning { "Warning" } else { "Normal" };
    let action = did(&event.reason);
    Event { related, ..told(pool, action, (type_, event.reason, event.message), me, now) }
}

/// What of a node is not taken into the mesh.
fn node_event(
    (name, uid): (&str, &str),
    refused: &ChangeRefused,
    me: &NodeName,
    now: Timestamp,
) -> Event {
    let node = node_reference(name.to_owned(), Some(uid.to_owned()));
    let words = ("Warning", refused.reason.to_owned(), refused.message.clone());
    told(node, "RefuseChange", words, me, now)
}

fn node_reference(name: String, uid: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        uid,
        name: Some(name),
        ..ObjectReference::default()
    }
}

fn told(
    regarding: ObjectReference,
    action: &str,
    (type_, reason, mut note): (&str, String, String),
    me: &NodeName,
    now: Timestamp,
) -> Event {
    if note.len() > MAX_NOTE {
        let end = (0..=MAX_NOTE - '…'.len_utf8()).rev().find(|i| note.is_char_boundary(*i));
        note.truncate(end.unwrap_or(0));
        note.push('…');
    }
    let of = regarding.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{of}-")),
            namespace: Some(EVENTS.to_owned()),
            ..ObjectMeta::default()
        },
        regarding: Some(regarding),
        event_time: Some(MicroTime(now)),
        type_: Some(type_.into()),
        action: Some(action.to_owned()),
        reason: Some(reason),
        note: Some(note),
        reporting_controller: Some(COMPONENT.to_owned()),
        reporting_instance: Some(me.to_string()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use leaderd_core::cluster::NodeChange;

    use super::*;

    fn me() -> NodeName {
        "cloud-0".parse().unwrap()
    }

    #[test]
    fn annotations_are_set_and_removed_under_the_version_that_was_seen() {
        let change = NodeChange {
            node: "cloud-1".into(),
            resource_version: "12".into(),
            annotations: [("a".to_owned(), Some("x".to_owned())), ("b".to_owned(), None)].into(),
            why: String::new(),
        };
        let Some(Call::Node { node, status, patch, .. }) =
            Call::of(Action::Annotate(change), &ClusterView::default(), &me())
        else {
            panic!()
        };
        assert_eq!((node.as_str(), status), ("cloud-1", false));
        let wanted =
            json!({"metadata": {"resourceVersion": "12", "annotations": {"a": "x", "b": null}}});
        assert_eq!(patch, wanted);
    }

    #[test]
    fn a_condition_says_when_its_status_changed_and_only_then() {
        let now: Timestamp = "2026-05-01T10:00:00Z".parse().unwrap();
        let condition = RelayForwarding {
            status: "False",
            reason: "Degraded".into(),
            message: "new flows die".into(),
        };
        let moved =
            condition_patch(CONDITION, Some("3"), Some("True"), Some(condition.clone()), now);
        assert_eq!(moved["metadata"]["resourceVersion"], "3");
        assert_eq!(moved["status"]["conditions"][0]["lastTransitionTime"], "2026-05-01T10:00:00Z");
        let same = condition_patch(CONDITION, None, Some("False"), Some(condition), now);
        assert!(same.get("metadata").is_none());
        assert!(same["status"]["conditions"][0].get("lastTransitionTime").is_none());
        let gone = condition_patch(CONDITION, None, Some("False"), None, now);
        assert_eq!(gone["status"]["conditions"], json!([{"type": CONDITION, "$patch": "delete"}]));
    }

    #[test]
    fn what_is_refused_of_a_node_is_a_condition_and_an_event_of_that_node() {
        let mut view = ClusterView::default();
        let refused = ChangeRefused { reason: "KeyChanged", message: "other keys".into() };
        let action = |event| Action::ChangeRefused {
            node: "cloud-1".into(),
            uid: "u".into(),
            resource_version: "5".into(),
            refused: Some(refused.clone()),
            event,
        };
        let Some(Call::Node { node, status: true, patch, events }) =
            Call::of(action(true), &view, &me())
        else {
            panic!()
        };
        let condition = &patch["status"]["conditions"][0];
        assert_eq!((node.as_str(), &condition["type"]), ("cloud-1", &json!(REFUSED)));
        assert_eq!(condition["reason"], "KeyChanged");
        assert!(condition.get("lastTransitionTime").is_some());
        let regarding = events[0].regarding.as_ref().unwrap();
        assert_eq!(
            (regarding.kind.as_deref(), regarding.uid.as_deref()),
            (Some("Node"), Some("u"))
        );
        assert_eq!(events[0].type_.as_deref(), Some("Warning"));
        let was = ("KeyChanged".to_owned(), "other keys".to_owned());
        let node =
            leaderd_core::cluster::ClusterNode { change_refused: Some(was), ..Default::default() };
        view.nodes.insert("cloud-1".into(), node);
        let Some(Call::Node { patch, events, .. }) = Call::of(action(false), &view, &me()) else {
            panic!()
        };
        assert!(patch["status"]["conditions"][0].get("lastTransitionTime").is_none());
        assert_eq!(events, []);
    }

    #[test]
    fn an_event_is_about_its_pool_and_a_text_that_is_too_long_is_cut() {
        let told = ClusterEvent {
            pool: "cloud".into(),
            pool_uid: "u".into(),
            node: Some("cloud-1".into()),
            warning: true,
            reason: "Failover".into(),
            message: "ü".repeat(MAX_NOTE),
        };
        let event = event(told, &ClusterView::default(), &me(), Timestamp::now());
        let regarding = event.regarding.unwrap();
        assert_eq!(
            (
                regarding.api_version.as_deref(),
                regarding.kind.as_deref(),
                regarding.name.as_deref()
            ),
            (Some("leaderd.io/v1alpha1"), Some("LocationPool"), Some("cloud"))
        );
        assert_eq!(event.related.unwrap().name.as_deref(), Some("cloud-1"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.reporting_controller.as_deref(), Some("leaderd"));
        let why = (event.reason.as_deref(), event.action.as_deref());
        assert_eq!(why, (Some("Failover"), Some("MoveLeader")));
        let note = event.note.unwrap();
        assert!(note.len() <= MAX_NOTE && note.ends_with('…'), "{} bytes", note.len());
    }
}
