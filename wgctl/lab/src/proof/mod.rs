//! Proof that the faults, the WAN and the meters do what they say, without leaderd: a mesh with fixed relays
//! (`crate::world`'s `program_fixed`), real packets, and for each fault the loss before, during and after.

mod worlds;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::meter::{Meter, Meters, TICK, longest_outage, wall_micros};
use crate::sandbox::{LabDir, run_inside};
use crate::scenario::Scenario;
use crate::world::World;
pub use worlds::prove_worlds;

const SCENARIO: &str = "title='proof'\nlocation='b'\n[locations.a]\nmembers=1\n[locations.b]\nmembers=1\n[meter]\nsize=1200\n";
/// How long each fault is at work, and how long its undo is measured.
const PHASE: Duration = Duration::from_millis(800);
/// After each change, packets under way are left out.
const GUARD: Duration = Duration::from_millis(200);

/// Phases in which a fault must be mended after its undo.
const MENDED_AFTER: usize = 3;

/// Share of packets lost, 0 to 1.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Loss {
    pub new_flows: f64,
    pub established: f64,
}

/// One fault on the relay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Proof {
    pub fault: String,
    pub during: Loss,
    pub after: Loss,
    /// Blackout of the new flows around the fault, milliseconds.
    pub blackout_ms: f64,
}

/// Fault, argument, node, and whether (new flows, the established flow) die of it.
type Case = (&'static str, Option<&'static str>, &'static str, (bool, bool));

const CASES: &[Case] = &[
    ("vxlan-new-flows", None, "b-0", (true, false)),
    ("vxlan-all", None, "b-0", (true, true)),
    ("forwarding-off", None, "b-0", (true, true)),
    ("sysctl-forwarding", None, "b-0", (true, true)),
    ("fdb-ghost-held", None, "b-0", (true, true)),
    ("mtu-blackhole", Some("1000"), "b-0", (true, true)),
    ("mtu-blackhole", Some("1300"), "b-0", (false, false)),
    ("size-window", Some("20-1400"), "b-0", (true, true)),
    ("size-window", Some("1300-1400"), "b-0", (false, false)),
    ("relay-loss", Some("100"), "b-0", (true, true)),
    ("flow-hash", Some("1"), "b-0", (true, true)),
    // The meters' flows begin at either end, and connection tracking begins with the fault.
    ("outward-new-flows", None, "b-0", (true, true)),
    ("wireguard-down", None, "b-0", (true, true)),
    ("wan-cut", None, "b-0", (true, true)),
    ("wan-loss", Some("100"), "b-0", (true, true)),
    ("wan-latency", Some("30"), "b-0", (false, false)),
    ("pair-cut", Some("a-0"), "b-0", (true, true)),
    ("pair-cut", Some("a-0 out"), "b-0", (true, true)),
    ("pair-cut", Some("a-0 in"), "b-0", (true, true)),
    ("pair-cut", Some("a-1"), "b-0", (false, false)),
    ("pair-loss", Some("a-0 100"), "b-0", (true, true)),
    ("pair-latency", Some("a-0 30"), "b-0", (false, false)),
    ("plane-forwarding-off", Some("0"), "b-0", (true, true)),
    ("location-cut", None, "b-1", (true, true)),
    ("lan-partition", None, "b-0", (true, true)),
    ("route-loop", None, "b-0", (true, true)),
    ("member-down", None, "b-1", (false, false)),
    ("node-crash", None, "b-0", (true, true)),
];

/// Runs all of it; an error names every fault that did not do what it says.
pub fn prove_faults() -> Result<Vec<Proof>> {
    let dir = LabDir::create(&format!("proof-{}", std::process::id()))?;
    let (code, out) = run_inside(&dir, |dir, mut pipe| {
        let (proofs, wrong) = inside(dir)?;
        std::io::Write::write_all(&mut pipe, &serde_json::to_vec(&(proofs, wrong))?)?;
        Ok(0)
    })?;
    if code != 0 {
        bail!("the lab ended with code {code}");
    }
    let (proofs, wrong): (Vec<Proof>, Vec<String>) =
        serde_json::from_slice(&out).context("no result")?;
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(proofs)
}

fn inside(dir: &LabDir) -> Result<(Vec<Proof>, Vec<String>)> {
    let scenario = Scenario::parse("proof", SCENARIO)?;
    let world = World::build(&scenario, dir, None)?;
    world.program_fixed(false)?;
    let (from, to) = world.topology.metered(&scenario)?;
    let (a, b) = (&world.nodes[from], &world.nodes[to]);
    let meters =
        Meters::start((&a.pod, a.pod_address(false)), (&b.pod, b.pod_address(false)), 1200, TICK)?;
    let mut wrong = Vec::new();
    std::thread::sleep(PHASE);
    let calm = measure(&meters);
    if calm.new_flows > 0.0 || calm.established > 0.0 {
        bail!("the mesh loses packets before any fault: {calm:?}");
    }
    let mut proofs = Vec::new();
    for (fault, arg, node, (new_die, old_die)) in CASES {
        let node = world.topology.node(node)?;
        let start = wall_micros();
        world.inject(node, fault, *arg).with_context(|| format!("{fault} cannot be injected"))?;
        let during = measure(&meters);
        world.undo(node, fault).with_context(|| format!("{fault} cannot be undone"))?;
        if ["node-crash", "member-down", "wireguard-down"].contains(fault) {
            // A booted node has an empty kernel, and the kernel drops a device's routes when it goes down.
            world.program_fixed(true)?;
        }
        // Neighbours are asked for again a second after a cable was plugged in.
        let mut after = measure(&meters);
        for _ in 0..MENDED_AFTER {
            if after.new_flows == 0.0 && after.established == 0.0 {
                break;
            }
            after = measure(&meters);
        }
        let streams = meters.streams(Meter::NewFlows);
        let longest =
            streams.iter().map(|s| longest_outage(s, start, wall_micros() - 300_000).length).max();
        let blackout_ms = longest.unwrap_or(0) as f64 / 1e3;
        let fault = arg.map_or_else(|| (*fault).to_owned(), |a| format!("{fault} {a}"));
        for (name, dies, loss) in [
            ("new flows", new_die, during.new_flows),
            ("the established flow", old_die, during.established),
        ] {
            // One direction is enough to break a conversation, so a dead meter shows half of its packets lost, or all.
            let right = if *dies { loss > 0.45 } else { loss < 0.01 };
            if !right {
                wrong.push(format!(
                    "{fault}: {:.1}% of {name} lost, expected {}",
                    loss * 100.0,
                    if *dies { "half or all" } else { "none" }
                ));
            }
        }
        if after.new_flows > 0.0 || after.established > 0.0 {
            wrong.push(format!("{fault}: not mended by its undo: {after:?}"));
        }
        proofs.push(Proof { fault, during, after, blackout_ms });
    }
    Ok((proofs, wrong))
}

/// Loss over one phase from now on, edges left out.
fn measure(meters: &Meters) -> Loss {
    std::thread::sleep(GUARD);
    let since = wall_micros();
    std::thread::sleep(PHASE);
    let until = wall_micros();
    std::thread::sleep(GUARD);
    let share = |m| {
        let t = meters.tally(m, since, until);
        t.lost as f64 / t.sent.max(1) as f64
    };
    Loss { new_flows: share(Meter::NewFlows), established: share(Meter::Established) }
}
