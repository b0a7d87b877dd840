//! A real daemon one thread of which hangs: ptrace(2) holds it, as if it waited for ever.

mod isolated;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use isolated::isolated;
use leaderd::secrets::Keys;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest that anything may take here; much longer than the watchdog's limit.
const LONG: Duration = Duration::from_secs(90);
const METRICS: &str = "127.0.0.1:9586";

/// Runs `test` with a daemon, in namespaces of its own.
fn with_daemon(name: &str, test: impl FnOnce(&mut Daemon)) {
    isolated(name, || {
        let dir = tempfile::tempdir().unwrap();
        test(&mut Daemon::start(dir.path()));
    });
}

struct Daemon {
    child: Child,
    log: PathBuf,
    held: Option<libc::pid_t>,
}

impl Daemon {
    /// Of a mesh of two nodes, of which the other one never runs.
    fn start(dir: &Path) -> Self {
        let node = |name: &str, index: u8| {
            let (keys, _) = Keys::load_or_make(&dir.join(name)).unwrap();
            let [wireguard, control] =
                [keys.wireguard_public().0, keys.control_public().0].map(|key| BASE64.encode(key));
            format!(
                "[nodes.{name}]\nlocation = \"{name}\"\nindex = {index}\nslot = 0\naddress = \"192.0.2.{index}\"\n\
                 endpoint = \"192.0.2.{index}\"\nprefixes = [\"10.{index}.0.0/24\"]\nwireguard_key = \"{wireguard}\"\n\
                 control_key = \"{control}\"\n"
            )
        };
        let head = "[mesh]\nname = \"hang\"\ngeneration = 1\n[locations.a]\noverlay = \"direct\"\n[locations.b]\noverlay = \"direct\"\n";
        let mesh = dir.join("mesh.toml");
        std::fs::write(&mesh, format!("{head}{}{}", node("a", 1), node("b", 2))).unwrap();
        let log = dir.join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_leaderd"))
            .args(["run", "--node", "a", "--metrics", METRICS, "--mesh"])
            .arg(mesh)
            .arg("--keys")
            .arg(dir.join("a"))
            .arg("--state")
            .arg(dir.join("state"))
            .arg("--admin")
            .arg(dir.join("admin.sock"))
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let this = Self { child, log, held: None };
        let began = Instant::now();
        while !this.is_healthy() {
            assert!(began.elapsed() < LONG, "it does not start: {}", this.said());
            std::thread::sleep(Duration::from_millis(50));
        }
        this
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn is_healthy(&self) -> bool {
        let mut answer = String::new();
        let asked = TcpStream::connect(METRICS).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
            stream.read_to_string(&mut answer)
        });
        asked.is_ok() && answer.starts_with("HTTP/1.0 200")
    }

    /// Holds the thread with this name, until [`Self::release`], or the end of this process.
    fn hold(&mut self, name: &str) {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let mut tasks = tasks.map(|task| task.unwrap().path());
        let named =
            |task: &PathBuf| std::fs::read_to_string(task.join("comm")).unwrap().trim() == name;
        let task = tasks.find(named).unwrap_or_else(|| panic!("no thread {name}"));
        let thread: libc::pid_t = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let null = std::ptr::null_mut::<libc::c_void>();
        let mut status = 0;
        // SAFETY: these requests read no memory of ours; waitpid writes the status.
        unsafe {
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, thread, null, null), 0, "ptrace");
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, thread, null, null), 0, "ptrace");
            assert_eq!(libc::waitpid(thread, &raw mut status, libc::__WALL), thread);
        }
        assert!(libc::WIFSTOPPED(status));
        self.held = Some(thread);
    }

    fn release(&mut self) {
        let thread = self.held.take().unwrap();
        let null = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_DETACH, thread, null, null) }, 0, "ptrace");
    }

    /// Waits until it ends.
    fn status(&mut self) -> std::process::ExitStatus {
        let began = Instant::now();
        loop {
            // A thread that is held ends for whoever holds it first, and the process only after it.
            if let Some(thread) = self.held.filter(|thread| *thread != self.child.id() as i32) {
                // SAFETY: nothing is written.
                unsafe {
                    libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG)
                };
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < LONG, "it goes on: {}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn a_daemon_whose_engine_hangs_ends_and_says_so() {
    with_daemon("a_daemon_whose_engine_hangs_ends_and_says_so", |daemon| {
        daemon.hold("leaderd");
        let status = daemon.status();
        assert_eq!((status.code(), status.signal()), (Some(101), None), "{}", daemon.said());
        assert!(daemon.said().contains("thread engine has hung for"), "{}", daemon.said());
    });
}

#[test]
fn a_daemon_whose_network_thread_hangs_ends_and_says_so() {
    with_daemon("a_daemon_whose_network_thread_hangs_ends_and_says_so", |daemon| {
        daemon.hold("network");
        let status = daemon.status();
        assert_eq!((status.code(), status.signal()), (Some(101), None), "{}", daemon.said());
        assert!(daemon.said().contains("thread network has hung for"), "{}", daemon.said());
    });
}

#[test]
fn a_daemon_whose_disk_hangs_goes_on() {
    with_daemon("a_daemon_whose_disk_hangs_goes_on", |daemon| {
        daemon.hold("store");
        let began = Instant::now();
        // Half as long again as a hung thread is given.
        while began.elapsed() < Duration::from_secs(30) {
            assert!(daemon.child.try_wait().unwrap().is_none(), "{}", daemon.said());
            assert!(daemon.is_healthy(), "{}", daemon.said());
            std::thread::sleep(Duration::from_secs(1));
        }
        daemon.release();
        kill(Pid::from_raw(daemon.child.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(daemon.status().code(), Some(0), "{}", daemon.said());
    });
}
