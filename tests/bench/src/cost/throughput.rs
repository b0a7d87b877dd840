//! How much passes through the leader while daemons run, and while all of them are stopped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lab::Lab;
use super::{daemons, median};

const PORT: u16 = 5001;
/// The workload of `l0-2`, the third node: behind whoever leads l0.
const SINK: &str = "10.42.3.10";
/// After the daemons go on, before anything is measured again.
const RECOVER: Duration = Duration::from_secs(5);

/// What this program does in the lab.
pub fn inside(args: &[&str]) -> Result<()> {
    match args {
        ["sink"] => {
            let listener = TcpListener::bind(("0.0.0.0", PORT))?;
            println!("ready");
            for stream in listener.incoming() {
                let (mut stream, mut buffer) = (stream?, vec![0; 1 << 16]);
                let mut total: u64 = 0;
                loop {
                    match stream.read(&mut buffer)? {
                        0 => break,
                        n => total += n as u64,
                    }
                }
                println!("{total}");
            }
            Ok(())
        }
        ["source", seconds] => {
            let time = Duration::from_secs(seconds.parse()?);
            let mut stream = TcpStream::connect((SINK, PORT))?;
            let (began, block) = (Instant::now(), vec![7; 1 << 16]);
            while began.elapsed() < time {
                stream.write_all(&block)?;
            }
            Ok(())
        }
        other => anyhow::bail!("{other:?}: nothing to do"),
    }
}

/// TCP from a workload elsewhere to one behind the leader, in turns with and without daemons.
pub fn compare(bin: &Path, rounds: u32, time: Duration) -> Result<String> {
    let me = std::env::current_exe()?;
    let lab = Lab::up(bin, 2)?;
    let mut sink = lab
        .in_pod("l0-2", &me, &["inside", "sink"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(sink.stdout.take().context("piped")?).lines();
    ensure!(lines.next().context("the sink starts")?? == "ready");
    let mut once = || -> Result<f64> {
        let seconds = time.as_secs().to_string();
        let sent = lab.in_pod("l1-2", &me, &["inside", "source", &seconds]).status()?;
        ensure!(sent.success(), "nothing could be sent through the mesh");
        let bytes: u64 = lines.next().context("the sink counts")??.parse()?;
        Ok(bytes as f64 * 8.0 / 1e6 / time.as_secs_f64())
    };
    let all = |signal: Signal| -> Result<()> {
        for pid in daemons::of_lab(lab.name())?.keys() {
            kill(Pid::from_raw(*pid as i32), signal)?;
        }
        Ok(())
    };
    // The first stream finds cold caches and small windows.
    once()?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        with.push(once()?);
        all(Signal::SIGSTOP)?;
        let measured = once();
        all(Signal::SIGCONT)?;
        without.push(measured?);
        std::thread::sleep(RECOVER);
    }
    let _ = sink.kill();
    let _ = sink.wait();
    let (with, without) = (median(&mut with), median(&mut without));
    Ok(format!(
        "One TCP stream of {} s between workloads of two locations, through the leader, {rounds} times in turns: median \
         **{with:.0} Mbit/s** with all daemons running, **{without:.0} Mbit/s** with all of them stopped (SIGSTOP): ratio \
         **{:.2}**. The data path stays when the daemons do not run. Userspace WireGuard and the emulated WAN share the \
         machine's cores, so only the ratio says something.\n",
        time.as_secs(),
        with / without
    ))
}
