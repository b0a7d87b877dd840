//! `spec.policy` of a `LocationPool`: those fields of the policy that a pool may set, in camel case.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

use crate::mesh::{PolicyField, PolicyPatch};

/// What a pool sets of the policy, as its object has it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct PoolPolicy(pub PolicyPatch);

/// Returns the fields that a pool may set, by their names there.
fn fields() -> impl Iterator<Item = (String, PolicyField)> {
    let fields = PolicyPatch::fields().into_iter().filter(|f| f.pool.is_some());
    fields.map(|f| (camel_case(f.name), f))
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut all = words.next().unwrap_or_default().to_owned();
    for word in words {
        all.extend(word.chars().take(1).map(|c| c.to_ascii_uppercase()));
        all.extend(word.chars().skip(1));
    }
    all
}

impl Serialize for PoolPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entries = self.0.entries().into_iter();
        serializer.collect_map(entries.map(|(name, value)| (camel_case(name), value)))
    }
}

impl<'de> Deserialize<'de> for PoolPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Map::deserialize(deserializer)?;
        let mut patch = PolicyPatch::default();
        for (name, field) in fields() {
            let value = match object.get(&name) {
                None | Some(Value::Null) => continue,
                Some(value) => toml::Value::try_from(value).map_err(de::Error::custom)?,
            };
            // The API server has checked durations. One that is wrong all the same counts as not set.
            if !patch.set(&field, &value) && !value.is_str() {
                return Err(de::Error::custom(format!(
                    "spec.policy.{name}: {value} is of the wrong type"
                )));
            }
        }
        Ok(Self(patch))
    }
}

/// The API server refuses what is out of range, with a message that says the range.
#[cfg(feature = "schema")]
impl schemars::JsonSchema for PoolPolicy {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Policy".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let properties: Map<String, Value> =
            fields().map(|(name, field)| (name.clone(), property(&name, &field))).collect();
        schemars::json_schema!({
            "type": "object",
            "properties": properties,
            "x-kubernetes-validations": [{
                "message": "spec.policy.holdDownMax is shorter than spec.policy.holdDown: it bounds the hold-down once it has grown",
                "rule": "!has(self.holdDown) || !has(self.holdDownMax) || duration(self.holdDownMax) >= duration(self.holdDown)",
            }],
        })
    }
}

#[cfg(feature = "schema")]
fn property(name: &str, field: &PolicyField) -> Value {
    use serde_json::json;
    let mut rules = Vec::new();
    let mut rule = |rule: String, least: &str, most: &str| {
        let message = format!("spec.policy.{name} is out of range: {least} to {most}");
        rules.push(json!({"message": message, "rule": rule}));
    };
    let mut schema = match (&field.least, &field.most) {
        (toml::Value::String(least), toml::Value::String(most)) => {
            let at_most = format!("duration(self) <= duration('{most}')");
            let both = match least.as_str() {
                "0s" => at_most,
                _ => format!("duration(self) >= duration('{least}') && {at_most}"),
            };
            rule(both, least, most);
            json!({"type": "string", "maxLength": 20, "pattern": "^[0-9]{1,9}(us|ms|s|m|h)$"})
        }
        (toml::Value::Float(least), toml::Value::Float(most)) => {
            // Against an integer the API server compares bounds without their fraction.
            rule(format!("self >= {least}"), &least.to_string(), &most.to_string());
            json!({"type": "number", "format": "double", "minimum": least, "maximum": most})
        }
        (toml::Value::Integer(least), toml::Value::Integer(most)) => {
            json!({"type": "integer", "minimum": least, "maximum": most})
        }
        _ => json!({"type": "boolean"}),
    };
    schema["description"] = field.pool.into();
    if !rules.is_empty() {
        schema["x-kubernetes-validations"] = rules.into();
    }
    schema
}
