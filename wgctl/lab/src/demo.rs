//! `wgctl lab demo`: the story of Kilo issue #489 in half a minute, on real packets.
//!
//! Two lines run live, one per meter, each mark a tenth of a second: full when every packet of it arrived, empty when
//! none did. Plain text; colour only on a terminal.

use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::admin::Event;
use crate::meter::{Meter, Meters, longest_outage, wall_micros};
use crate::play::Session;
use crate::sandbox::{LabDir, run_inside};
use crate::scenario::{Scenario, Step};
use crate::world::find_leaderd;

const SLOT: Duration = Duration::from_millis(100);
/// Marks are drawn this much later, so that packets in flight have arrived.
const LATE: Duration = Duration::from_millis(200);
const BEFORE: usize = 20;
const AFTER: usize = 40;
/// Slots to wait for the failover before giving up.
const PATIENCE: usize = 200;

const PICTURE: &str = "
      on-prem                                          cloud
   onprem-2 (pods)                                  cloud-2 (pods)
        │ VXLAN                                          │ VXLAN
   ┌────┴─────┬──────────┐      20 ms WAN     ┌──────────┼──────────┐
   │ onprem-0 │ onprem-1 │ ═══ WireGuard ═══  │ cloud-0  │  cloud-1 │
   │  leader  │ standby  │                    │  leader  │  standby │
   └──────────┴──────────┘                    └──────────┴──────────┘
";

pub fn demo(logs: Option<&Path>) -> Result<ExitCode> {
    let scenario = Scenario::load("kilo-489")?;
    let leaderd = find_leaderd()?;
    let dir = LabDir::create(&format!("demo-{}", std::process::id()))?;
    let logs = logs.map(Path::to_owned);
    let (code, _) = run_inside(&dir, move |dir, _| {
        println!(
            "A mesh of two locations, six nodes with a leaderd each, in network namespaces of this machine:\n{PICTURE}"
        );
        println!(
            "Starting. Two meters will send 1,000 packets a second each way between pods on onprem-2 and cloud-2."
        );
        let mut session = Session::start(&scenario, dir, leaderd, false)?;
        let told = tell(&mut session);
        if let Some(logs) = logs {
            session.world.save_logs(&logs)?;
        }
        told?;
        Ok(0)
    })?;
    Ok(ExitCode::from(code))
}

fn tell(session: &mut Session) -> Result<()> {
    let paint = Paint { on: std::io::stdout().is_terminal() };
    let gauges = session.settle()?;
    let meters = gauges.main();
    let leader = session.leader().unwrap_or_else(|| "no node".into());
    println!(
        "\nAll is well, {leader} leads. One mark is 0.1 s: █ all packets arrived, · none did.\n"
    );
    let start = wall_micros();
    let mut live = Live { paint, meters, start, drawn: 0, marks: [String::new(), String::new()] };
    live.draw(BEFORE);
    let injected = wall_micros();
    let step = Step {
        fault: Some("vxlan-new-flows".into()),
        node: Some("@leader".into()),
        inject: true,
        ..Step::default()
    };
    live.say(&format!(
        "Now {leader} drops every VXLAN packet of a new flow (Kilo issue #489). Ping works, tunnels are up, old flows run."
    ));
    session.step(&step)?;
    let mut event = None;
    for _ in 0..PATIENCE {
        live.draw(1);
        event = session.first_failover();
        if event.is_some() {
            break;
        }
    }
    let Some(event) = event else { bail!("no failover within {} s", PATIENCE / 10) };
    live.say(&format!("{} leads now.", event.leaders_after.join(", ")));
    live.draw(AFTER);
    live.end();
    let event = session.first_failover().unwrap_or(event);
    explain(&event, injected, meters, start);
    Ok(())
}

/// Tells what happened, from the event and the meters.
fn explain(event: &Event, injected: u64, meters: &Meters, since: u64) {
    let until = wall_micros() - LATE.as_micros() as u64;
    println!("\nWhat happened ({}#{}): {}", event.location, event.seq, event.summary);
    let t = &event.times;
    for (what, at) in [
        ("an observer lost a probe and suspected the leader", t.suspected),
        ("other locations found it broken, and the standby forwarding", t.condemned),
        ("the decision was committed by Raft", t.committed),
        ("the routes had moved", t.programmed),
        ("probes from workload to workload had proven it", t.verified),
    ] {
        if let Some(at) = at {
            println!("  {:>6.0} ms  {what}", (at as f64 - injected as f64) / 1e3);
        }
    }
    println!("\nMeasured by the meters, not by leaderd:");
    for (name, meter) in [("new flows", Meter::NewFlows), ("established flow", Meter::Established)]
    {
        let longest = meters
            .streams(meter)
            .iter()
            .map(|s| longest_outage(s, since, until).length)
            .max()
            .unwrap_or(0);
        let tally = meters.tally(meter, since, until);
        println!(
            "  {name:<17} blackout {:>4.0} ms, {} of {} packets lost",
            longest as f64 / 1e3,
            tally.lost,
            tally.sent
        );
    }
    println!(
        "\nIn the report this took 5 to 15 minutes. Next: wgctl lab list, wgctl lab up kilo-489."
    );
}

#[derive(Debug, Clone, Copy)]
struct Paint {
    on: bool,
}

impl Paint {
    fn mark(self, arrived: u64, sent: u64) -> String {
        const LEVELS: [char; 9] = ['·', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let level = (arrived * 8).checked_div(sent).unwrap_or(0) as usize;
        let mark = LEVELS[level.min(8)];
        match (self.on, level) {
            (false, _) => mark.to_string(),
            (true, 8..) => format!("\x1b[32m{mark}\x1b[0m"),
            (true, _) => format!("\x1b[31m{mark}\x1b[0m"),
        }
    }
}

/// The two live lines.
struct Live<'a> {
    paint: Paint,
    meters: &'a Meters,
    start: u64,
    drawn: u64,
    marks: [String; 2],
}

impl Live<'_> {
    /// Draws the next slots, as time goes on.
    fn draw(&mut self, slots: usize) {
        for _ in 0..slots {
            let from = self.start + self.drawn * SLOT.as_micros() as u64;
            let to = from + SLOT.as_micros() as u64 - 1;
            let due = to + LATE.as_micros() as u64;
            std::thread::sleep(Duration::from_micros(due.saturating_sub(wall_micros())));
            for (line, meter) in self.marks.iter_mut().zip([Meter::NewFlows, Meter::Established]) {
                let t = self.meters.tally(meter, from, to);
                line.push_str(&self.paint.mark(t.sent - t.lost, t.sent));
            }
            self.drawn += 1;
            if self.paint.on {
                print!(
                    "\r\x1b[2K  new flows   {}\n\x1b[2K  established {}\x1b[1A",
                    self.marks[0], self.marks[1]
                );
                let _ = std::io::stdout().flush();
            }
        }
    }

    /// Ends the lines drawn so far, says something, and goes on below.
    fn say(&mut self, text: &str) {
        self.end();
        println!("\n{text}\n");
    }

    fn end(&mut self) {
        if self.paint.on {
            print!("\n\n");
        } else {
            println!("  new flows   {}\n  established {}", self.marks[0], self.marks[1]);
        }
        self.marks = [String::new(), String::new()];
    }
}
