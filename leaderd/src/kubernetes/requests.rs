//! Requests to the API server. Every version in a request is a precondition: a daemon that comes second gets a conflict, and plans
//! again. Every request names its field manager, so that `managedFields` shows which fields are leaderd's.
//!
//! Fields that leaderd owns within an object are applied (server-side apply): labels and annotations of others stay. Fields that must go
//! whoever set them (Kilo's leader annotation, a condition of a node that no longer leads) are patched, and a status that is leaderd's
//! alone is replaced: an apply only gives up fields that no other manager claims.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Node, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Client, Resource as _};
use leaderd_core::ids::NodeName;
use leaderd_core::kubernetes::{
    Action, ChangeRefused, ClusterEvent, ClusterView, PoolStatus, RelayForwarding,
};
use serde_json::{Value, json};

use super::COMPONENT;
use super::api_health::{ApiError, call};
use super::convert::{CONDITION, MESH_KEY, REFUSED};
use super::crd::LocationPool;
use super::watch::MESH_OBJECT;

/// Namespace of Events about objects without a namespace, as for those of Kubernetes itself.
const EVENT_NAMESPACE: &str = "default";

/// Longest text of an Event, in bytes (validation of events.k8s.io/v1).
const MAX_NOTE: usize = 1024;

/// Sends requests in the name of this node.
#[derive(Clone)]
pub struct ApiClient {
    pub client: Client,
    pub namespace: String,
    pub me: NodeName,
}

/// A complete request: it needs no view of the cluster while it runs.
#[derive(Clone, PartialEq, Debug)]
pub enum ApiRequest {
    /// Checks whether the server responds. Cheap, and allowed to every daemon.
    Ping,
    /// Applies this node's own annotations.
    PublishKeys(BTreeMap<String, String>),
    Mesh {
        resource_version: Option<String>,
        text: String,
    },
    /// Patches a node. The events follow if that succeeds.
    Node {
        node: String,
        status: bool,
        patch: Value,
        events: Vec<Event>,
    },
    /// Replaces a pool's status. The events follow if that succeeds.
    Pool {
        pool: String,
        resource_version: String,
        status: Box<PoolStatus>,
        events: Vec<Event>,
    },
    Event(Box<Event>),
}

impl ApiRequest {
    /// Returns the request for an action; `None` if the action is no request to the API.
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
                let emitted = refused.iter().filter(|_| event);
                let events = emitted.map(|r| node_event((&node, &uid), r, me, now)).collect();
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

    /// Takes the events that follow this request.
    pub fn take_events(&mut self) -> Vec<Self> {
        match self {
            Self::Node { events, .. } | Self::Pool { events, .. } => {
                events.drain(..).map(|event| Self::Event(Box::new(event))).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Describes the request for the log.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Ping => "get of this node",
            Self::PublishKeys(_) => "annotations of this node",
            Self::Mesh { .. } => "ConfigMap leaderd-mesh",
            Self::Node { status: false, .. } => "annotations of a node",
            Self::Node { status: true, .. } => "condition of a node",
            Self::Pool { .. } => "status of a LocationPool",
            Self::Event(_) => "an Event",
        }
    }
}

impl ApiClient {
    /// Sends a request.
    ///
    /// # Errors
    /// If the server refuses it, or does not answer in time.
    pub async fn send(&self, request: ApiRequest) -> Result<(), ApiError> {
        let post =
            PostParams { field_manager: Some(COMPONENT.to_owned()), ..PostParams::default() };
        let ours = PatchParams::apply(COMPONENT);
        let nodes = || Api::<Node>::all(self.client.clone());
        match request {
            ApiRequest::Ping => call(nodes().get_metadata(self.me.as_str())).await.map(drop),
            ApiRequest::PublishKeys(annotations) => {
                let patch = Patch::Apply(own_annotations(&self.me, &annotations));
                call(nodes().patch_metadata(self.me.as_str(), &ours.force(), &patch))
                    .await
                    .map(drop)
            }
            ApiRequest::Mesh { resource_version, text } => {
                let api = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
                let object = mesh_object(resource_version.clone(), text);
                match resource_version {
                    // An apply without a version would overwrite an object that another daemon has created in the meantime.
                    None => call(api.create(&post, &object)).await.map(drop),
                    Some(_) => call(api.patch(MESH_OBJECT, &ours.force(), &Patch::Apply(&object)))
                        .await
                        .map(drop),
                }
            }
            ApiRequest::Node { node, status: false, patch, .. } => {
                let patch = Patch::Merge(patch);
                call(nodes().patch_metadata(&node, &ours, &patch)).await.map(drop)
            }
            ApiRequest::Node { node, status: true, patch, .. } => {
                let patch = Patch::Strategic(patch);
                call(nodes().patch_status(&node, &ours, &patch)).await.map(drop)
            }
            ApiRequest::Pool { pool, resource_version, status, events: _ } => {
                let kind = ApiResource::erase::<LocationPool>(&());
                let api = Api::<DynamicObject>::all_with(self.client.clone(), &kind);
                // A replacement, as a merge would keep fields that are gone. The subresource `status` leaves the spec alone.
                let mut object = DynamicObject::new(&pool, &kind).data(json!({ "status": status }));
                object.metadata.resource_version = Some(resource_version);
                call(api.replace_status(&pool, &post, &object)).await.map(drop)
            }
            ApiRequest::Event(event) => {
                let api = Api::<Event>::namespaced(self.client.clone(), EVENT_NAMESPACE);
                call(api.create(&post, &event)).await.map(drop)
            }
        }
    }
}

/// All annotations of this node's daemon on its own Node. The server refuses it if the Node does not exist: the account may not create
/// Nodes.
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

/// Returns a strategic merge patch of a node's status: conditions of other types than `kind` stay as they are. `before`: the current
/// status of the condition.
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

/// Returns the `action` of an Event from its reason.
fn event_action(reason: &str) -> &'static str {
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
    let action = event_action(&event.reason);
    Event { related, ..new_event(pool, action, (type_, event.reason, event.message), me, now) }
}

/// Returns the Event about a refused change of a node.
fn node_event(
    (name, uid): (&str, &str),
    refused: &ChangeRefused,
    me: &NodeName,
    now: Timestamp,
) -> Event {
    let node = node_reference(name.to_owned(), Some(uid.to_owned()));
    let words = ("Warning", refused.reason.to_owned(), refused.message.clone());
    new_event(node, "RefuseChange", words, me, now)
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

fn new_event(
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
            namespace: Some(EVENT_NAMESPACE.to_owned()),
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
    use leaderd_core::kubernetes::NodeChange;

    use super::*;

    fn me() -> NodeName {
        "cloud-0".parse().unwrap()
    }

    #[test]
    fn annotations_are_patched_with_the_version_as_precondition() {
        let change = NodeChange {
            node: "cloud-1".into(),
            resource_version: "12".into(),
            annotations: [("a".to_owned(), Some("x".to_owned())), ("b".to_owned(), None)].into(),
            why: String::new(),
        };
        let Some(ApiRequest::Node { node, status, patch, .. }) =
            ApiRequest::of(Action::Annotate(change), &ClusterView::default(), &me())
        else {
            panic!()
        };
        assert_eq!((node.as_str(), status), ("cloud-1", false));
        let wanted =
            json!({"metadata": {"resourceVersion": "12", "annotations": {"a": "x", "b": null}}});
        assert_eq!(patch, wanted);
    }

    #[test]
    fn a_condition_has_a_transition_time_only_if_its_status_changed() {
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
    fn a_refused_change_is_a_condition_and_an_event_of_its_node() {
        let mut view = ClusterView::default();
        let refused = ChangeRefused { reason: "KeyChanged", message: "other keys".into() };
        let action = |event| Action::ChangeRefused {
            node: "cloud-1".into(),
            uid: "u".into(),
            resource_version: "5".into(),
            refused: Some(refused.clone()),
            event,
        };
        let Some(ApiRequest::Node { node, status: true, patch, events }) =
            ApiRequest::of(action(true), &view, &me())
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
        let node = leaderd_core::kubernetes::ClusterNode {
            change_refused: Some(was),
            ..Default::default()
        };
        view.nodes.insert("cloud-1".into(), node);
        let Some(ApiRequest::Node { patch, events, .. }) =
            ApiRequest::of(action(false), &view, &me())
        else {
            panic!()
        };
        assert!(patch["status"]["conditions"][0].get("lastTransitionTime").is_none());
        assert_eq!(events, []);
    }

    #[test]
    fn an_event_is_about_its_pool_and_a_long_note_is_truncated() {
        let source = ClusterEvent {
            pool: "cloud".into(),
            pool_uid: "u".into(),
            node: Some("cloud-1".into()),
            warning: true,
            reason: "Failover".into(),
            message: "ü".repeat(MAX_NOTE),
        };
        let event = event(source, &ClusterView::default(), &me(), Timestamp::now());
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
