//! `kilo0` and Kilo's routes on one node: what is wanted, done in Kilo's order (address, configuration, link, routes last).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result};
use wgctl_lab::LabNode;

use super::rules::{DEVICE, Wanted};
use crate::lab::overlay;

/// The kernel's side, which outlives the agent, and what the agent remembers of its own work.
#[derive(Debug)]
pub struct Device {
    secret: String,
    /// Base64.
    pub public: String,
    /// What kilo0 has.
    configuration: String,
    wanted: Wanted,
    /// Routes that an agent before it left behind.
    found: BTreeSet<String>,
}

impl Device {
    /// Makes a key, which Kilo has of its own, and the device, which stays down.
    pub fn create(node: &LabNode) -> Result<Self> {
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
        let (configuration, wanted) = (String::new(), Wanted::default());
        let mut this = Self { secret, public, configuration, wanted, found: BTreeSet::new() };
        this.boot(node)?;
        Ok(this)
    }

    /// The device anew, with the key that is on disk; nothing of before is left.
    pub fn boot(&mut self, node: &LabNode) -> Result<()> {
        self.restart();
        self.found.clear();
        self.configuration.clear();
        let _ = node.ns.ip("route flush proto static\n");
        overlay::start_tunnel(node, DEVICE, &self.configuration(&Wanted::default()))
    }

    /// Another agent finds the configuration and the routes of the one before, and does not take those for its own.
    pub fn restart(&mut self) {
        self.found.extend(std::mem::take(&mut self.wanted).routes.into_keys());
    }

    fn configuration(&self, wanted: &Wanted) -> String {
        format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {}\n{}",
            self.secret, wanted.port, wanted.peers
        )
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
        // What went with the link cannot be deleted, which Kilo looks at before.
        let _ = node.ns.ip(&deletions(&self.wanted.routes, &wanted.routes));
        // Another try, if the kernel does not take them all.
        self.wanted = Wanted { routes: BTreeMap::new(), ..wanted.clone() };
        let replace = |(to, how)| format!("route replace {to} {how} proto static\n");
        node.ns.ip(&wanted.routes.iter().map(replace).collect::<String>())?;
        self.wanted = wanted.clone();
        Ok(true)
    }

    /// What Kilo does on SIGTERM (`--clean-up`, its default): its routes go; kilo0 stays as it is, with its peers, as
    /// `--clean-up-interface` is not its default. Routes that it found stay as well (seen with real Kilo).
    pub fn clean_up(&mut self, node: &LabNode) -> Result<()> {
        let mut own = std::mem::take(&mut self.wanted).routes;
        own.retain(|to, _| !self.found.contains(to));
        let lines = deletions(&own, &BTreeMap::new());
        node.ns.ip(&lines)
    }
}

/// Kilo's routes have protocol 'static', and only those that it set go.
fn deletions(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> String {
    let gone = before.keys().filter(|to| !after.contains_key(*to));
    gone.map(|to| format!("route del {to} proto static\n")).collect()
}
