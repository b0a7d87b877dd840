use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::fixture::example_mesh;

/// Longest that a wait may take here.
const LONG: Duration = Duration::from_secs(60);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The example's mesh in which one endpoint, of a node of another location is a name; that node's key as well.
fn mesh(name: &str) -> (Mesh, NodeName, WgPublicKey) {
    let mut mesh = example_mesh();
    for (n, node) in (1..).zip(mesh.edit().nodes.values_mut()) {
        let address = Host::Ip(IpAddr::from([198, 51, 100, n]));
        node.endpoint = node.endpoint.take().map(|_| address);
    }
    let me = mesh.nodes.values().find(|n| n.slot.is_some()).unwrap().clone();
    let far = |n: &&mut leaderd_core::mesh::Node| n.slot.is_some() && n.location != me.location;
    let node = mesh.edit().nodes.values_mut().find(far).unwrap();
    node.endpoint = Some(Host::Name(name.to_owned()));
    let key = node.wireguard_key;
    (mesh, me.name, key)
}

fn resolver(me: &NodeName, state: &Path, lookup: Lookup) -> Resolver {
    Resolver::with(me.clone(), AddressCache::open(state), Clock::default(), lookup)
}

async fn changed(resolver: &mut Resolver, mesh: &Mesh) -> Resolved {
    timeout(LONG, resolver.changed(mesh)).await.expect("other addresses are in use")
}

fn answer(name: String, found: &[&str]) -> BoxFuture<'static, Answer> {
    let found = found.iter().map(|text| ip(text)).collect();
    Box::pin(std::future::ready((name, Ok(found))))
}

fn no_dns(name: String) -> BoxFuture<'static, Answer> {
    Box::pin(std::future::ready((name, Err("no DNS".to_owned()))))
}

#[tokio::test]
async fn an_address_that_cannot_be_an_endpoint_is_ignored_and_the_last_good_one_kept() {
    let (mesh, me, _) = mesh("relay.example");
    let own = mesh.node(&me).unwrap().address;
    let dir = tempfile::tempdir().unwrap();
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let mut resolver =
        resolver(&me, dir.path(), |name| match ASKED.fetch_add(1, Ordering::Relaxed) {
            0 => answer(name, &["203.0.113.9", "127.0.0.1"]),
            _ => answer(name, &["10.42.1.1", "0.0.0.0", "127.0.0.1", "255.255.255.255", "fe80::1"]),
        });
    assert!(
        mesh.unfit_endpoint(&me, ip("10.42.1.1")).is_some(),
        "the example carries 10.42.1.0/24"
    );
    resolver.set_mesh(&mesh);
    let first = resolver.first(&mesh, LONG).await;
    assert_eq!(first, [("relay.example".to_owned(), ip("203.0.113.9"))].into());
    resolver.names.get_mut("relay.example").unwrap().due = Some(Instant::now());
    while ASKED.load(Ordering::Relaxed) < 2 || resolver.names["relay.example"].due.is_none() {
        resolver.step(&mesh).await;
    }
    assert_eq!(resolver.addresses(), first);
    assert_eq!(resolver.names["relay.example"].refused.len(), 5, "each was told of");
    let again = resolver.names["relay.example"].due.unwrap();
    assert!(again <= Instant::now() + FIRST_RETRY, "that is a failure, and tried again soon");
    assert!(unfit(&mesh, &me, false, own).is_some() && unfit(&mesh, &me, true, own).is_none());
}

#[tokio::test]
async fn a_start_without_dns_uses_cached_addresses_at_once_and_asks_again_soon() {
    let (mesh, me, _) = mesh("relay.example");
    let dir = tempfile::tempdir().unwrap();
    let mut before = resolver(&me, dir.path(), |name| answer(name, &["203.0.113.9"]));
    before.set_mesh(&mesh);
    let known = before.first(&mesh, LONG).await;
    assert_eq!(known.len(), 1);
    before.cache.written().await;
    drop(before);

    static ASKED: AtomicU32 = AtomicU32::new(0);
    let mut after = resolver(&me, dir.path(), |name| {
        ASKED.fetch_add(1, Ordering::Relaxed);
        no_dns(name)
    });
    after.set_mesh(&mesh);
    assert_eq!(after.addresses(), known, "before anybody was asked");
    assert_eq!(after.first(&mesh, LONG).await, known);
    let mut waits = Vec::new();
    for failures in 1..=9 {
        let name = after.names.get_mut("relay.example").unwrap();
        name.due = Some(Instant::now());
        while after.names["relay.example"].failures < failures {
            after.step(&mesh).await;
        }
        let due = after.names["relay.example"].due.unwrap();
        waits.push((due - Instant::now()).as_secs_f64().ceil());
    }
    assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]);
    assert_eq!(after.addresses(), known);
    assert_eq!(ASKED.load(Ordering::Relaxed), 9);
}

#[tokio::test]
async fn a_start_that_knows_no_address_waits_for_the_first_answer_only() {
    let (mesh, me, _) = mesh("relay.example");
    let dir = tempfile::tempdir().unwrap();
    let mut failing = resolver(&me, dir.path(), no_dns);
    failing.set_mesh(&mesh);
    assert_eq!(failing.first(&mesh, LONG).await, Resolved::new());
    let mut hanging = resolver(&me, dir.path(), |_| Box::pin(std::future::pending()));
    hanging.set_mesh(&mesh);
    assert_eq!(hanging.first(&mesh, Duration::from_millis(50)).await, Resolved::new());
}

#[tokio::test]
async fn a_silent_endpoint_is_tried_at_the_next_address_of_its_name() {
    let (mesh, me, key) = mesh("relay.example");
    let dir = tempfile::tempdir().unwrap();
    let mut resolver =
        resolver(&me, dir.path(), |name| answer(name, &["2001:db8::9", "203.0.113.9"]));
    resolver.set_mesh(&mesh);
    let of = |resolved: Resolved| resolved["relay.example"];
    assert_eq!(of(resolver.first(&mesh, LONG).await), ip("2001:db8::9"));
    resolver.silent(&BTreeSet::new());
    assert_eq!(of(resolver.addresses()), ip("2001:db8::9"));
    resolver.silent(&[key].into());
    assert_eq!(of(changed(&mut resolver, &mesh).await), ip("203.0.113.9"), "and it is told of");
    resolver.silent(&[key].into());
    assert_eq!(of(resolver.addresses()), ip("203.0.113.9"), "it has its time");
    resolver.silent(&BTreeSet::new());
    assert_eq!(of(resolver.addresses()), ip("203.0.113.9"), "it works: it stays");
}

#[tokio::test]
async fn an_address_that_a_new_mesh_carries_is_no_endpoint_any_more() {
    let (mut mesh, me, _) = mesh("relay.example");
    let dir = tempfile::tempdir().unwrap();
    let mut resolver = resolver(&me, dir.path(), |name| answer(name, &["203.0.113.9"]));
    resolver.set_mesh(&mesh);
    assert_eq!(resolver.first(&mesh, LONG).await.len(), 1);
    let node = mesh.edit().nodes.values_mut().next().unwrap();
    node.prefixes.push("203.0.113.0/24".parse().unwrap());
    resolver.set_mesh(&mesh);
    assert_eq!(changed(&mut resolver, &mesh).await, Resolved::new());
}

#[tokio::test]
async fn a_damaged_cache_of_addresses_is_ignored_and_written_again() {
    let (mesh, me, _) = mesh("relay.example");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("endpoints.json"), "{\"relay.example\": 5").unwrap();
    let mut first = resolver(&me, dir.path(), |name| answer(name, &["203.0.113.9"]));
    first.set_mesh(&mesh);
    assert_eq!(first.addresses(), Resolved::new());
    first.first(&mesh, LONG).await;
    first.cache.written().await;
    let mut second = resolver(&me, dir.path(), no_dns);
    second.set_mesh(&mesh);
    assert_eq!(second.addresses().len(), 1);
}
