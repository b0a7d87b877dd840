//! What this program does inside the lab: traffic, attacks, HTTP over a Unix socket, a port that is taken.
//!
//! It says `ready`, works until its standard input ends, then says its last words.

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::half_open;

/// Between two packets of a stream.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long a stream waits for what is still on its way.
const LINGER: Duration = Duration::from_secs(1);
/// Flows of a fresh stream that are open at once: two seconds of them.
const FLOWS: usize = 1000;

pub fn main(role: &str, args: &[String]) -> ExitCode {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match (role, args.as_slice()) {
        ("echo", [port]) => echo(port),
        ("stream", [target, port, kind]) => stream(&format!("{target}:{port}"), *kind == "fresh"),
        ("hold", [address]) => hold(address),
        ("http", [socket, method, path, body]) => http(socket, method, path, body),
        ("flood", [target, count]) => {
            println!("ready");
            // Slow enough for the daemon to see most of it.
            flood(target, count, Duration::from_micros(100), || false);
        }
        ("noise", [target, most]) => {
            let over = until_told();
            let told = || over.load(Ordering::Relaxed);
            println!("{}", flood(target, most, Duration::from_micros(300), told));
        }
        ("worst-peer", [dir, node]) => super::worst_peer::run(dir, node, until_told),
        ("half-open", [target, most]) => {
            let until = || {
                let over = until_told();
                Box::new(move || over.load(Ordering::Relaxed)) as Box<dyn Fn() -> bool>
            };
            println!("{}", half_open::flood(target, most.parse().expect("a number"), until));
        }
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

/// True once standard input has ended.
fn until_told() -> Arc<AtomicBool> {
    println!("ready");
    let over = Arc::new(AtomicBool::new(false));
    let theirs = over.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        theirs.store(true, Ordering::Relaxed);
    });
    over
}

fn echo(port: &str) {
    let socket = UdpSocket::bind(format!("0.0.0.0:{port}")).expect("a free port");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let over = until_told();
    let mut buffer = [0; 2048];
    while !over.load(Ordering::Relaxed) {
        if let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    }
}

/// Sends numbered packets and counts which come back. Says how many were sent, and how many lost.
fn stream(target: &str, fresh: bool) {
    let open = || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
        socket.set_nonblocking(true).expect("non-blocking");
        socket.connect(target).expect("an address");
        socket
    };
    let over = until_told();
    let (mut sockets, mut back) = (vec![open()], std::collections::BTreeSet::new());
    let mut collect = |sockets: &[UdpSocket]| {
        let mut buffer = [0; 2048];
        for socket in sockets {
            while let Ok(n) = socket.recv(&mut buffer) {
                if let Some(number) = buffer[..n].first_chunk::<8>() {
                    back.insert(u64::from_be_bytes(*number));
                }
            }
        }
    };
    let (began, mut sent) = (Instant::now(), 0u64);
    while !over.load(Ordering::Relaxed) {
        if fresh {
            sockets.push(open());
            if sockets.len() > FLOWS {
                collect(&sockets[..1]);
                sockets.remove(0);
            }
        }
        let mut packet = [0; 200];
        packet[..8].copy_from_slice(&sent.to_be_bytes());
        // A refusal of the local kernel is a loss like any other: what counts is what comes back.
        let _ = sockets.last().expect("one at least").send(&packet);
        sent += 1;
        if !fresh || sent % 50 == 0 {
            collect(&sockets);
        }
        let due = INTERVAL * u32::try_from(sent).expect("a short stream");
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    let ended = Instant::now();
    while ended.elapsed() < LINGER {
        collect(&sockets);
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("{sent} {}", sent - back.len() as u64);
}

/// Holds a UDP port.
fn hold(address: &str) {
    let _socket = UdpSocket::bind(address).expect("a free port");
    let over = until_told();
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn http(socket: &str, method: &str, path: &str, body: &str) {
    // `@N` is a body of N bytes that is no JSON.
    let body = match body.strip_prefix('@').and_then(|n| n.parse().ok()) {
        Some(n) => "x".repeat(n),
        None => body.to_owned(),
    };
    let mut stream = UnixStream::connect(socket).expect("the admin socket");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: leaderd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // A body that is too long may be refused before it was read.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    std::io::stdout().write_all(&answer).expect("written");
}

/// Sends datagrams of all lengths to one port: empty, noise, and what looks like STAMP, QUIC and WireGuard. Gives how many.
fn flood(target: &str, most: &str, interval: Duration, over: impl Fn() -> bool) -> u32 {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
    let target: SocketAddr = target.parse().expect("an address");
    let most = most.parse().expect("a number");
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut noise = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for sent in 0..most {
        if over() {
            return sent;
        }
        let length = (noise() % 1400) as usize;
        let mut packet: Vec<u8> = (0..length).map(|_| noise() as u8).collect();
        let prefix: &[u8] = match sent % 4 {
            0 => &[],
            // Sequence number and zeroes of an authenticated STAMP request (RFC 8762, 4.2.2).
            1 => &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            // A QUIC v1 Initial with an eight byte connection id.
            2 => &[0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0],
            // WireGuard's handshake initiation.
            _ => &[1, 0, 0, 0],
        };
        let n = prefix.len().min(packet.len());
        packet[..n].copy_from_slice(&prefix[..n]);
        let _ = socket.send_to(&packet, target);
        std::thread::sleep(interval);
    }
    most
}
