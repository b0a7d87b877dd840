use super::*;
use crate::fault::{Fault, MoveReason};

#[test]
fn new_events_are_emitted_once_and_old_ones_never() {
    let mut w = World::new();
    // A new pool gets no Events about the past.
    assert_eq!(w.pool_task("home-0").unwrap().1, []);
    w.write(NOW);
    assert_eq!(w.pool_task("home-0"), None);
    w.fail_over();
    let (wait, events) = w.pool_task("home-1").expect("the raft leader writes");
    assert_eq!(wait, Duration::ZERO);
    assert_eq!(
        (events.len(), events[0].reason.as_str(), events[0].warning, events[0].node.as_deref()),
        (1, "Failover", true, Some("home-0"))
    );
    assert_eq!(
        events[0].message,
        "home #2: what happened, number 2 (home-1 → home-0, epoch 2, cause new-flow)"
    );
    w.write(NOW);
    assert_eq!(w.pool_task("home-1"), None);
    // The blackout is measured later.
    w.events.last_mut().unwrap().blackout = Some(Duration::from_millis(512));
    let events = w.pool_task("home-1").unwrap().1;
    assert_eq!((events.len(), events[0].reason.as_str()), (1, "FailoverVerified"));
    assert!(events[0].message.ends_with("blackout 512 ms"), "{}", events[0].message);
    w.write(NOW);
    assert_eq!(w.pool_task("home-1"), None);
    let kinds = [
        (EventKind::Move, MoveReason::Promoted, "Promotion", false),
        (EventKind::Move, MoveReason::Drained, "Drain", false),
        (EventKind::FailStatic, Fault::Loss.into(), "FailStatic", true),
        (EventKind::Operator, MoveReason::Drained, "Operator", false),
    ];
    for (kind, cause, _, _) in kinds {
        w.happens(kind, cause, &["home-0"], &["home-1"], 2);
    }
    let emitted: Vec<_> =
        w.pool_task("home-1").unwrap().1.into_iter().map(|e| (e.reason, e.warning)).collect();
    assert_eq!(emitted, kinds.map(|k| (k.2.to_owned(), k.3)));
}

#[test]
fn at_most_ten_events_are_emitted_at_a_time() {
    let mut w = World::new();
    w.write(NOW);
    for _ in 0..40 {
        w.happens(EventKind::Notice, Fault::Loss.into(), &[], &[], 1);
    }
    let events = w.pool_task("home-0").unwrap().1;
    assert_eq!(events.len(), 10);
    assert!(events[9].message.contains("#41"));
}

#[test]
fn a_cut_off_and_a_long_detour_are_emitted_when_they_begin_and_end() {
    let mut w = World::new();
    let pair = crate::status::RelayPairStatus {
        location: "cloud".parse().unwrap(),
        near: vec![],
        far: vec![],
        detour: false,
        long: false,
        cut_off: false,
        since: NOW,
        why: None,
        tunnels: vec![],
    };
    w.status.relay_pairs = vec![pair];
    w.write(NOW);
    let emitted = |w: &mut World, set: (bool, bool)| {
        let pair = &mut w.status.relay_pairs[0];
        (pair.cut_off, pair.detour, pair.long) = (set.0, set.1, set.1);
        let events = w.pool_task("home-0").map(|t| t.1).unwrap_or_default();
        w.write(NOW);
        events.into_iter().map(|e| (e.reason, e.warning)).collect::<Vec<_>>()
    };
    let one = |reason: &str, warning| (reason.to_owned(), warning);
    assert_eq!(emitted(&mut w, (true, false)), [one("CutOff", true)]);
    assert_eq!(emitted(&mut w, (true, false)), [], "once");
    assert_eq!(emitted(&mut w, (false, true)), [one("Reached", false), one("LongDetour", true)]);
    assert_eq!(emitted(&mut w, (false, false)), [one("DetourEnded", false)]);
}
