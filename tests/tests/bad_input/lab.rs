//! A lab without daemons, and the daemons that a test starts in it by hand: it wants to see them fail.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take. Generous: several labs may share two cores.
pub const LIMIT: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(50);

pub const NODES: [&str; 4] = ["cloud-0", "cloud-1", "cloud-2", "home-0"];

/// Waits until it holds; panics with what it is, and `story`, after [`LIMIT`].
pub fn wait_for(what: &str, story: impl Fn() -> String, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}\n{}", story());
        std::thread::sleep(POLL);
    }
}

/// Where `wgctl` and `leaderd` are.
fn programs() -> PathBuf {
    let dir = std::env::var_os("LEADERD_BIN_DIR").map(PathBuf::from).or_else(|| {
        // target/PROFILE/deps/bad_input-HASH
        Some(std::env::current_exe().ok()?.parent()?.parent()?.to_owned())
    });
    let dir = dir.expect("a directory of programs");
    for program in ["wgctl", "leaderd"] {
        let missing = "(cargo build -p leaderd -p wgctl, or set LEADERD_BIN_DIR)";
        assert!(dir.join(program).is_file(), "no {program} in {} {missing}", dir.display());
    }
    dir
}

pub struct Lab {
    name: String,
    bin: PathBuf,
    up: Child,
    /// The lab's own directory, as seen from inside.
    pub dir: String,
}

impl Lab {
    /// Builds the network of `fixtures/bad-input.toml`; no daemon runs.
    pub fn up() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let bin = programs();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bad-input-{}-{number}", std::process::id());
        let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bad-input.toml");
        let up = Command::new(bin.join("wgctl"))
            .args(["lab", "up", "--no-daemons", "--name", &name])
            .arg(scenario)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("wgctl lab up");
        let mut lab = Self { name, bin, up, dir: String::new() };
        let mut line = String::new();
        let stderr = lab.up.stderr.take().expect("piped");
        let mut lines = BufReader::new(stderr);
        while !line.contains(" is up;") {
            line.clear();
            let read = lines.read_line(&mut line).expect("text");
            assert!(read > 0, "the lab did not come up");
        }
        std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
        lab.dir = lab.sh("cloud-0", "echo /tmp/leaderd-lab-*/$1/w", &[&lab.name]).trim().to_owned();
        lab
    }

    fn exec(&self, node: &str, pod: bool, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("wgctl"));
        command.args(["lab", "exec", "--name", &self.name]);
        if pod {
            command.arg("--pod");
        }
        command.arg(node).arg("--").arg(program).args(args).stdin(Stdio::null());
        command
    }

    /// Runs a command on a node to its end.
    pub fn run(&self, node: &str, program: &str, args: &[&str]) -> Output {
        let program = match program {
            "leaderd" | "wgctl" => self.bin.join(program),
            "inside" => std::env::current_exe().expect("a program"),
            other => other.into(),
        };
        self.exec(node, false, &program, args).output().expect("wgctl lab exec")
    }

    /// The output of a shell command that must succeed. Its arguments are `$1`, `$2`, ….
    pub fn sh(&self, node: &str, script: &str, args: &[&str]) -> String {
        let args = [&["-c", script, "sh"], args].concat();
        let out = self.run(node, "sh", &args);
        let (stdout, stderr) = texts(&out);
        assert!(out.status.success(), "{script} on {node}: {stdout}{stderr}");
        stdout
    }

    /// The output of `wgctl` on a node, which must succeed.
    pub fn wgctl(&self, node: &str, args: &[&str]) -> String {
        let out = self.run(node, "wgctl", args);
        let (stdout, stderr) = texts(&out);
        assert!(out.status.success(), "wgctl {args:?} on {node}: {stdout}{stderr}");
        stdout
    }

    /// This program in a role, in a node or its workload; it ends when its standard input does.
    pub fn inside(&self, node: &str, pod: bool, role: &str, args: &[&str]) -> Inside {
        let me = std::env::current_exe().expect("a program");
        let role = format!("inside:{role}");
        let mut child = self
            .exec(node, pod, &me, &[&[role.as_str()], args].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("wgctl lab exec");
        let stdin = child.stdin.take();
        let mut inside = Inside { child, stdin };
        // A first line says that it is ready.
        let mut first = [0; 6];
        let stdout = inside.child.stdout.as_mut().expect("piped");
        stdout.read_exact(&mut first).expect("it starts");
        assert_eq!(&first, b"ready\n");
        inside
    }

    /// The path of one of our programs.
    pub fn program(&self, name: &str) -> String {
        self.bin.join(name).display().to_string()
    }

    pub fn fault(&self, node: &str, fault: &str) {
        let ok = Command::new(self.bin.join("wgctl"))
            .args(["lab", "fault", "--name", &self.name, node, fault])
            .status()
            .expect("wgctl lab fault");
        assert!(ok.success());
    }

    /// Standard arguments of `leaderd run` for a node, with others after them.
    pub fn run_args(&self, node: &str, more: &[&str]) -> Vec<String> {
        let dir = &self.dir;
        let mut args = vec!["run".to_owned(), "--node".to_owned(), node.to_owned()];
        let defaults = [
            ("--mesh", format!("{dir}/mesh.toml")),
            ("--keys", format!("{dir}/{node}/keys")),
            ("--state", format!("{dir}/{node}/state")),
            ("--admin", format!("{dir}/{node}/admin.sock")),
        ];
        for (name, value) in defaults.into_iter().filter(|(name, _)| !more.contains(name)) {
            args.extend([name.to_owned(), value]);
        }
        args.extend(more.iter().map(|s| (*s).to_owned()));
        args
    }

    /// Starts a daemon that must end by itself; gives its exit code and what it said.
    pub fn refused(&self, node: &str, more: &[&str]) -> (i32, String) {
        self.refused_under(node, &[], more)
    }

    /// The same under another program, such as `env`.
    pub fn refused_under(&self, node: &str, under: &[&str], more: &[&str]) -> (i32, String) {
        let args = self.run_args(node, more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        // `timeout` ends a daemon that does start, with code 124.
        let leaderd = self.bin.join("leaderd").display().to_string();
        let on = if NODES.contains(&node) { node } else { NODES[0] };
        let command = [&["20"], under, &[leaderd.as_str()], args.as_slice()].concat();
        let out = self.run(on, "timeout", &command);
        (out.status.code().unwrap_or(-1), texts(&out).1)
    }

    /// Starts the daemon of a node.
    pub fn daemon(&self, node: &str, more: &[&str]) -> Daemon {
        let args = self.run_args(node, more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.daemon_with(node, node, &args)
    }

    /// The same under another program, such as `env`.
    pub fn daemon_under(&self, node: &str, under: &[&str], more: &[&str]) -> Daemon {
        let args = self.run_args(node, more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let leaderd = self.program("leaderd");
        let args = [&under[1..], &[leaderd.as_str()], args.as_slice()].concat();
        self.spawn(node, node, Path::new(under[0]), &args)
    }

    /// Starts a daemon on a node with exactly these arguments.
    pub fn daemon_with(&self, on: &str, node: &str, args: &[&str]) -> Daemon {
        self.spawn(on, node, &self.bin.join("leaderd"), args)
    }

    fn spawn(&self, on: &str, node: &str, program: &Path, args: &[&str]) -> Daemon {
        let mut child = self
            .exec(on, false, program, args)
            .stderr(Stdio::piped())
            .spawn()
            .expect("wgctl lab exec");
        let log = Arc::new(Mutex::new(String::new()));
        let (theirs, stderr) = (log.clone(), child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        Daemon { node: node.to_owned(), child, log }
    }

    /// Starts all daemons and waits until everyone knows who leads and every candidate is known to forward.
    pub fn daemons(&self) -> Vec<Daemon> {
        let daemons: Vec<Daemon> = NODES.iter().map(|n| self.daemon(n, &[])).collect();
        self.wait_ready(&daemons);
        daemons
    }

    pub fn wait_ready(&self, daemons: &[Daemon]) {
        let story = || daemons.iter().map(Daemon::tail).collect::<String>();
        wait_for("all nodes know who leads", story, || {
            NODES.iter().all(|n| self.status(n).is_some_and(|s| knows_all(n, &s)))
        });
    }

    /// `wgctl status --json` on a node, if there is an answer.
    pub fn status(&self, node: &str) -> Option<Value> {
        let out = self.run(node, "wgctl", &["status", "--json"]);
        serde_json::from_slice(&out.stdout).ok()
    }

    /// Who leads a location, and the epoch, as a node sees it.
    pub fn leader(&self, node: &str, location: &str) -> Option<(String, u64)> {
        let status = self.status(node)?;
        let location = location_of(&status, location)?;
        Some((location["leaders"][0].as_str()?.to_owned(), location["epoch"].as_u64()?))
    }

    /// An HTTP exchange with a node's admin socket: status code and body.
    pub fn http(&self, node: &str, method: &str, path: &str, body: &str) -> (u16, String) {
        let socket = format!("{}/{node}/admin.sock", self.dir);
        let out = self.run(node, "inside", &["inside:http", &socket, method, path, body]);
        let (text, errors) = texts(&out);
        let code = text.split(' ').nth(1).and_then(|c| c.parse().ok());
        let body = text.split_once("\r\n\r\n").map_or("", |(_, b)| b).to_owned();
        (code.unwrap_or_else(|| panic!("no answer from {node}: {text}{errors}")), body)
    }

    /// A metric, named with its labels.
    ///
    /// # Panics
    ///
    /// If there is no such metric: all are there from the start, so the name is wrong.
    pub fn metric(&self, node: &str, name: &str) -> f64 {
        let (_, text) = self.http(node, "GET", "/metrics", "");
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        let line = line.unwrap_or_else(|| panic!("{node} has no metric {name}: {text}"));
        line.trim().parse().expect("a number")
    }

    /// Replaces the mesh file at once, as an editor does.
    pub fn write_mesh(&self, text: &str) {
        let mut child = self
            .exec(
                "cloud-0",
                false,
                Path::new("sh"),
                &["-c", "cat > $0.new && mv $0.new $0", &format!("{}/mesh.toml", self.dir)],
            )
            .stdin(Stdio::piped())
            .spawn()
            .expect("wgctl lab exec");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
        assert!(child.wait().expect("ends").success());
    }

    pub fn read_mesh(&self) -> String {
        self.sh("cloud-0", "cat $1/mesh.toml", &[&self.dir])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new(self.bin.join("wgctl"))
            .args(["lab", "down", "--name", &self.name])
            .output();
        let _ = self.up.wait();
    }
}

pub fn location_of<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["locations"].as_array()?.iter().find(|l| l["name"] == name)
}

fn knows_all(node: &str, status: &Value) -> bool {
    let leads = |l: &str| location_of(status, l).is_some_and(|l| l["epoch"].as_u64() > Some(0));
    // A plain member hears of its own location only.
    let candidates =
        location_of(status, "cloud").map(|l| l["candidates"].to_string()).unwrap_or_default();
    match node {
        "cloud-2" => leads("cloud"),
        "home-0" => {
            leads("cloud") && leads("home") && candidates.matches("forwarding").count() == 2
        }
        _ => leads("cloud") && leads("home"),
    }
}

pub fn texts(out: &Output) -> (String, String) {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (text(&out.stdout), text(&out.stderr))
}

/// A running `leaderd` of a node.
pub struct Daemon {
    pub node: String,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn count(&self, what: &str) -> usize {
        self.log().matches(what).count()
    }

    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(25);
        format!("--- {} ---\n{}\n", self.node, lines[from..].join("\n"))
    }

    /// Waits until its log has a text.
    pub fn says(&self, what: &str) {
        wait_for(
            &format!("{} says {what:?}", self.node),
            || self.tail(),
            || self.log().contains(what),
        );
    }

    pub fn alive(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    pub fn pid(&self, lab: &Lab) -> String {
        let path = format!("{}/{}/state/lock", lab.dir, self.node);
        lab.sh(&self.node, "cat $1", &[&path]).trim().to_owned()
    }

    /// A line of a file below /proc/PID, without its name.
    pub fn proc_line(&self, lab: &Lab, file: &str, name: &str) -> String {
        let text = lab.sh(&self.node, "cat /proc/$1/$2", &[&self.pid(lab), file]);
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
    }

    pub fn signal(&self, lab: &Lab, signal: &str) {
        let pid = self.pid(lab);
        lab.sh(&self.node, "kill -$1 $2", &[signal, &pid]);
    }

    /// Ends it by a signal and gives what it logged.
    pub fn end(mut self, lab: &Lab, signal: &str) -> String {
        self.signal(lab, signal);
        let deadline = Instant::now() + LIMIT;
        while self.alive() {
            assert!(Instant::now() < deadline, "it does not end\n{}", self.tail());
            std::thread::sleep(POLL);
        }
        self.log()
    }
}

impl Drop for Daemon {
    /// The lab kills a command whose caller goes away.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This program, in a role inside the lab.
pub struct Inside {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Inside {
    /// Closes its input, waits for its end, and gives its last words.
    pub fn end(mut self) -> String {
        drop(self.stdin.take());
        let mut said = String::new();
        self.child.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
        assert!(self.child.wait().expect("ends").success(), "{said}");
        said
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A numbered stream between two workloads and back.
pub struct Stream {
    echo: Inside,
    source: Inside,
}

impl Stream {
    /// `fresh`: a new flow for every packet.
    pub fn start(lab: &Lab, from: &str, to: &str, target: &str, fresh: bool) -> Self {
        let echo = lab.inside(to, true, "echo", &["5201"]);
        let source = lab.inside(
            from,
            true,
            "stream",
            &[target, "5201", if fresh { "fresh" } else { "one" }],
        );
        Self { echo, source }
    }

    /// Ends it: packets sent, and lost.
    pub fn end(self) -> (u64, u64) {
        let said = self.source.end();
        self.echo.end();
        let numbers: Vec<u64> = said.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        assert_eq!(numbers.len(), 2, "{said}");
        (numbers[0], numbers[1])
    }
}
