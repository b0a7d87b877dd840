//! The WAN emulator against the kernel's `netem` with the same parameters: the same packets through both, and what became of
//! them. Needs root and the modules `sch_netem` and `tun`. Jitter is not compared: `netem` draws it anew for every packet,
//! ours wanders as queues do.

use std::fmt;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::ns::Namespace;
use crate::scenario::{Span, WanSpec};
use crate::wan::{Port, Wan, open_tun};

/// Bytes of IPv4 and UDP headers.
const HEADERS: usize = 28;
/// Bytes that `netem` counts for a packet besides what the emulator counts: the Ethernet header.
const ETHERNET: usize = 14;
/// No packet comes later than this.
const PATIENCE: Duration = Duration::from_millis(1500);
/// What a router's queue holds at most; the emulator's own bound.
const QUEUE: Duration = Duration::from_millis(250);

/// What the receiver saw of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Median of the time under way, in milliseconds.
    pub delay_ms: f64,
    /// 0 to 1.
    pub loss: f64,
    /// Megabit of IP packets a second, from the first to the last that arrived.
    pub rate_mbit: f64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.2} ms, {:.2}% lost, {:.3} Mbit/s",
            self.delay_ms,
            self.loss * 100.0,
            self.rate_mbit
        )
    }
}

/// One set of parameters, through both.
#[derive(Debug)]
pub struct Comparison {
    pub name: &'static str,
    pub ours: Seen,
    pub netem: Seen,
    /// What differs by more than it may.
    pub wrong: Vec<String>,
}

/// A path, the stream sent through it, and by how much the two may differ.
struct Case {
    name: &'static str,
    rtt: Duration,
    loss: f64,
    rate_mbit: f64,
    packets: u32,
    /// Of the whole IP packet.
    bytes: usize,
    every: Duration,
    tolerance: Tolerance,
}

#[derive(Default)]
struct Tolerance {
    delay_ms: Option<f64>,
    loss: Option<f64>,
    /// Share of `netem`'s rate.
    rate: Option<f64>,
}

fn cases() -> Vec<Case> {
    let ms = Duration::from_millis;
    let plain = |name, rtt| Case {
        name,
        rtt,
        loss: 0.0,
        rate_mbit: 0.0,
        packets: 300,
        bytes: 200,
        every: ms(5),
        // A wakeup of the emulator's thread for each packet, where netem has a timer in the kernel.
        tolerance: Tolerance { delay_ms: Some(2.0), loss: Some(0.0), rate: None },
    };
    // Two samples of 4,000 at 10% differ by a standard deviation of 0.67 points; once in 16,000 times by more than four.
    let loss = Tolerance { loss: Some(0.027), ..Tolerance::default() };
    vec![
        plain("a round trip of 20 ms", ms(20)),
        plain("a round trip of 160 ms", ms(160)),
        Case {
            loss: 0.1,
            packets: 4000,
            every: ms(1),
            tolerance: loss,
            ..plain("a loss of 10%", ms(20))
        },
        // Offered 10 Mbit/s: half of it is lost, and what arrives waited in a full queue.
        Case {
            rate_mbit: 5.0,
            packets: 4000,
            bytes: 1250,
            every: ms(1),
            tolerance: Tolerance {
                delay_ms: Some(0.05 * QUEUE.as_millis() as f64),
                loss: Some(0.03),
                rate: Some(0.03),
            },
            ..plain("a rate of 5 Mbit/s", ms(20))
        },
    ]
}

/// Runs all cases. Needs root, in a network namespace of its own or a machine that is.
pub fn compare() -> Result<Vec<Comparison>> {
    let ours = Ours::build()?;
    let netem = Netem::build()?;
    let mut all = Vec::new();
    for case in cases() {
        let spec = WanSpec {
            rtt: Span(case.rtt),
            loss: case.loss,
            rate_mbit: case.rate_mbit,
            ..WanSpec::default()
        };
        ours.wan.set(&spec);
        let through_ours = stream(&case, &ours.ends, [Ours::A, Ours::B])?;
        netem.set(&case)?;
        let through_netem = stream(&case, &netem.ends, [Netem::A, Netem::B])?;
        all.push(Comparison {
            name: case.name,
            wrong: wrong(&case.tolerance, through_ours, through_netem),
            ours: through_ours,
            netem: through_netem,
        });
    }
    Ok(all)
}

fn wrong(may: &Tolerance, ours: Seen, netem: Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |what: &str, most: Option<f64>, ours: f64, netem: f64| {
        if let Some(most) = most
            && (ours - netem).abs() > most
        {
            wrong.push(format!("{what}: {ours:.4} and {netem:.4}, may differ by {most:.4}"));
        }
    };
    check("delay in ms", may.delay_ms, ours.delay_ms, netem.delay_ms);
    check("loss", may.loss, ours.loss, netem.loss);
    check("rate", may.rate.map(|share| share * netem.rate_mbit), ours.rate_mbit, netem.rate_mbit);
    wrong
}

/// Sends the case's stream one way and looks at what arrives.
fn stream(case: &Case, ends: &[Namespace; 2], addresses: [Ipv4Addr; 2]) -> Result<Seen> {
    let open = |end: usize| ends[end].run(|| Ok(UdpSocket::bind((addresses[end], 0))?));
    let (from, to) = (open(0)?, open(1)?);
    from.connect(to.local_addr()?)?;
    let _ = nix::sys::socket::setsockopt(&to, nix::sys::socket::sockopt::RcvBuf, &(1 << 21));
    to.set_read_timeout(Some(PATIENCE))?;
    let receiver = thread::spawn(move || {
        let mut arrived: Vec<(u32, Instant)> = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok(n) = to.recv(&mut buffer) {
            if let Some(number) = buffer[..n].first_chunk() {
                arrived.push((u32::from_be_bytes(*number), Instant::now()));
            }
        }
        arrived
    });
    let mut packet = vec![0; case.bytes - HEADERS];
    let mut sent = Vec::new();
    let start = Instant::now();
    for number in 0..case.packets {
        thread::sleep((start + case.every * number).saturating_duration_since(Instant::now()));
        packet[..4].copy_from_slice(&number.to_be_bytes());
        sent.push(Instant::now());
        from.send(&packet).context("cannot send")?;
    }
    let arrived = receiver.join().map_err(|_| anyhow::anyhow!("the receiver's thread panicked"))?;
    ensure!(arrived.len() > 1, "nothing arrives through {}", case.name);
    let mut delays: Vec<Duration> =
        arrived.iter().map(|(number, at)| *at - sent[*number as usize]).collect();
    delays.sort();
    let span = arrived[arrived.len() - 1].1 - arrived[0].1;
    Ok(Seen {
        delay_ms: delays[delays.len() / 2].as_secs_f64() * 1e3,
        loss: 1.0 - arrived.len() as f64 / f64::from(case.packets),
        rate_mbit: (arrived.len() - 1) as f64 * case.bytes as f64 * 8.0 / span.as_secs_f64() / 1e6,
    })
}

/// Two nodes of two locations with nothing but the emulated WAN between them.
struct Ours {
    ends: [Namespace; 2],
    wan: Wan,
}

impl Ours {
    const A: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    const B: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

    fn build() -> Result<Self> {
        let ends = [Namespace::create(false)?, Namespace::create(false)?];
        let mut ports = Vec::new();
        for (i, address) in [Self::A, Self::B].into_iter().enumerate() {
            let tun = ends[i].run(|| open_tun("wan0"))?;
            ends[i].ip(&format!(
                "link set wan0 txqueuelen 1000 mtu 1500 up\naddr add {address}/24 dev wan0\n"
            ))?;
            ports.push(Port { tun, address, location: i, node: i });
        }
        Ok(Self { ends, wan: Wan::start(&WanSpec::default(), ports, 2, 2)? })
    }
}

/// Two namespaces joined by a veth pair with `netem` at both ends.
struct Netem {
    ends: [Namespace; 2],
}

impl Netem {
    const A: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

    fn build() -> Result<Self> {
        let ends = [Namespace::create(false)?, Namespace::create(false)?];
        ends[0]
            .ip(&format!("link add n0 type veth peer name n0 netns {}\n", ends[1].net_path()?))?;
        for (end, address) in ends.iter().zip([Self::A, Self::B]) {
            end.ip(&format!("addr add {address}/24 dev n0\nlink set n0 up\n"))?;
        }
        Ok(Self { ends })
    }

    fn set(&self, case: &Case) -> Result<()> {
        // Its queue is bounded in packets, and holds those on their way as well.
        let limit = match case.rate_mbit {
            0.0 => 100_000.0,
            rate => {
                let bits = (case.bytes + ETHERNET) as f64 * 8.0;
                rate * 1e6 * (QUEUE + case.rtt / 2).as_secs_f64() / bits
            }
        };
        let mut options = format!(
            "delay {}us loss {}% limit {limit:.0}",
            (case.rtt / 2).as_micros(),
            case.loss * 100.0
        );
        if case.rate_mbit > 0.0 {
            // The Ethernet header is no part of the packet: `rate RATE PACKETOVERHEAD`.
            options += &format!(" rate {}bit -{ETHERNET}", case.rate_mbit * 1e6);
        }
        for end in &self.ends {
            // Not `change`, which keeps what is not named.
            let _ = end.output("tc", &["qdisc", "del", "dev", "n0", "root"]);
            let mut command = vec!["qdisc", "add", "dev", "n0", "root", "netem"];
            command.extend(options.split(' '));
            end.output("tc", &command)?;
        }
        Ok(())
    }
}
