//! The custom resource `LocationPool`: a person's choices for a location, and leaderd's status of it.
//!
//! The API server checks everything that can be checked without looking at nodes, so that the author of a mistake sees it at once. Every
//! list, map and text is bounded: the server refuses rules (CEL) whose cost it cannot bound.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use leaderd_core::kubernetes::{CandidateRule, Pool, PoolPolicy, PoolSpec, PoolStatus, Steering};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a person asks of one location.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[kube(
    group = "leaderd.io",
    version = "v1alpha1",
    kind = "LocationPool",
    plural = "locationpools",
    shortname = "lp",
    category = "leaderd",
    doc = "Who may lead a location, and how eagerly leaderd moves its leader.",
    status = "RawStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name": "Location", "type": "string", "jsonPath": ".spec.location"}"#,
    printcolumn = r#"{"name": "Leader", "type": "string", "jsonPath": ".status.leader"}"#,
    printcolumn = r#"{"name": "Epoch", "type": "integer", "jsonPath": ".status.epoch"}"#,
    printcolumn = r#"{"name": "Cause", "type": "string", "jsonPath": ".status.cause"}"#,
    printcolumn = r#"{"name": "Since", "type": "date", "jsonPath": ".status.since"}"#,
    printcolumn = r#"{"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name": "Steering", "type": "string", "jsonPath": ".spec.steering", "priority": 1}"#,
    printcolumn = r#"{"name": "Standbys", "type": "string", "jsonPath": ".status.standbys", "priority": 1}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.steering != 'kilo' || !has(self.policy) || !has(self.policy.leaders) || self.policy.leaders == 1")
    .message("spec.policy.leaders: Kilo knows one leader of a location: leave it out, or set spec.steering to native"))]
pub struct LocationPoolSpec {
    /// The location: the value of the nodes' annotation kilo.squat.ai/location, else of their label
    /// topology.kubernetes.io/region. Cannot be changed.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.location cannot be changed: make another pool, and delete this one"))]
    pub location: String,
    /// Who may lead. Left out: every node of the location that can.
    #[serde(default, skip_serializing_if = "is_default")]
    pub candidates: Candidates,
    /// Nodes of other locations that vote here and never lead here. For locations with fewer than three nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), inner(length(min = 1, max = 63)))]
    #[x_kube(validation = Rule::new("self.all(x, self.exists_one(y, x == y))").message("spec.witnesses: a node is named twice"))]
    pub witnesses: Vec<String>,
    /// What is otherwise here than in the rest of the mesh.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: PoolPolicy,
    /// native: leaderd's own routes carry the workload. kilo: they do beside Kilo, which is told who leads. observe: nothing is changed.
    #[serde(default)]
    pub steering: SteeringKind,
    /// No automatic failover while true.
    #[serde(default)]
    pub freeze: bool,
    /// Nodes that shall not lead for now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(validation = Rule::new("self.all(x, self.exists_one(y, x == y))").message("spec.drained: a node is named twice"))]
    pub drained: Vec<String>,
}

/// Who may lead: nodes named, and nodes selected by label.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Candidates {
    /// Nodes of the location with all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub match_labels: BTreeMap<String, LabelValue>,
    /// Nodes by name, the preferred one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(validation = Rule::new("self.all(x, self.exists_one(y, x == y))").message("spec.candidates.names: a node is named twice"))]
    pub names: Vec<String>,
    /// Lower is preferred. Without: 100 for nodes selected by label, 10, 20, … for those named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub priorities: BTreeMap<String, u16>,
    /// At most so many candidates; 3 without it. Every candidate costs one more tunnel on every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 15))]
    pub max: Option<u8>,
}

/// The status, with the schema of [`PoolStatus`] but uninterpreted, so that one that a newer leaderd wrote can be read.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(transparent)]
pub struct RawStatus(pub Value);

impl JsonSchema for RawStatus {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        PoolStatus::schema_name()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        PoolStatus::json_schema(generator)
    }
}

/// The value of a label.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(transparent)]
#[schemars(inline)]
pub struct LabelValue(
    #[schemars(
        length(max = 63),
        regex(pattern = r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$")
    )]
    pub String,
);

/// How a decision reaches the data path.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum SteeringKind {
    #[default]
    Native,
    Kilo,
    Observe,
}

/// Returns the definition to apply.
pub fn definition() -> CustomResourceDefinition {
    let mut crd = LocationPool::crd();
    for version in &mut crd.spec.versions {
        let Some(schema) = &mut version.schema else { continue };
        let mut json = serde_json::to_value(&*schema).expect("a schema is JSON");
        plain(&mut json, false);
        keyed(&mut json["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"]);
        *schema = serde_json::from_value(json).expect("a schema without null is one");
    }
    crd
}

/// Removes what Rust's types add for `Option` and for numbers: the server drops a field that is `null` before it validates, and knows none
/// of Rust's formats. Defaults stay only in the spec, where a person reads them: a status never gets defaults.
fn plain(schema: &mut Value, in_status: bool) {
    match schema {
        Value::Object(fields) => {
            fields.remove("nullable");
            let unknown = |f: &Value| f.as_str().is_some_and(|f| f.starts_with("uint"));
            if fields.get("format").is_some_and(unknown) {
                fields.remove("format");
            }
            if in_status || fields.get("default").is_some_and(Value::is_null) {
                fields.remove("default");
            }
            for (name, field) in fields.iter_mut() {
                plain(field, in_status || name == "status");
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| plain(item, in_status)),
        _ => {}
    }
}

/// Makes conditions follow Kubernetes' conventions: one of each type.
fn keyed(conditions: &mut Value) {
    conditions["x-kubernetes-list-type"] = "map".into();
    conditions["x-kubernetes-list-map-keys"] = ["type"].into();
    let required = ["type", "status", "reason", "message", "lastTransitionTime"];
    conditions["items"]["required"] = required.into();
    conditions["items"]["properties"]["lastTransitionTime"]["format"] = "date-time".into();
}

/// Returns what `leaderd crd` prints.
///
/// # Errors
/// If the definition cannot be serialized.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    let text = serde_saphyr::to_string(&definition())?;
    Ok(format!("# Made by `leaderd crd`.\n{text}"))
}

impl From<LocationPool> for Pool {
    fn from(pool: LocationPool) -> Self {
        let meta = pool.metadata;
        Self {
            name: meta.name.unwrap_or_default(),
            resource_version: meta.resource_version.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            spec: pool.spec.into(),
            status: pool.status.map(|s| s.0),
        }
    }
}

impl From<LocationPoolSpec> for PoolSpec {
    fn from(spec: LocationPoolSpec) -> Self {
        let Candidates { match_labels, names, priorities, max } = spec.candidates;
        Self {
            location: spec.location,
            candidates: CandidateRule {
                match_labels: match_labels.into_iter().map(|(k, v)| (k, v.0)).collect(),
                names,
                priorities,
                max,
            },
            witnesses: spec.witnesses,
            policy: spec.policy.0,
            steering: match spec.steering {
                SteeringKind::Native => Steering::Native,
                SteeringKind::Kilo => Steering::Kilo,
                SteeringKind::Observe => Steering::Observe,
            },
            freeze: spec.freeze,
            drained: spec.drained.into_iter().collect(),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    const COMMITTED: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/leaderd/crds/locationpools.yaml");

    #[test]
    fn the_definition_in_the_chart_is_the_one_that_is_printed() {
        let committed = std::fs::read_to_string(COMMITTED).unwrap();
        assert!(
            committed == yaml().unwrap(),
            "run: leaderd crd > deploy/helm/leaderd/crds/locationpools.yaml"
        );
    }

    #[test]
    fn what_is_printed_is_the_definition() {
        let read: Value = serde_saphyr::from_str(&yaml().unwrap()).unwrap();
        assert_eq!(serde_json::from_value::<CustomResourceDefinition>(read).unwrap(), definition());
    }

    /// The server refuses rules over what has no bound, and knows neither Rust's formats nor `null` as a default.
    #[test]
    fn everything_in_the_spec_is_bounded() {
        fn walk(schema: &Value, at: &str, found: &mut Vec<String>) {
            let Value::Object(fields) = schema else { return };
            let has = |key: &str| fields.contains_key(key);
            match fields.get("type").and_then(Value::as_str) {
                Some("array") if !has("maxItems") => found.push(format!("{at}: maxItems")),
                Some("string") if !has("maxLength") && !has("enum") => {
                    found.push(format!("{at}: maxLength"));
                }
                Some("integer" | "number") if !has("maximum") => {
                    found.push(format!("{at}: maximum"))
                }
                Some("object") if has("additionalProperties") && !has("maxProperties") => {
                    found.push(format!("{at}: maxProperties"));
                }
                _ => {}
            }
            if has("nullable") || fields.get("default").is_some_and(Value::is_null) {
                found.push(format!("{at}: null"));
            }
            for inner in ["items", "additionalProperties"] {
                if let Some(inner) = fields.get(inner) {
                    walk(inner, at, found);
                }
            }
            for (name, property) in
                fields.get("properties").and_then(Value::as_object).into_iter().flatten()
            {
                walk(property, &format!("{at}.{name}"), found);
            }
        }
        let crd = serde_json::to_value(definition()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        let mut found = Vec::new();
        walk(&schema["spec"], "spec", &mut found);
        assert_eq!(found, [""; 0]);
        assert!(
            !schema["status"].to_string().contains("\"default\""),
            "a status never gets defaults"
        );
    }

    /// What `kubectl explain lp.spec` and `.status` read.
    #[test]
    fn every_field_is_explained() {
        fn walk(schema: &Value, at: &str, found: &mut Vec<String>) {
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                let at = format!("{at}.{name}");
                match field["description"].as_str() {
                    // What is in code quotes in the documentation of Rust's types is read as it is.
                    Some(text) if text.contains("[`") || text.contains("::") => {
                        found.push(format!("{at}: {text}"));
                    }
                    Some(text) if !text.is_empty() => {}
                    _ => found.push(at.clone()),
                }
                walk(field, &at, found);
                walk(&field["items"], &at, found);
            }
        }
        let crd = serde_json::to_value(definition()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut found = Vec::new();
        for part in ["spec", "status"] {
            assert!(schema["properties"][part]["properties"].is_object());
            walk(&schema["properties"][part], part, &mut found);
            if schema["properties"][part]["description"].is_null() {
                found.push(part.to_owned());
            }
        }
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn conditions_follow_the_conventions() {
        let crd = serde_json::to_value(definition()).unwrap();
        let status =
            &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
        let conditions = &status["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]));
        let condition =
            serde_json::to_value(leaderd_core::kubernetes::Condition::default()).unwrap();
        for field in conditions["items"]["required"].as_array().unwrap() {
            assert!(condition.get(field.as_str().unwrap()).is_some(), "{field} is always present");
        }
    }

    #[test]
    fn a_pool_has_the_values_of_its_object() {
        let object: LocationPool = serde_json::from_value(json!({
            "apiVersion": "leaderd.io/v1alpha1", "kind": "LocationPool",
            "metadata": {"name": "cloud", "resourceVersion": "9", "uid": "u", "generation": 4},
            "spec": {
                "location": "cloud",
                "candidates": {"matchLabels": {"relay": "yes"}, "names": ["b", "a"], "priorities": {"a": 5}, "max": 2},
                "witnesses": ["home-0"],
                "policy": {"probeInterval": "250us", "holdDown": "2m", "holdDownMax": "1h", "failBack": true, "lossThreshold": 0.5},
                "steering": "kilo", "freeze": true, "drained": ["a"],
            },
            "status": {"epoch": 3, "of a newer leaderd": {}},
        }))
        .unwrap();
        let pool = Pool::from(object);
        assert_eq!((pool.name.as_str(), pool.generation, pool.uid.as_str()), ("cloud", 4, "u"));
        assert_eq!(pool.spec.candidates.names, ["b", "a"]);
        assert_eq!(pool.spec.candidates.match_labels["relay"], "yes");
        assert_eq!((pool.spec.candidates.priorities["a"], pool.spec.candidates.max), (5, Some(2)));
        assert_eq!(pool.spec.policy.probe_interval, Some(Duration::from_micros(250)));
        assert_eq!(pool.spec.policy.hold_down, Some(Duration::from_secs(120)));
        assert_eq!(pool.spec.policy.hold_down_max, Some(Duration::from_secs(3600)));
        assert_eq!((pool.spec.policy.fail_back, pool.spec.policy.leaders), (Some(true), None));
        assert_eq!(pool.spec.steering, Steering::Kilo);
        assert!(pool.spec.freeze && pool.spec.drained.contains("a"));
        assert_eq!(pool.status.unwrap()["of a newer leaderd"], json!({}), "kept as it is");
    }

    #[test]
    fn a_pool_with_only_a_location_has_the_defaults() {
        let spec: LocationPoolSpec = serde_json::from_value(json!({"location": "cloud"})).unwrap();
        let wanted = PoolSpec { location: "cloud".into(), ..PoolSpec::default() };
        assert_eq!(PoolSpec::from(spec), wanted);
    }
}
