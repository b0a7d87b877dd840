//! Policy: when to probe, to judge and to move. One table says each field's type, default and range; from it follow the values in
//! force ([`Policy`]), what one source sets ([`PolicyPatch`]), the mesh file's `[policy]` tables, and the policy of a `LocationPool`.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::Value;

use super::diagnostic::Sink;
use super::reader::Section;
use crate::duration;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
const fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

/// Where a field may be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    /// `[policy]` alone.
    Mesh,
    /// `[locations.NAME.policy]` too.
    Location,
}

/// One field of the policy.
#[derive(Debug)]
pub struct PolicyField {
    /// As in the mesh file.
    pub name: &'static str,
    /// What the schema of a `LocationPool` says of the field, if a pool may set it.
    pub pool: Option<&'static str>,
    /// As the mesh file has it: a text for durations.
    pub default: Value,
    pub least: Value,
    pub most: Value,
    scope: Scope,
    read: fn(&mut Section<'_, '_>, &mut PolicyPatch, &mut Sink<'_>),
    get: fn(&PolicyPatch) -> Option<Value>,
    set: fn(&mut PolicyPatch, &Value) -> bool,
}

/// A row: `name: type = default, range, where it may be set;` and, after `pool`, what the schema of a `LocationPool` says.
macro_rules! policy {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr, $range:expr, $scope:ident $(, pool $pool:literal)?;)*) => {
        /// How eagerly to probe, to judge and to move.
        #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
        pub struct Policy {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Default for Policy {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        /// What one source sets of the policy. The rest stays as it is in the policy that this is laid over.
        #[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
        pub struct PolicyPatch {
            $($(#[$doc])* pub $name: Option<$type>,)*
        }

        impl PolicyPatch {
            /// Returns the policy with the fields that this sets.
            pub fn over(&self, base: &Policy) -> Policy {
                Policy { $($name: self.$name.unwrap_or(base.$name),)* }
            }

            /// Returns all fields. Their order is that of the lines of a mesh file that leaderd renders.
            pub fn fields() -> Vec<PolicyField> {
                vec![$(PolicyField {
                    name: stringify!($name),
                    pool: [$($pool,)? ""].first().copied().filter(|text| !text.is_empty()),
                    default: Policy::default().$name.to_value(),
                    least: ends::<$type>($range).0,
                    most: ends::<$type>($range).1,
                    scope: Scope::$scope,
                    read: |table, patch, sink| patch.$name = <$type>::read(table, stringify!($name), $range, sink),
                    get: |patch| patch.$name.map(Setting::to_value),
                    set: |patch, value| {
                        let read = <$type>::of(value);
                        patch.$name = read;
                        read.is_some()
                    },
                },)*]
            }
        }
    };
}

policy! {
    /// Time between two rounds over all slots of a location that is watched at full rate.
    probe_interval: Duration = ms(100), ms(10)..=minutes(1), Location,
        pool "Time between two rounds of probes over all candidates, 10ms to 1m. 100ms without it.";
    /// The same for locations watched slowly.
    slow_probe_interval: Duration = seconds(2), ms(100)..=minutes(10), Location;
    /// Time between two probes of each service through every slot.
    service_interval: Duration = seconds(1), ms(100)..=minutes(10), Location;
    /// How many other locations watch each location at full rate.
    watchers: u8 = 3, 1..=15, Location;
    /// Probes a second that one node may send, bursts included. Half of it goes out at once, and a burst with fifteen candidates has
    /// 86 probes: with less than 200 none would ever be sent.
    probe_budget: u32 = 1000, 200..=100_000, Mesh;
    /// Least time to wait for a reply.
    min_probe_timeout: Duration = ms(20), ms(1)..=seconds(10), Mesh;
    /// Accepted false failovers per location and year.
    false_failovers_per_year: f64 = 0.01, 0.000_001..=1000.0, Location,
        pool "Accepted false failovers per year, 0.000001 to 1000. 0.01 without it.";
    /// Steady loss through a relay above which it counts as degraded when its standbys lose less (0 to 1).
    loss_threshold: f64 = 0.2, 0.01..=1.0, Location,
        pool "Steady loss above which a leader counts as degraded when its standbys lose less, 0.01 to 1. 0.2 without it.";
    /// Go back to the preferred candidate automatically once it forwards again.
    fail_back: bool = false, false..=true, Location,
        pool "Go back to the preferred candidate by itself once it forwards again. false without it.";
    /// Least time between two automatic failovers of a location; doubles with each recent one.
    hold_down: Duration = seconds(1), ms(0)..=minutes(60), Location,
        pool "Least time between two automatic failovers, 0s to 1h; it doubles with each recent one. 1s without it.";
    /// Upper bound of the grown hold-down; also the time in which it decays by half.
    hold_down_max: Duration = minutes(5), ms(1)..=minutes(24 * 60), Location,
        pool "Upper bound of the grown hold-down, 1ms to 24h. 5m without it.";
    /// How long a leader's daemon may be silent while its relay forwards before leadership moves to another candidate.
    daemon_dead_after: Duration = seconds(5), seconds(1)..=minutes(60), Location;
    /// How long without a quorum before nodes fall back to the local ranking.
    quorum_lost_after: Duration = seconds(10), seconds(1)..=minutes(60), Location;
    /// How many leaders a location has (more than one: ECMP).
    leaders: u8 = 1, 1..=15, Location,
        pool "How many leaders at once, 1 to 15; more than one share the traffic. 1 without it. With steering kilo: 1.";
}

impl PolicyPatch {
    /// Returns the fields that this sets and their values as the mesh file has them.
    pub fn entries(&self) -> Vec<(&'static str, Value)> {
        let set = |f: PolicyField| Some((f.name, (f.get)(self)?));
        Self::fields().into_iter().filter_map(set).collect()
    }

    /// Sets a field to a value as the mesh file has it, in range or not. Returns whether the value is of the field's type.
    pub fn set(&mut self, field: &PolicyField, value: &Value) -> bool {
        (field.set)(self, value)
    }

    fn read(table: &mut Section<'_, '_>, of_location: bool, sink: &mut Sink<'_>) -> Self {
        let mut patch = Self::default();
        for field in Self::fields() {
            if of_location && field.scope == Scope::Mesh {
                if let Some(at) = table.at_of(field.name) {
                    let message = format!(
                        "`{}.{}`: this is the same for all locations",
                        table.path, field.name
                    );
                    sink.push(at, message, "write it into [policy]");
                }
            } else {
                (field.read)(table, &mut patch, sink);
            }
        }
        patch
    }
}

/// Reads `[policy]`.
pub(super) fn read(table: Section<'_, '_>, sink: &mut Sink<'_>) -> Policy {
    read_over(table, &Policy::default(), false, sink)
}

/// Reads `[locations.NAME.policy]`, which is laid over the mesh's.
pub(super) fn read_of_location(
    table: Section<'_, '_>,
    mesh: &Policy,
    sink: &mut Sink<'_>,
) -> Policy {
    read_over(table, mesh, true, sink)
}

fn read_over(
    mut table: Section<'_, '_>,
    base: &Policy,
    of_location: bool,
    sink: &mut Sink<'_>,
) -> Policy {
    let policy = PolicyPatch::read(&mut table, of_location, sink).over(base);
    let (at, path) = (table.at, &table.path);
    if policy.slow_probe_interval < policy.probe_interval {
        let message =
            format!("`{path}.slow_probe_interval` is shorter than `{path}.probe_interval`");
        sink.push(at, message, "locations watched slowly are probed less often: make it longer");
    }
    if policy.hold_down_max < policy.hold_down {
        let message = format!("`{path}.hold_down_max` is shorter than `{path}.hold_down`");
        sink.push(at, message, "it bounds the hold-down once it has grown: make it longer");
    }
    table.finish(sink);
    policy
}

/// A type that a field of the policy may have.
trait Setting: Copy {
    /// Reads it from a table of the mesh file.
    fn read(
        table: &mut Section<'_, '_>,
        key: &'static str,
        range: RangeInclusive<Self>,
        sink: &mut Sink<'_>,
    ) -> Option<Self>;
    fn to_value(self) -> Value;
    fn of(value: &Value) -> Option<Self>;
}

fn ends<T: Setting>(range: RangeInclusive<T>) -> (Value, Value) {
    (range.start().to_value(), range.end().to_value())
}

impl Setting for Duration {
    fn read(
        table: &mut Section<'_, '_>,
        key: &'static str,
        range: RangeInclusive<Self>,
        sink: &mut Sink<'_>,
    ) -> Option<Self> {
        table.duration(key, range, sink).map(|found| found.value)
    }
    fn to_value(self) -> Value {
        duration::show(self).into()
    }
    fn of(value: &Value) -> Option<Self> {
        duration::parse(value.as_str()?)
    }
}

impl Setting for f64 {
    fn read(
        table: &mut Section<'_, '_>,
        key: &'static str,
        range: RangeInclusive<Self>,
        sink: &mut Sink<'_>,
    ) -> Option<Self> {
        table.float(key, range, sink).map(|found| found.value)
    }
    fn to_value(self) -> Value {
        self.into()
    }
    fn of(value: &Value) -> Option<Self> {
        value.as_float().or(value.as_integer().map(|n| n as f64))
    }
}

impl Setting for bool {
    fn read(
        table: &mut Section<'_, '_>,
        key: &'static str,
        _: RangeInclusive<Self>,
        sink: &mut Sink<'_>,
    ) -> Option<Self> {
        table.flag(key, sink).map(|found| found.value)
    }
    fn to_value(self) -> Value {
        self.into()
    }
    fn of(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

macro_rules! whole_number {
    ($($type:ty),*) => {$(
        impl Setting for $type {
            fn read(
                table: &mut Section<'_, '_>,
                key: &'static str,
                range: RangeInclusive<Self>,
                sink: &mut Sink<'_>,
            ) -> Option<Self> {
                let range = (*range.start()).into()..=(*range.end()).into();
                table.number(key, range, sink).map(|found| found.value as $type)
            }
            fn to_value(self) -> Value {
                i64::from(self).into()
            }
            fn of(value: &Value) -> Option<Self> {
                value.as_integer()?.try_into().ok()
            }
        }
    )*};
}

whole_number!(u8, u32);

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &Value) -> String {
        value.as_str().map_or_else(
            || value.as_float().map_or(value.to_string(), |f| f.to_string()),
            str::to_owned,
        )
    }

    #[test]
    fn what_a_pool_may_set_names_its_range_and_its_default() {
        for field in PolicyPatch::fields() {
            let Some(text) = field.pool else { continue };
            let default = format!("{} without it.", shown(&field.default));
            assert!(text.contains(&default), "{}: {text}", field.name);
            let range = format!("{} to {}", shown(&field.least), shown(&field.most));
            assert!(field.name == "fail_back" || text.contains(&range), "{}: {text}", field.name);
            assert_eq!(field.scope, Scope::Location, "{}", field.name);
        }
    }

    #[test]
    fn a_patch_changes_what_it_sets_and_nothing_else() {
        let mut patch = PolicyPatch::default();
        assert_eq!(patch.over(&Policy::default()), Policy::default());
        for field in PolicyPatch::fields() {
            assert!(patch.set(&field, &field.most), "{}", field.name);
        }
        let changed = patch.over(&Policy::default());
        for (field, (name, value)) in PolicyPatch::fields().into_iter().zip(patch.entries()) {
            assert_eq!((field.name, &value), (name, &field.most));
        }
        assert_eq!(PolicyPatch::default().over(&changed), changed);
        assert!(!patch.set(&PolicyPatch::fields()[0], &Value::from(5)), "a duration is a text");
    }
}
