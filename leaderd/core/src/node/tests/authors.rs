//! Who may command which location, how often, and whose name stands in the event.

use super::*;
use crate::admin::Author;
use crate::mesh::Commands;

fn drain(node: &str) -> AdminRequest {
    AdminRequest::Drain { node: name(node) }
}

fn forward(id: u64, author: &str, request: AdminRequest) -> Frame {
    Frame::Forward { id, author: Author::new(name(author), Some("uid 7".into())), request }
}

/// What a node answered to a forwarded command, if it did at once.
fn answer(effects: &[Effect]) -> Option<String> {
    effects.iter().find_map(|e| match e {
        Effect::SendFrame { frame, .. } => match &**frame {
            Frame::Forwarded { response: AdminResponse::Refused { message }, .. } => {
                Some(message.clone())
            }
            Frame::Forwarded { response: AdminResponse::Done { message, .. }, .. } => {
                Some(message.clone())
            }
            _ => None,
        },
        _ => None,
    })
}

/// `cloud-0`, alone in its location and so its raft leader, and `home` with three candidates.
fn alone() -> Bench {
    let mut bench = Bench::of("cloud-0", mesh(1, 0, 0));
    settle(&mut bench);
    bench
}

/// Completes a node's writes until it has no more; the clock stands still.
fn write(bench: &mut Bench, mut effects: Vec<Effect>) -> Vec<Effect> {
    let mut done = 0;
    while let Some(effect) = effects.get(done) {
        done += 1;
        if let Effect::Persist { ticket, .. } = *effect {
            effects.extend(bench.feed(Input::Persisted { ticket }));
        }
    }
    effects
}

fn settle(bench: &mut Bench) {
    for _ in 0..100 {
        let effects = bench.later(Duration::from_millis(100));
        write(bench, effects);
    }
}

/// A frame, and all that is written for it.
fn told(bench: &mut Bench, from: &str, frame: Frame) -> Vec<Effect> {
    let effects = bench.frame(from, frame);
    write(bench, effects)
}

fn drained(bench: &Bench) -> bool {
    let cloud: LocationName = "cloud".parse().unwrap();
    bench.node.groups[&cloud].state().drained.contains(&name("cloud-0"))
}

#[test]
fn a_node_of_another_location_commands_nothing_unless_it_is_listed() {
    let mut bench = alone();
    let refused = answer(&bench.frame("home-0", forward(1, "home-0", drain("cloud-0")))).unwrap();
    assert!(refused.contains("home-0 may not command cloud"), "{refused}");
    let freeze = AdminRequest::Freeze { location: "cloud".parse().unwrap(), duration: None };
    assert!(answer(&bench.frame("home-0", forward(2, "home-0", freeze))).is_some());
    settle(&mut bench);
    assert!(!drained(&bench) && bench.node.status(bench.now).locations[0].frozen.is_none());

    for commands in [Commands::Of([name("home-0")].into()), Commands::All] {
        let mut bench = Bench::of("cloud-0", mesh(1, 0, 0).with(|m| m.commands = commands));
        settle(&mut bench);
        told(&mut bench, "home-0", forward(1, "home-0", drain("cloud-0")));
        assert!(drained(&bench));
        let events = bench.node.events();
        let author = events.last().unwrap().author.as_ref().unwrap().to_string();
        assert_eq!(author, "uid 7 on home-0");
    }
}

#[test]
fn an_operator_without_rights_is_refused_by_the_own_node_already() {
    let mut bench = Bench::new();
    let effects = bench.feed(admin(3, drain("cloud-0")));
    let refused = effects.iter().any(|e| {
        matches!(e, Effect::AdminReply { id: 3, response: AdminResponse::Refused { message } }
            if message.contains("home-0 may not command cloud"))
    });
    assert!(refused, "{effects:?}");
}

#[test]
fn only_nodes_of_the_location_pass_on_commands_of_others_and_they_are_named() {
    let listed = || commanded_by(mesh(1, 1, 0), &["home-1"]);
    let mut bench = Bench::of("cloud-0", listed());
    let refused = answer(&bench.frame("home-0", forward(1, "home-1", drain("cloud-0")))).unwrap();
    assert!(refused.contains("in the name of home-1"), "{refused}");

    let mut bench = Bench::of("cloud-0", commanded_by(mesh(1, 0, 0), &["home-1"]));
    settle(&mut bench);
    // A witness or another node of the location passes it on.
    let mut with_witness = mesh(1, 0, 1);
    with_witness.edit().commands = Commands::Of([name("home-1")].into());
    let mut witness = Bench::of("home-0", with_witness);
    assert_eq!(answer(&witness.frame("home-1", forward(4, "home-1", drain("cloud-0")))), None);
    told(&mut bench, "home-1", forward(4, "home-1", drain("cloud-0")));
    assert!(drained(&bench));

    let through = Author { through: Some(name("cloud-1")), ..Author::new(name("home-1"), None) };
    assert_eq!(through.to_string(), "home-1, says cloud-1");
}

#[test]
fn an_author_may_give_ten_commands_at_once_and_then_one_a_second_whatever_others_do() {
    let mut bench = Bench::of("cloud-0", mesh(1, 0, 0).with(|m| m.commands = Commands::All));
    settle(&mut bench);
    let toggle = |i: u64| {
        let node = name("cloud-0");
        if i.is_multiple_of(2) {
            AdminRequest::Drain { node }
        } else {
            AdminRequest::Undrain { node }
        }
    };
    let mut given = 0;
    for i in 0..100 {
        let effects = told(&mut bench, "home-0", forward(i, "home-0", toggle(given)));
        let refused = answer(&effects).is_some_and(|m| m.contains("one a second"));
        given += u64::from(!refused);
    }
    assert_eq!(given, 10);
    let other = answer(&bench.frame("home-1", forward(1, "home-1", toggle(given))));
    assert!(other.is_none_or(|m| !m.contains("one a second")));
    settle(&mut bench);
    let again = answer(&bench.frame("home-0", forward(101, "home-0", toggle(given + 1))));
    assert!(again.is_none_or(|m| !m.contains("one a second")));
}

#[test]
fn commands_of_one_author_that_wait_leave_room_for_those_of_others() {
    let mut bench = Bench::of("home-0", mesh(2, 1, 0).with(|m| m.commands = Commands::All));
    // No raft leader of the cloud is known: all commands are kept.
    let waits = |bench: &mut Bench, author: &str, id| {
        answer(&bench.frame(author, forward(id, author, drain("cloud-0")))).is_none()
    };
    let kept = (0..50).filter(|i| waits(&mut bench, "home-1", *i)).count();
    assert_eq!(kept, 8);
    assert!(waits(&mut bench, "home-2", 1));
}

#[test]
fn the_name_of_a_user_is_one_short_line() {
    let long = format!("root\n\u{1b}[2J{}", "x".repeat(500));
    let author = Author::new(name("home-0"), Some(long));
    let user = author.user.unwrap();
    assert!(user.chars().count() == 64 && user.chars().all(|c| !c.is_control()), "{user:?}");
}
