use super::*;
use crate::kubernetes::PoolRequests;
use crate::kubernetes::fixture::world::{NOW, World, later};

#[test]
fn a_pool_freezes_and_drains_and_undoes_only_what_it_did() {
    let home = || "home".parse().unwrap();
    let mut w = World::new();
    w.write(NOW);
    // What an operator did is left alone.
    w.home().frozen = Some(None);
    w.candidate("home-1").drained = true;
    w.write(NOW);
    assert_eq!(w.commands("home-0"), []);
    w.home().frozen = None;
    w.candidate("home-1").drained = false;
    // The status records a request before it is carried out.
    let spec = |w: &mut World, freeze: bool, drained: &[&str]| {
        let pool = w.view.pools.get_mut("home").unwrap();
        pool.generation += 1;
        pool.spec.freeze = freeze;
        pool.spec.drained = drained.iter().map(|d| (*d).to_owned()).collect();
    };
    spec(&mut w, true, &["home-1"]);
    assert_eq!(w.commands("home-0"), []);
    w.write(NOW);
    let freeze = AdminRequest::Freeze { location: home(), duration: None };
    let drain = AdminRequest::Drain { node: "home-1".parse().unwrap() };
    let zero = Duration::ZERO;
    assert_eq!(w.commands("home-0"), [(zero, freeze.clone()), (zero, drain.clone())]);
    assert!(w.commands("home-1").iter().all(|(wait, _)| *wait >= Duration::from_secs(1)));
    assert_eq!((w.commands("home-2"), w.commands("cloud-0")), (vec![], vec![]));
    w.home().frozen = Some(None);
    w.candidate("home-1").drained = true;
    w.write(NOW);
    assert_eq!(w.commands("home-0"), []);
    // A freeze with an end is not what was asked for.
    w.home().frozen = Some(Some(later(60)));
    assert_eq!(w.commands("home-0"), [(zero, freeze)]);
    w.home().frozen = Some(None);
    // No longer asked for: undone, and remembered until it is.
    spec(&mut w, false, &[]);
    w.write(NOW);
    let undo = [
        (zero, AdminRequest::Unfreeze { location: home() }),
        (zero, AdminRequest::Undrain { node: "home-1".parse().unwrap() }),
    ];
    assert_eq!(w.commands("home-0"), undo);
    w.write(later(1));
    assert_eq!(w.commands("home-0"), undo);
    // A daemon that cannot know does not forget it.
    let voter = w.clone();
    w.home().quorum = None;
    w.home().frozen = None;
    w.candidate("home-1").drained = false;
    w.write(later(2));
    w.status = voter.status.clone();
    assert_eq!(w.commands("home-0"), undo);
    w.home().frozen = None;
    w.candidate("home-1").drained = false;
    assert_eq!(w.write(later(3)).asked, PoolRequests::default());
    assert_eq!(w.commands("home-0"), []);
    // One that is no candidate for a while, and comes back as it was.
    spec(&mut w, false, &["home-1"]);
    w.write(later(4));
    w.candidate("home-1").drained = true;
    w.write(later(5));
    let with = w.status.clone();
    w.home().candidates.retain(|c| c.name.as_str() != "home-1");
    spec(&mut w, false, &[]);
    w.write(later(6));
    assert_eq!(w.commands("home-0"), []);
    w.status = with;
    w.write(later(7));
    assert_eq!(w.commands("home-0"), undo[1..]);
    w.candidate("home-1").drained = false;
    assert_eq!(w.write(later(8)).asked, PoolRequests::default());
}
