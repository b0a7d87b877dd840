//! Settings of several revisions at a time, while they are rolled out.

use super::*;

#[test]
fn old_settings_yield_during_a_rollout() {
    let of = |revision: u64, mtu: u16| {
        format!("[mesh]\nmtu = {mtu}\n[kubernetes]\nrevision = {revision}\n")
    };
    let mut view = two_locations();
    let put = |view: &mut ClusterView, settings: &str| {
        let text = render(view, settings).text.unwrap();
        view.mesh = Some(MeshObject { resource_version: "1".into(), text: text.into() });
    };
    put(&mut view, &of(4, 1420));
    assert!(!render(&view, &of(4, 1420)).outdated && !render(&view, &of(5, 1380)).outdated);
    put(&mut view, &of(5, 1380));
    let old = render(&view, &of(4, 1420));
    assert!(old.outdated && old.text.as_deref() != Some(view.mesh.as_ref().unwrap().text.as_str()));
    let wait = |settings: &str| {
        let (_, tasks) = crate::kubernetes::plan(
            &view,
            settings,
            &"home-0".parse().unwrap(),
            None,
            Default::default(),
        );
        tasks.iter().find(|t| t.key == "mesh").map(|t| t.wait)
    };
    assert!(wait(&of(4, 1420)) >= Some(std::time::Duration::from_secs(600)));
    assert_eq!(wait(&of(5, 1380)), None);
    assert!(wait(&of(6, 1400)) < Some(std::time::Duration::from_secs(5)));
}

#[test]
fn the_same_settings_of_an_earlier_revision_are_not_outdated() {
    let of = |revision: u64, mtu: u16| {
        format!("[mesh]\nmtu = {mtu}\n[kubernetes]\nrevision = {revision}\n")
    };
    let mut view = two_locations();
    let text = render(&view, &of(5, 1420)).text.unwrap();
    view.mesh = Some(MeshObject { resource_version: "1".into(), text: text.into() });
    let more = node(9, "home", "home-9");
    view.nodes.insert(more.name.clone(), more);
    let same = render(&view, &of(4, 1420));
    assert!(!same.outdated && same.mesh.unwrap().generation.0 == 2);
    assert!(render(&view, &of(4, 1380)).outdated);
    assert!(!render(&view, &of(6, 1380)).outdated);
    // What it writes does not open the door to settings in between, as after a rollback.
    view.mesh.as_mut().unwrap().text = same.text.unwrap().into();
    assert!(render(&view, &of(4, 1380)).outdated);
    // Another version may make another file from the same settings, and an early one records no settings: only the revision counts.
    let text = view.mesh.as_ref().unwrap().text.clone();
    let line = text.lines().find(|l| l.starts_with("# Settings of revision 5, ")).unwrap();
    let version = line.replace(env!("CARGO_PKG_VERSION"), "99.0.0");
    for other in [version.as_str(), "# Settings of revision 5"] {
        view.mesh.as_mut().unwrap().text = text.replace(line, other).into();
        assert!(render(&view, &of(4, 1420)).outdated, "{other}");
        assert!(!render(&view, &of(5, 1420)).outdated, "{other}");
    }
}
