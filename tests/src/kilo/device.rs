//! `kilo0` and Kilo's routes on one node: what is wanted, done in Kilo's order (address, configuration, link, routes last).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result};
use wgctl_lab::LabNode;

use super::rules::{DEVICE, PORT, Wanted};
use crate::bench_peers::systems::overlay;

/// What was programmed last.
#[derive(Debug)]
pub struct Device {
    secret: String,
    configuration: String,
    wanted: Wanted,
}

impl Device {
    /// Makes a key, which Kilo has of its own, and the device, which stays down. Also its public key.
    pub fn create(node: &LabNode) -> Result<(Self, String)> {
        let secret = node.ns.output("wg", &["genkey"])?.trim().to_owned();
        let mut child = node
            .ns
            .command("wg")
            .arg("pubkey")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("wg pubkey")?;
        child.stdin.take().context("no stdin")?.write_all(secret.as_bytes())?;
        let public = String::from_utf8(child.wait_with_output()?.stdout)?.trim().to_owned();
        let this = Self { secret, configuration: String::new(), wanted: Wanted::default() };
        overlay::start_tunnel(node, DEVICE, &this.configuration(&Wanted::default()))?;
        Ok((this, public))
    }

    fn configuration(&self, wanted: &Wanted) -> String {
        format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n{}", self.secret, wanted.peers)
    }

    /// Programs what is wanted. Says whether anything changed.
    pub fn apply(&mut self, node: &LabNode, wanted: &Wanted) -> Result<bool> {
        if *wanted == self.wanted {
            return Ok(false);
        }
        match wanted.tunnel {
            Some(address) => {
                if self.wanted.tunnel != Some(address) {
                    let line =
                        format!("addr flush dev {DEVICE}\naddr add {address}/16 dev {DEVICE}\n");
                    node.ns.ip(&line)?;
                }
                let text = self.configuration(wanted);
                if text != self.configuration {
                    overlay::configure_tunnel(node, DEVICE, &text)?;
                    self.configuration = text;
                }
                node.ns.ip(&format!("link set {DEVICE} up"))?;
            }
            // Its routes go with it, as the kernel does that.
            None => node.ns.ip(&format!("link set {DEVICE} down"))?,
        }
        node.ns.ip(&route_lines(&self.wanted.routes, &wanted.routes))?;
        self.wanted = wanted.clone();
        Ok(true)
    }
}

/// Kilo's routes have protocol 'static', and only those that it set go.
fn route_lines(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> String {
    let mut lines = String::new();
    for to in before.keys().filter(|to| !after.contains_key(*to)) {
        lines += &format!("route del {to} proto static\n");
    }
    for (to, how) in after {
        lines += &format!("route replace {to} {how} proto static\n");
    }
    lines
}
