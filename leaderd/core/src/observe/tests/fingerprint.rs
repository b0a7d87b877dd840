//! Temporary: a digest of all that an observer puts out.

use super::*;
use crate::mesh::{HttpRequest, Service};

fn build(kind: u64) -> Mesh {
    let mut mesh = mesh(match kind % 4 {
        0 => CLOUD,
        1 => PAIR_AND_MEMBER,
        _ => CLOUD_AND_MEMBERS,
    });
    if kind % 3 == 1 {
        mesh = dual_stack(mesh);
    }
    if kind % 4 >= 2 {
        let cloud = mesh.locations.get_mut(&"cloud".parse::<LocationName>().unwrap()).unwrap();
        let http = (kind % 5 < 3).then(|| HttpRequest { path: "/".into(), body: 4000 });
        cloud.services = vec![
            Service { address: "10.42.5.10:80".parse().unwrap(), http },
            Service { address: "10.42.6.10:5432".parse().unwrap(), http: None },
        ];
        if kind % 2 == 0 {
            cloud.reflectors = vec!["10.42.5.77:862".parse().unwrap()];
        }
    }
    mesh
}

fn fault(kind: u64, p: &Seen<'_>) -> Option<Fate> {
    let hit = match kind % 11 {
        0 => p.behind(0),
        1 => p.via == Some(0),
        2 => p.via == Some(0) && p.size > 1000 && p.class != ProbeClass::Service,
        3 => p.via == Some(0) && p.target == "cloud-3",
        4 => p.via == Some(0) && p.random < 0.4,
        5 => p.behind(0) && p.is_fresh(),
        6 => p.via == Some(0) && p.class == ProbeClass::Service,
        7 => p.at.as_millis() % 3000 < 1500,
        8 => p.class != ProbeClass::Relay && p.via.is_some(),
        _ => p.via == Some(1) && p.behind(1),
    };
    if !hit {
        return None;
    }
    let error = match kind % 7 {
        0 if p.is_fresh() && p.random < 0.5 => ProbeError::TimeExceeded { from: None },
        1 if p.size > 1000 => ProbeError::TooBig { mtu: Some(1000), from: None },
        2 => ProbeError::Unreachable { from: Some(p.address.ip()) },
        3 => ProbeError::Local { errno: 100 },
        4 if p.class == ProbeClass::Service => return Some(Fate::Connects(ms(20))),
        5 => return Some(if p.class == ProbeClass::Service { Fate::Lost } else { Fate::LostBack }),
        6 if p.random < 0.2 => return Some(Fate::Back(ms(700))),
        _ => return Some(Fate::Lost),
    };
    Some(Fate::Fails(error, ms(5)))
}

#[test]
fn digest_of_many_worlds() {
    let mut all = Vec::new();
    for kind in 0..44_u64 {
        let mut world = World::new(build(kind), kind, move |p: &Seen<'_>| {
            let rtt = Duration::from_micros(20_000 + (p.random * 3000.0) as u64);
            let on = (15_000..32_000).contains(&p.at.as_millis());
            let stray = kind % 3 == 0 && p.random > 0.98;
            let hit = if on { fault(kind, p) } else { None };
            hit.unwrap_or(if stray { Fate::Lost } else { Fate::Back(rtt) })
        });
        let cloud: LocationName = "cloud".parse().unwrap();
        world.observer.decided(world.clock(), &cloud, Epoch(1), &[Slot(0)]);
        world.run_until(ms(5_000));
        world.pause(ms(40 + kind * 3));
        world.run_until(ms(12_000));
        if kind % 2 == 0 {
            world.observer.set_mesh(world.clock(), Arc::new(build(kind)));
        }
        world.run_until(ms(18_000));
        world.observer.decided(world.clock(), &cloud, Epoch(2), &[Slot(1)]);
        world.run_until(ms(20_000));
        if kind % 3 == 0 {
            let mut next = build(kind);
            next.nodes.get_mut(&"cloud-1".parse::<NodeName>().unwrap()).unwrap().probe_addresses =
                vec!["10.42.3.9".parse().unwrap()];
            world.observer.readdress(world.clock(), Arc::new(next));
        }
        world.pause(ms(100));
        world.run_until(ms(45_000));
        let now = world.clock();
        let text = format!(
            "{:?}{:?}{:?}",
            world.observer.hidden_sources(&cloud),
            world.observer.view(now, &cloud),
            world.observer.rounds_left_out()
        );
        text.bytes().for_each(|b| {
            world.digest = (world.digest ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        });
        all.push(format!(
            "{kind} {:016x} sent {} reports {} logs {}",
            world.digest,
            world.sent.len(),
            world.reports.len(),
            world.logs.len()
        ));
    }
    std::fs::write("/tmp/h_obs_fingerprint.new", all.join("\n")).unwrap();
}
