//! etcd and kube-apiserver, real ones, in the lab's own network namespace, where the management network ends.
//!
//! No controllers, no scheduler and no kubelet run: Nodes are what the rig writes. Who asks is known by a token; what they may is
//! RBAC's to say, and the chart's admission policies'. The API server makes its own certificate, and its key signs the service account
//! tokens of leaderd's daemons.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use wgctl_lab::MANAGER;

use super::api::Api;
use super::programs::Programs;

/// What is written down: who changed which Node, and what came of it; and all that leaderd asks for.
const AUDIT: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
    {"level": "Metadata", "users": ["system:serviceaccount:leaderd:leaderd"]},
    {"level": "Metadata", "verbs": ["patch", "update"], "resources": [{"group": "", "resources": ["nodes"]}]},
    {"level": "None"}]}"#;

/// Until it answers. It takes 4 s on an idle machine.
const READY: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(100);
const PORT: u16 = 6443;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Of group `system:masters`: may do everything.
    Admin,
    /// Kilo's agents.
    Kilo,
    /// leaderd's, by the name its service account has in `deploy/`, on no node. Its daemons have [`ControlPlane::node_token`].
    Leaderd,
}

impl User {
    pub const ALL: [Self; 3] = [Self::Admin, Self::Kilo, Self::Leaderd];

    /// User name and groups.
    fn identity(self) -> (&'static str, &'static str) {
        match self {
            Self::Admin => ("admin", "system:masters"),
            Self::Kilo => (
                "system:serviceaccount:kube-system:kilo",
                "system:serviceaccounts,system:serviceaccounts:kube-system",
            ),
            Self::Leaderd => (
                "system:serviceaccount:leaderd:leaderd",
                "system:serviceaccounts,system:serviceaccounts:leaderd",
            ),
        }
    }
}

/// A change of a Node that was asked for: of the object, not of its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub node: String,
    /// HTTP.
    pub status: u64,
}

/// Something that was asked of the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `get`, `list`, `watch`, `patch`, …
    pub verb: String,
    /// As in `nodes/status`.
    pub resource: String,
    /// Path and query.
    pub uri: String,
    /// Address of who asked.
    pub from: String,
    /// HTTP.
    pub status: u64,
}

#[derive(Debug)]
pub struct ControlPlane {
    programs: Programs,
    dir: PathBuf,
    etcd: Child,
    api_server: Option<Child>,
    /// In the order of [`User::ALL`].
    tokens: [String; 3],
    ca: String,
}

impl ControlPlane {
    /// Starts both and waits until they answer. `dir` is made, and holds all their files.
    pub fn start(programs: &Programs, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let tokens = [token()?, token()?, token()?];
        let mut csv = String::new();
        for (user, token) in User::ALL.into_iter().zip(&tokens) {
            let (name, groups) = user.identity();
            csv += &format!("{token},{name},{name},\"{groups}\"\n");
        }
        write_secret(&dir.join("tokens.csv"), &csv)?;
        fs::write(dir.join("audit-policy.json"), AUDIT)?;
        let etcd = Command::new(programs.kilo.join("server"))
            .arg("--data-dir")
            .arg(dir.join("etcd"))
            // It is forgotten with the lab.
            .arg("--unsafe-no-fsync")
            .args(["--listen-client-urls", "http://127.0.0.1:2379"])
            .args(["--advertise-client-urls", "http://127.0.0.1:2379"])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            .stdin(Stdio::null())
            .stdout(log(dir, "etcd")?)
            .stderr(log(dir, "etcd")?)
            .spawn()
            .context("etcd")?;
        let (programs, dir) = (programs.clone(), dir.to_owned());
        let mut this = Self { programs, dir, etcd, api_server: None, tokens, ca: String::new() };
        this.start_api_server()?;
        Ok(this)
    }

    /// Starts the API server and waits until it answers; with the certificate it had, if it ran before.
    pub fn start_api_server(&mut self) -> Result<()> {
        ensure!(self.api_server.is_none(), "the API server runs already");
        let certs = self.dir.join("certs");
        let path = |flag: &str, file: &Path| format!("--{flag}={}", file.display());
        let child = Command::new(self.programs.kilo.join("kube-apiserver"))
            .arg("--etcd-servers=http://127.0.0.1:2379")
            .args([format!("--bind-address={MANAGER}"), format!("--advertise-address={MANAGER}")])
            .arg(format!("--secure-port={PORT}"))
            .arg(path("cert-dir", &certs))
            .arg(path("token-auth-file", &self.dir.join("tokens.csv")))
            .arg("--authorization-mode=RBAC")
            .arg(path("audit-policy-file", &self.dir.join("audit-policy.json")))
            .arg(path("audit-log-path", &self.dir.join("audit.log")))
            .arg("--audit-log-mode=blocking")
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg("--endpoint-reconciler-type=none")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(path("service-account-key-file", &certs.join("apiserver.key")))
            .arg(path("service-account-signing-key-file", &certs.join("apiserver.key")))
            .stdin(Stdio::null())
            .stdout(log(&self.dir, "kube-apiserver")?)
            .stderr(log(&self.dir, "kube-apiserver")?)
            .spawn()
            .context("kube-apiserver")?;
        self.api_server = Some(child);
        let deadline = Instant::now() + READY;
        loop {
            let why = match self.ready() {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            let ended = self.api_server.as_mut().is_some_and(|c| !matches!(c.try_wait(), Ok(None)));
            if ended || self.etcd.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("the API server is not ready: {why:#}\n{}", self.log_tail(20));
            }
            std::thread::sleep(POLL);
        }
    }

    fn ready(&mut self) -> Result<()> {
        let chain = fs::read_to_string(self.dir.join("certs/apiserver.crt"))
            .context("no certificate yet")?;
        // Its own first, then that of the authority it made for it.
        let ca = chain.rfind("-----BEGIN").context("no certificate yet")?;
        self.ca = chain[ca..].to_owned();
        self.api(User::Admin)?.get("/readyz").map(drop)
    }

    /// Ends the API server at once, as a crash does: connections are reset.
    pub fn stop_api_server(&mut self) -> Result<()> {
        let mut child = self.api_server.take().context("the API server does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Returns all requests so far that change Nodes, in order.
    pub fn writes(&self, user: User) -> Result<Vec<Write>> {
        let text = fs::read_to_string(self.dir.join("audit.log")).context("audit log")?;
        let mut all = Vec::new();
        for line in text.lines() {
            let event: Value = serde_json::from_str(line).context("a line of the audit log")?;
            let object = &event["objectRef"];
            let verb = event["verb"].as_str().unwrap_or_default();
            let changes = object["resource"] == "nodes" && matches!(verb, "patch" | "update");
            let whole = changes && object["subresource"].is_null();
            if whole && event["user"]["username"] == user.identity().0 {
                let node = object["name"].as_str().unwrap_or_default().to_owned();
                let status = event["responseStatus"]["code"].as_u64().unwrap_or(0);
                all.push(Write { node, status });
            }
        }
        Ok(all)
    }

    /// All that leaderd's account asked for so far, in order. A watch counts when it begins.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let text = fs::read_to_string(self.dir.join("audit.log")).context("audit log")?;
        let mut all = Vec::new();
        for line in text.lines() {
            // The last line may be half written.
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let status = event["responseStatus"]["code"].as_u64().unwrap_or(0);
            let ended =
                event["verb"] == "watch" && event["stage"] != "ResponseStarted" && status == 200;
            if ended || event["user"]["username"] != User::Leaderd.identity().0 {
                continue;
            }
            let object = &event["objectRef"];
            let sub = object["subresource"].as_str().map(|s| format!("/{s}")).unwrap_or_default();
            all.push(Request {
                verb: word(&event["verb"]),
                resource: word(&object["resource"]) + &sub,
                uri: word(&event["requestURI"]),
                from: word(&event["sourceIPs"][0]),
                status,
            });
        }
        Ok(all)
    }

    pub fn api(&self, user: User) -> Result<Api> {
        Api::new(&server(), &self.ca, self.token(user))
    }

    /// As whoever has this token.
    pub fn api_of(&self, token: &str) -> Result<Api> {
        Api::new(&server(), &self.ca, token)
    }

    /// A token of leaderd's account for a Pod on a node, as its kubelet gets one for the DaemonSet's: it says which node that is.
    pub fn node_token(&self, node: &str) -> Result<String> {
        let admin = self.api(User::Admin)?;
        let namespace = "/api/v1/namespaces/leaderd";
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": format!("token-{node}-")},
            "spec": {
                "nodeName": node, "serviceAccountName": "leaderd", "automountServiceAccountToken": false,
                "containers": [{"name": "leaderd", "image": "leaderd"}],
            },
        });
        let pod = admin.create(&format!("{namespace}/pods"), &pod)?;
        let asked = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": 86_400, "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
            }},
        });
        let got = admin.create(&format!("{namespace}/serviceaccounts/leaderd/token"), &asked)?;
        got["status"]["token"].as_str().map(str::to_owned).context("no token")
    }

    fn token(&self, user: User) -> &str {
        &self.tokens[user as usize]
    }

    /// Writes a kubeconfig, readable to its owner alone.
    pub fn write_kubeconfig(&self, user: User, to: &Path) -> Result<()> {
        self.write_kubeconfig_of(self.token(user), to)
    }

    /// The same, for whoever has this token.
    pub fn write_kubeconfig_of(&self, token: &str, to: &Path) -> Result<()> {
        use base64::Engine as _;
        let ca = base64::engine::general_purpose::STANDARD.encode(&self.ca);
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server(), "certificate-authority-data": ca}}],
            "users": [{"name": "lab", "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        });
        write_secret(to, &config.to_string())
    }

    /// What an administrator types; its output. `input` is its standard input.
    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        let config = self.dir.join("admin.kubeconfig");
        self.write_kubeconfig(User::Admin, &config)?;
        let mut child = Command::new(self.programs.kilo.join("kubectl"))
            .arg("--kubeconfig")
            .arg(&config)
            .args(args)
            .env("HOME", &self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("kubectl")?;
        child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
        let out = child.wait_with_output()?;
        let errors = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "kubectl {}: {}", args.join(" "), errors.trim());
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Copies the logs to a directory of the host.
    pub fn save_logs(&self, to: &Path) -> Result<()> {
        for program in ["etcd", "kube-apiserver"] {
            let file = format!("{program}.log");
            fs::copy(self.dir.join(&file), to.join(&file))?;
        }
        Ok(())
    }

    fn log_tail(&self, lines: usize) -> String {
        let mut all = Vec::new();
        for program in ["etcd", "kube-apiserver"] {
            let file = self.dir.join(format!("{program}.log"));
            let text = fs::read_to_string(file).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(lines).collect();
            all.push(format!("--- end of the log of {program} ---"));
            all.extend(last.into_iter().rev().map(str::to_owned));
        }
        all.join("\n")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in self.api_server.iter_mut().chain([&mut self.etcd]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn server() -> String {
    format!("https://{MANAGER}:{PORT}")
}

fn token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

fn write_secret(to: &Path, text: &str) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to);
    file.and_then(|mut f| f.write_all(text.as_bytes())).with_context(|| to.display().to_string())
}

fn log(dir: &Path, program: &str) -> Result<fs::File> {
    let file = dir.join(format!("{program}.log"));
    Ok(fs::OpenOptions::new().create(true).append(true).open(file)?)
}
