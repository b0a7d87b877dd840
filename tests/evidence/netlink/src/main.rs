//! Evidence for `docs/decisions/0002-own-netlink-and-uapi.md`: the same changes through our own netlink, `rtnetlink` and `nlink`.
//!
//! Our own encoder, socket and reader are compiled in from `wgctl/src/net`. Run it with `sh run`, which makes namespaces.

#[path = "../../../../wgctl/src/net/encode.rs"]
#[allow(dead_code)]
mod encode;
#[path = "../../../../wgctl/src/net/netlink.rs"]
#[allow(dead_code)]
mod netlink;
#[path = "../../../../wgctl/src/net/observe.rs"]
#[allow(dead_code)]
mod observe;
#[path = "../../../../wgctl/src/net/sysctl.rs"]
#[allow(dead_code)]
mod sysctl;
#[allow(dead_code)]
mod via_rtnetlink;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use netlink::Netlink;
use nlink::netlink::nexthop::NexthopGroupBuilder;
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::types::route::RouteProtocol;
use nlink::netlink::{Connection, Route};
use wgctl_plan::*;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const ROUTES: u32 = 1_000;
/// Repetitions of what takes microseconds, and of what takes milliseconds.
const SHORT: usize = 2_001;
const LONG: usize = 21;

fn id(n: u32) -> NexthopId {
    NexthopId(NEXTHOP_ID_BASE + n)
}

fn prefix(n: u32) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + (n << 8)), 24).expect("24 bits")
}

fn key(n: u32) -> RouteKey {
    RouteKey { table: 254, prefix: IpNet::V4(prefix(n)), metric: 76 }
}

fn via() -> RouteVia {
    RouteVia::Nexthop { id: id(0x1000), source: None }
}

/// The group through one of the two devices.
fn group(plane: u32) -> Change {
    Change::SetNexthop {
        id: id(0x1000),
        nexthop: Nexthop::Group { members: [id(2 * plane)].into() },
    }
}

/// Programs changes as `wgctl::net::Kernel` does.
fn ours(netlink: &mut Netlink, changes: &[Change]) -> Result<()> {
    for batch in changes.chunks(netlink::MAX_BATCH) {
        let mut messages = Vec::new();
        for change in batch {
            messages.extend(encode::encode(change)?);
        }
        for result in netlink.request(&messages)? {
            result?;
        }
    }
    Ok(())
}

/// The median time of `work`, in microseconds. `undo` is not counted.
async fn median<W: Future<Output = Result<()>>, U: Future<Output = Result<()>>>(
    times: usize,
    mut work: impl FnMut(usize) -> W,
    mut undo: impl FnMut(usize) -> U,
) -> Result<f64> {
    let mut took = Vec::new();
    for turn in 0..times {
        let began = Instant::now();
        work(turn).await?;
        took.push(began.elapsed());
        undo(turn).await?;
    }
    took.sort();
    Ok(took[took.len() / 2].as_secs_f64() * 1e6)
}

async fn nothing(_: usize) -> Result<()> {
    Ok(())
}

/// One runtime thread, as leaderd's network thread has.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let netlink = std::cell::RefCell::new(Netlink::open()?);
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let nlink = Connection::<Route>::new()?;

    let add: Vec<Change> =
        (0..ROUTES).map(|n| Change::AddRoute { key: key(n), via: via() }).collect();
    let remove: Vec<Change> = (0..ROUTES).map(|n| Change::RemoveRoute { key: key(n) }).collect();
    let mut set_up: Vec<Change> = (0..2u32)
        .map(|plane| {
            let dev = format!("d{plane}").parse().expect("a name");
            let nexthop = Nexthop::Device { dev, family: Family::V4 };
            Change::SetNexthop { id: id(2 * plane), nexthop }
        })
        .collect();
    set_up.push(group(0));
    ours(&mut netlink.borrow_mut(), &set_up)?;

    let undo = |_| {
        let result = ours(&mut netlink.borrow_mut(), &remove);
        async move { result }
    };
    // Microseconds of: ours, rtnetlink, nlink. A failover's message exists in the first and the last alone.
    let mut table: BTreeMap<&str, [Option<f64>; 3]> = BTreeMap::new();

    let changes = std::slice::from_ref;
    let adding = [
        Some(
            median(
                LONG,
                |_| {
                    let result = ours(&mut netlink.borrow_mut(), &add);
                    async move { result }
                },
                undo,
            )
            .await?,
        ),
        Some(
            median(
                LONG,
                |_| async {
                    let mut messages = Vec::new();
                    for change in &add {
                        messages.extend(via_rtnetlink::encode(change)?);
                    }
                    Ok(via_rtnetlink::request(&handle, messages).await?)
                },
                undo,
            )
            .await?,
        ),
        Some(
            median(
                LONG,
                |_| async {
                    let route = |n| {
                        let prefix = prefix(n);
                        Ipv4Route::new(prefix.addr(), prefix.prefix_len())
                            .metric(76)
                            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
                            .nexthop_group(id(0x1000).0)
                    };
                    // In one batch the acknowledgements overrun the socket's receive buffer (ENOBUFS).
                    let all: Vec<u32> = (0..ROUTES).collect();
                    for part in all.chunks(netlink::MAX_BATCH) {
                        let batch = part.iter().fold(nlink.batch(), |b, n| b.add_route(route(*n)));
                        batch.execute_all().await?;
                    }
                    Ok(())
                },
                undo,
            )
            .await?,
        ),
    ];
    table.insert("1,000 routes added", adding);

    ours(&mut netlink.borrow_mut(), &add)?;
    let failover = [
        Some(
            median(
                SHORT,
                |turn| {
                    let change = group(turn as u32 % 2);
                    let result = ours(&mut netlink.borrow_mut(), changes(&change));
                    async move { result }
                },
                nothing,
            )
            .await?,
        ),
        None,
        Some(
            median(
                SHORT,
                |turn| {
                    let builder = NexthopGroupBuilder::new(id(0x1000).0)
                        .member(id(2 * (turn as u32 % 2)).0, 1)
                        .protocol(ROUTE_PROTOCOL);
                    let nlink = &nlink;
                    async move { Ok(nlink.replace_nexthop_group(builder).await?) }
                },
                nothing,
            )
            .await?,
        ),
    ];
    table.insert("failover: one nexthop group replaced, 1,000 routes behind it", failover);

    let rule =
        Rule { family: Family::V4, priority: 76, from: None, to: None, iif: None, table: 760_001 };
    let rules = [Change::AddRule { rule: rule.clone() }, Change::RemoveRule { rule }];
    let one = [
        Some(
            median(
                SHORT - 1,
                |turn| {
                    let result = ours(&mut netlink.borrow_mut(), changes(&rules[turn % 2]));
                    async move { result }
                },
                nothing,
            )
            .await?,
        ),
        Some(
            median(
                SHORT - 1,
                |turn| {
                    let (handle, rules) = (&handle, &rules);
                    async move {
                        let message = via_rtnetlink::encode(&rules[turn % 2])?;
                        Ok(via_rtnetlink::request(handle, message.into_iter().collect()).await?)
                    }
                },
                nothing,
            )
            .await?,
        ),
        None,
    ];
    table.insert("one rule added or removed", one);

    let scope = observe::Scope::default();
    let read_by_us = || observe::observe(&mut netlink.borrow_mut(), &scope, |_| None);
    let mut network = read_by_us()?;
    network.nexthops = Shared::default();
    assert_eq!(via_rtnetlink::observe(&handle, &scope.links).await?, network, "they read the same");
    assert_eq!(network.routes.len(), ROUTES as usize);
    let reading = [
        Some(
            median(
                LONG,
                |_| {
                    let result = read_by_us().map(drop);
                    async move { Ok(result?) }
                },
                nothing,
            )
            .await?,
        ),
        Some(
            median(
                LONG,
                |_| async {
                    via_rtnetlink::observe(&handle, &scope.links).await?;
                    Ok(())
                },
                nothing,
            )
            .await?,
        ),
        Some(
            median(
                LONG,
                |_| async {
                    (nlink.get_links().await?, nlink.get_addresses().await?);
                    (nlink.get_routes().await?, nlink.get_nexthops().await?);
                    Ok(())
                },
                nothing,
            )
            .await?,
        ),
    ];
    table.insert("all read with 1,000 routes (nlink: into its own types)", reading);

    println!("{:62} {:>9} {:>9} {:>9}", "median µs", "ours", "rtnetlink", "nlink");
    for (what, times) in table {
        let text = |t: Option<f64>| t.map_or("-".to_owned(), |t| format!("{t:.1}"));
        let [a, b, c] = times.map(text);
        println!("{what:62} {a:>9} {b:>9} {c:>9}");
    }
    tokio::time::sleep(Duration::ZERO).await;
    Ok(())
}
