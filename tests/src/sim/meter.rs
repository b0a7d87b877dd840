//! Measures traffic without the cores: once per virtual millisecond, would a new flow get through, each way?
//!
//! [`measure_tcp`] opens TCP connections besides, through relays that drop what their connection tracking calls invalid.

use std::time::Duration;

use leaderd_core::ids::NodeName;
use wgctl_plan::Family;

use super::World;
use super::conntrack::{Connection, Conntrack, Segment, is_untracked};
use super::path::Fate;

/// What the meter measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub sent: u32,
    pub lost: u32,
    /// The longest time without a delivery, in milliseconds.
    pub longest_gap: u32,
}

/// Lets `time` pass and measures every millisecond, both ways between two nodes' workloads.
pub fn measure(world: &mut World, a: &NodeName, b: &NodeName, time: Duration) -> Reading {
    let mut reading = Reading::default();
    let mut gaps = [0; 2];
    for _ in 0..time.as_millis() {
        world.run_for(Duration::from_millis(1));
        for (gap, (from, to)) in gaps.iter_mut().zip([(a, b), (b, a)]) {
            reading.sent += 1;
            reading.count(gap, world.delivers(from, to));
        }
    }
    reading
}

impl Reading {
    fn count(&mut self, gap: &mut u32, arrives: bool) {
        if arrives {
            *gap = 0;
            return;
        }
        self.lost += 1;
        *gap += 1;
        self.longest_gap = self.longest_gap.max(*gap);
    }
}

/// What [`measure_tcp`] measured. Times in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpReading {
    /// Connections that were tried, and that did not open.
    pub tried: u32,
    pub failed: u32,
    /// The longest time in which none opened, of the two directions the worse one.
    pub none_opens: u32,
    /// The longest time in which the packets of a new flow did not arrive both ways, whatever the relays remember.
    pub blackout: u32,
}

/// Lets `time` pass, and every millisecond opens a TCP connection between two workloads, each from either side. Relays drop what is
/// invalid to connection tracking. A handshake takes no time: round trips are no part of the reading.
pub fn measure_tcp(world: &mut World, a: &NodeName, b: &NodeName, time: Duration) -> TcpReading {
    let mut reading = TcpReading::default();
    let mut relays = Conntrack::default();
    let (mut closed, mut out) = ([0; 2], Reading::default());
    let mut dark = 0;
    for number in 0..time.as_millis() as u64 {
        world.run_for(Duration::from_millis(1));
        for (gap, (from, to)) in closed.iter_mut().zip([(a, b), (b, a)]) {
            reading.tried += 1;
            let connection = (from.clone(), to.clone(), number);
            out.count(gap, opens(world, &mut relays, &connection, Family::V4));
        }
        relays.forget_before(number);
        dark = if world.delivers(a, b) && world.delivers(b, a) { 0 } else { dark + 1 };
        reading.blackout = reading.blackout.max(dark);
    }
    (reading.failed, reading.none_opens) = (out.lost, out.longest_gap);
    reading
}

/// Returns whether a new TCP connection opens now, and carries data both ways: SYN, SYN-ACK, and two packets of data.
pub fn opens(
    world: &World,
    relays: &mut Conntrack,
    connection: &Connection,
    family: Family,
) -> bool {
    let handshake = [
        (Segment::Syn, false),
        (Segment::SynAck, true),
        (Segment::Ack, false),
        (Segment::Ack, true),
    ];
    handshake.iter().all(|(segment, reply)| {
        let (from, to) = match reply {
            false => (&connection.0, &connection.1),
            true => (&connection.1, &connection.0),
        };
        // All packets are of one flow, so they are as new as the first.
        let packet = world.workload_packet(from, to, family, true);
        let Some(packet) = packet else { return false };
        let Fate::Delivered { node, crossed, .. } = world.data_path().walk(from, &packet) else {
            return false;
        };
        // The two ends see all packets of the connection.
        let between = crossed.iter().filter(|n| *n != from && *n != to);
        node == *to
            && between
                .filter(|r| !is_untracked(&world.kernels[*r], packet.source, packet.target))
                // All of them see the packet, as far as none before has dropped it.
                .all(|relay| relays.admit(relay, connection, *segment, *reply))
    })
}
