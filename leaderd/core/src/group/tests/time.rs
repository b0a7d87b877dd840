//! Hold-down, ejection and freezes, and clocks that are set back.

use std::time::Duration;

use super::cluster::{Cluster, MS, done, mesh, name};
use crate::admin::AdminRequest;

#[test]
fn hold_down_grows_while_a_fault_flaps() {
    let mut c = Cluster::settled(mesh(2, 1, 0), 15);
    let observers = ["home-0", "home-1", "home-2"];
    for _ in 0..60 {
        let leader = c.leaders()[&name("cloud-0")].1[0];
        c.report_failure(leader, &observers);
        c.run(1000);
        c.heal();
        c.run(1000);
    }
    let failovers = c.decided.iter().filter(|d| d.1 == name("member-0")).count() - 1;
    assert!((4..=7).contains(&failovers), "{failovers} in two minutes");
    let policy = c.mesh.policy.clone();
    let (_, hold) = c.groups[&name("cloud-0")].state().hold_down(&policy).unwrap();
    assert!(hold >= Duration::from_secs(8));
}

#[test]
fn a_clock_set_back_an_hour_neither_moves_the_leader_nor_holds_down_for_an_hour() {
    let observers = ["home-0", "home-1", "home-2"];
    let mut c = Cluster::settled(mesh(2, 1, 0), 25);
    c.report_failure(0, &observers);
    c.until(3000, "failover", |c| c.all_follow(1));
    c.heal();
    c.set_back = 3_600_000 * MS;
    let epochs = c.leaders();
    c.run(20_000);
    assert_eq!(c.leaders(), epochs, "the clock alone moves nothing");
    let state = c.groups[&name("cloud-0")].state();
    let (at, hold) = state.hold_down(&c.mesh.policy).unwrap();
    assert!(at > c.now().wall, "the failover lies in the future by now");
    assert!(hold <= Duration::from_secs(20), "{hold:?}");
    c.report_failure(1, &observers);
    c.until(3000, "failover although the clock says that the last one is yet to come", |c| {
        c.all_follow(0)
    });
}

#[test]
fn a_freeze_of_ten_minutes_ends_after_ten_minutes_though_the_clock_was_set_back() {
    let mut c = Cluster::settled(mesh(2, 1, 0), 26);
    let location = "cloud".parse().unwrap();
    let freeze = AdminRequest::Freeze { location, duration: Some(Duration::from_secs(600)) };
    assert!(done(&c.command(freeze)));
    // Until all have applied it.
    c.run(1000);
    c.set_back = 3_600_000 * MS;
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    c.run(594_000);
    assert!(c.all_follow(0), "frozen");
    let shown = |c: &Cluster| {
        let (g, now) = (&c.groups[&name("cloud-0")], c.now());
        g.freeze_end(now).map(|until| until.map(|until| until.0 - now.wall.0))
    };
    let left = shown(&c);
    assert!(left.flatten().is_some_and(|l| l < 6_000 * MS), "{left:?}");
    c.until(10_000, "failover once the freeze is over", |c| c.all_follow(1));
    c.run(5000);
    assert_eq!(shown(&c), None);
}

#[test]
fn a_freeze_lasts_no_longer_where_the_clock_is_behind() {
    use crate::election::Reports;
    let mut state = crate::state::LocationState::new("cloud".parse().unwrap());
    let hour = 3600 * 1000 * MS;
    let wall = crate::time::WallTime;
    let at = |seconds: u64, wall_micros| crate::time::Now {
        mono: crate::time::Instant(seconds * 1000 * MS),
        wall: wall(wall_micros + seconds * 1000 * MS),
    };
    // Proposed for ten minutes by a clock that is right; this node's is an hour behind.
    let right = 2 * hour;
    let until = crate::state::FreezeEnd {
        until: wall(right + 600 * 1000 * MS),
        span: Duration::from_secs(600),
    };
    state.apply(&crate::state::Command::Freeze { until: Some(until) });
    let mut reports = Reports::new(at(0, right - hour).mono);
    reports.note_state(at(0, right - hour), &state);
    assert!(reports.is_frozen(at(599, right - hour), &state));
    assert!(!reports.is_frozen(at(601, right - hour), &state));
    // Where it is ahead, the end by the wall clock comes first.
    assert!(!reports.is_frozen(at(1, right + hour), &state));
}
