//! The `[policy]` tables, the mesh's and those of locations: each field within its range, and a default where it is missing.

use std::time::Duration;

use super::diagnostic::Sink;
use super::model::Policy;
use super::reader::Section;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
const fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

macro_rules! set {
    ($table:ident, $sink:ident, $policy:ident.$field:ident = $read:ident($range:expr) as $ty:ty) => {
        if let Some(found) = $table.$read(stringify!($field), $range, $sink) {
            $policy.$field = found.value as $ty;
        }
    };
}

/// `[policy]`
pub(super) fn read(mut table: Section<'_, '_>, sink: &mut Sink<'_>) -> Policy {
    let mut policy = Policy::default();
    // Half of it goes out at once, and a burst with fifteen candidates has 86 probes: of less, none would ever be sent.
    set!(table, sink, policy.probe_budget = number(200..=100_000) as u32);
    set!(table, sink, policy.min_probe_timeout = duration(ms(1)..=ms(10_000)) as Duration);
    common(table, policy, sink)
}

/// `[locations.NAME.policy]`: what it says goes before the mesh's. What one node may send, and how long it waits at least, is not a
/// location's to say.
pub(super) fn read_of_location(
    mut table: Section<'_, '_>,
    mesh: &Policy,
    sink: &mut Sink<'_>,
) -> Policy {
    for field in ["probe_budget", "min_probe_timeout"] {
        if let Some(at) = table.at_of(field) {
            let message = format!("`{}.{field}`: this is the same for all locations", table.path);
            sink.push(at, message, "write it into [policy]");
        }
    }
    common(table, mesh.clone(), sink)
}

fn common(mut table: Section<'_, '_>, mut policy: Policy, sink: &mut Sink<'_>) -> Policy {
    set!(table, sink, policy.probe_interval = duration(ms(10)..=minutes(1)) as Duration);
    set!(table, sink, policy.slow_probe_interval = duration(ms(100)..=minutes(10)) as Duration);
    set!(table, sink, policy.service_interval = duration(ms(100)..=minutes(10)) as Duration);
    set!(table, sink, policy.watchers = number(1..=15) as u8);
    set!(table, sink, policy.false_failovers_per_year = float(0.000_001..=1000.0) as f64);
    set!(table, sink, policy.loss_threshold = float(0.01..=1.0) as f64);
    set!(table, sink, policy.hold_down = duration(ms(0)..=minutes(60)) as Duration);
    set!(table, sink, policy.hold_down_max = duration(ms(1)..=minutes(24 * 60)) as Duration);
    set!(table, sink, policy.daemon_dead_after = duration(ms(1_000)..=minutes(60)) as Duration);
    set!(table, sink, policy.quorum_lost_after = duration(ms(1_000)..=minutes(60)) as Duration);
    set!(table, sink, policy.leaders = number(1..=15) as u8);
    if let Some(found) = table.flag("fail_back", sink) {
        policy.fail_back = found.value;
    }
    let (at, path) = (table.at, table.path.clone());
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
