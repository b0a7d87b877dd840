//! Nodes of no machine, for how the API server and leaderd do in a large cluster: complete Node objects, of the size that kubelets
//! make them, with keys of daemons that never answer. A thread reports for all of their kubelets.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::api::Api;
use super::cluster::{NODES, REGION, node_path};

/// How often a kubelet reports although nothing changed (`nodeStatusReportFrequency`).
const REPORTS: Duration = Duration::from_secs(300);
/// What a kubelet lists of images at most (`nodeStatusMaxImages`).
const IMAGES: usize = 50;

/// Name of one of them.
pub fn name(number: usize) -> String {
    format!("made-up-{number}")
}

/// Creates this many, in these regions in turn.
pub fn create(api: &Api, count: usize, regions: &[String]) -> Result<()> {
    let mut random = std::fs::File::open("/dev/urandom")?;
    for n in 0..count {
        let mut key = || -> Result<String> {
            let mut bytes = [0; 32];
            random.read_exact(&mut bytes)?;
            Ok(STANDARD.encode(bytes))
        };
        let cidr = format!("10.{}.{}.0/24", 128 + n / 256, n % 256);
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": name(n),
                "labels": {REGION: regions[n % regions.len()], "kubernetes.io/hostname": name(n), "kubernetes.io/os": "linux"},
                "annotations": {"leaderd.io/wireguard-key": key()?, "leaderd.io/control-key": key()?},
            },
            "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        });
        api.create(NODES, &node).with_context(|| name(n))?;
        api.merge_patch(&format!("{}/status", node_path(&name(n))), &status(n))?;
    }
    Ok(())
}

fn status(n: usize) -> Value {
    let image = |i: usize| {
        let names = [
            format!("registry.example.net/group/image-{i}@sha256:{:064x}", i * 7919),
            format!("registry.example.net/group/image-{i}:v1.{i}.0"),
        ];
        json!({"names": names, "sizeBytes": 10_000_000 + i})
    };
    json!({"status": {
        "addresses": [
            {"type": "InternalIP", "address": format!("10.127.{}.{}", n / 250, 1 + n % 250)},
            {"type": "Hostname", "address": name(n)},
        ],
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "made up"}],
        "images": (0..IMAGES).map(image).collect::<Vec<_>>(),
        "nodeInfo": {
            "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
            "kubeletVersion": "", "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": "",
        },
    }})
}

/// The reports of all kubelets, one after the other, until it is dropped.
#[derive(Debug)]
pub struct Kubelets {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelets {
    /// Kubelets of this many made-up nodes.
    pub fn start(api: &Api, count: usize) -> Self {
        let (api, end) = (api.clone(), Arc::new(AtomicBool::new(false)));
        let ended = end.clone();
        let thread = std::thread::spawn(move || {
            let begun = Instant::now();
            for report in 0.. {
                let due = begun + REPORTS.mul_f64(report as f64 / count.max(1) as f64);
                while Instant::now() < due {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
                let beat = json!({"status": {"conditions": [
                    {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "made up", "lastHeartbeatTime": now},
                ]}});
                if count == 0 || ended.load(Ordering::Relaxed) {
                    return;
                }
                // An API server that is away gets the next one.
                let _ =
                    api.merge_patch(&format!("{}/status", node_path(&name(report % count))), &beat);
            }
        });
        Self { end, thread: Some(thread) }
    }
}

impl Drop for Kubelets {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
