//! The `[policy]` table: defaults of [`Policy`], each field within its range.

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

pub(super) fn read(mut table: Section<'_, '_>, sink: &mut Sink<'_>) -> Policy {
    let mut policy = Policy::default();
    macro_rules! set {
        ($field:ident = $read:ident($range:expr) as $ty:ty) => {
            if let Some(found) = table.$read(stringify!($field), $range, sink) {
                policy.$field = found.value as $ty;
            }
        };
    }
    set!(probe_interval = duration(ms(10)..=minutes(1)) as Duration);
    set!(slow_probe_interval = duration(ms(100)..=minutes(10)) as Duration);
    set!(service_interval = duration(ms(100)..=minutes(10)) as Duration);
    set!(watchers = number(1..=15) as u8);
    set!(probe_budget = number(10..=100_000) as u32);
    set!(min_probe_timeout = duration(ms(1)..=ms(10_000)) as Duration);
    set!(false_failovers_per_year = float(0.000_001..=1000.0) as f64);
    set!(loss_threshold = float(0.01..=1.0) as f64);
    set!(hold_down = duration(ms(0)..=minutes(60)) as Duration);
    set!(hold_down_max = duration(ms(1)..=minutes(24 * 60)) as Duration);
    set!(daemon_dead_after = duration(ms(1_000)..=minutes(60)) as Duration);
    set!(quorum_lost_after = duration(ms(1_000)..=minutes(60)) as Duration);
    set!(leaders = number(1..=15) as u8);
    if let Some(found) = table.flag("fail_back", sink) {
        policy.fail_back = found.value;
    }
    let at = table.at;
    if policy.slow_probe_interval < policy.probe_interval {
        let message = "`policy.slow_probe_interval` is shorter than `policy.probe_interval`";
        sink.push(
            at,
            message.into(),
            "locations watched slowly are probed less often: make it longer",
        );
    }
    if policy.hold_down_max < policy.hold_down {
        let message = "`policy.hold_down_max` is shorter than `policy.hold_down`";
        sink.push(at, message.into(), "it bounds the hold-down once it has grown: make it longer");
    }
    table.finish(sink);
    policy
}
