//! What `deploy/systemd/leaderd.service` takes from the daemon, as far as it can be taken without systemd; and keys, which are
//! nowhere but in their files.

use std::collections::BTreeMap;
use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::attacks::{failover_works, story};
use super::lab::{Daemon, Lab, NODES, texts};

const UNIT: &str = include_str!("../../../deploy/systemd/leaderd.service");

/// `setpriv` that leaves a program the capabilities of the unit and no others, not even as root, and no way to more.
fn least() -> (Vec<String>, u64) {
    let bounding = UNIT.lines().find_map(|l| l.strip_prefix("CapabilityBoundingSet="));
    let names: Vec<&str> = bounding.expect("in the unit").split_ascii_whitespace().collect();
    // linux/capability.h
    let number = |name: &str| match name {
        "CAP_NET_ADMIN" => 12,
        "CAP_NET_RAW" => 13,
        other => panic!("{other} is new in the unit: is it needed?"),
    };
    let mask = names.iter().map(|n| 1u64 << number(n)).sum();
    let only: String =
        names.iter().map(|n| format!(",+{}", n.to_lowercase().replace("cap_", ""))).collect();
    let only = format!("-all{only}");
    let words = ["setpriv", "--bounding-set", &only, "--inh-caps", &only, "--ambient-caps", &only];
    let more = ["--securebits", "+noroot,+noroot_locked", "--no-new-privs"];
    (words.iter().chain(&more).map(|w| (*w).to_owned()).collect(), mask)
}

pub fn least_privileges() {
    let lab = Lab::up();
    let (least, mask) = least();
    let least: Vec<&str> = least.iter().map(String::as_str).collect();
    let mut daemons: Vec<Daemon> = NODES.iter().map(|n| lab.daemon_under(n, &least, &[])).collect();
    lab.wait_ready(&daemons);
    for daemon in &daemons {
        for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapAmb:"] {
            let found = daemon.proc_line(&lab, "status", set);
            assert_eq!(u64::from_str_radix(&found, 16), Ok(mask), "{set} of {}", daemon.node);
        }
        assert_eq!(daemon.proc_line(&lab, "status", "NoNewPrivs:"), "1");
        let core = daemon.proc_line(&lab, "limits", "Max core file size");
        assert!(core.starts_with(['0', '1']), "core dumps: {core}");
    }
    // The processes that a daemon started are found by the next one.
    let at = daemons.iter().position(|d| d.node == "cloud-0").expect("a daemon");
    daemons.remove(at).end(&lab, "KILL");
    daemons.insert(at, lab.daemon_under("cloud-0", &least, &[]));
    lab.wait_ready(&daemons);
    let relays = ["net/ipv4/ip_forward", "net/ipv4/nexthop_compat_mode"];
    let sysctls = relays.map(|s| lab.sh("cloud-0", "cat /proc/sys/$1", &[s]).trim().to_owned());
    assert_eq!(sysctls, ["1", "0"], "sysctls are set without further rights");
    failover_works(&lab, &daemons);
    for word in ["permitted", "ermission denied", "EPERM"] {
        assert!(daemons.iter().all(|d| !d.log().contains(word)), "{}", story(&daemons));
    }
    let at = daemons.iter().position(|d| d.node == "cloud-0").expect("a daemon");
    daemons.remove(at).end(&lab, "TERM");
    let leaderd = lab.program("leaderd");
    let out = lab.run("cloud-0", least[0], &[&least[1..], &[&leaderd, "cleanup"]].concat());
    assert!(out.status.success(), "{:?}", texts(&out));
    let left = lab.sh("cloud-0", "ip -o link; ip nexthop show proto 76", &[]);
    assert!(!left.contains("wgl") && !left.contains("proto 76"), "{left}");
}

/// A secret in every way that a program may come to write it, and which way that is.
fn spellings(secret: &[u8; 32]) -> Vec<(&'static str, Vec<u8>)> {
    let list = |separator: &str| {
        secret[..12].iter().map(u8::to_string).collect::<Vec<_>>().join(separator).into_bytes()
    };
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    vec![
        ("bytes", secret.to_vec()),
        ("base64", BASE64.encode(secret).trim_end_matches('=').into()),
        ("hex", hex.clone().into_bytes()),
        ("HEX", hex.to_uppercase().into_bytes()),
        ("Debug", list(", ")),
        ("JSON", list(",")),
    ]
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|w| w == what)
}

pub fn keys_stay_in_their_files() {
    let lab = Lab::up();
    let recording = |node: &str| format!("{}/{node}/recording", lab.dir);
    let trace = ["env", "LEADERD_LOG=trace"];
    let daemons: Vec<Daemon> =
        NODES.iter().map(|n| lab.daemon_under(n, &trace, &["--record", &recording(n)])).collect();
    lab.wait_ready(&daemons);
    failover_works(&lab, &daemons);
    // A mesh file that is refused, and one that takes effect.
    let mesh = lab.read_mesh();
    lab.write_mesh(&mesh.replacen("generation = 1", "generation = 2\nflux = 3", 1));
    daemons.iter().for_each(|d| d.says("the mesh file is not applied"));
    lab.write_mesh(&mesh.replacen("generation = 1", "generation = 2", 1));
    daemons.iter().for_each(|d| d.says("mesh file applied"));

    let mut said: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for path in ["/v1/status", "/v1/events", "/v1/relay-changes", "/v1/network", "/metrics"] {
        for node in NODES {
            let (code, body) = lab.http(node, "GET", path, "");
            assert_eq!(code, 200, "{path} of {node}");
            said.insert(format!("{path} of {node}"), body.into());
        }
    }
    let secrets = NODES.map(|node| {
        ["wireguard.key", "control.key"].map(|file| {
            let text = lab.sh(node, "cat $1/$2/keys/$3", &[&lab.dir, node, file]);
            let secret: [u8; 32] =
                BASE64.decode(text.trim()).expect("base64").try_into().expect("a key");
            (format!("{file} of {node}"), secret)
        })
    });
    let public = lab.http("cloud-0", "GET", "/v1/network", "").1;
    assert!(public.len() > 100, "{public}");
    // Starts that are refused because of a key: of the wrong kind, or with something behind it.
    for node in NODES {
        let keys = format!("{}/wrong-{node}", lab.dir);
        let swap = "mkdir -m 700 $2 && cp -p $1/wireguard.key $2/control.key && cp -p $1/control.key $2/wireguard.key";
        lab.sh(node, swap, &[&format!("{}/{node}/keys", lab.dir), &keys]);
        let (code, text) = lab.refused_under(node, &trace, &["--keys", &keys]);
        assert!(code == 2 && text.contains("does not belong"), "{text}");
        said.insert(format!("swapped keys of {node}"), text.into());
        lab.sh(node, "for f in $1/*; do echo more >> $f; done", &[&keys]);
        let (code, text) = lab.refused_under(node, &trace, &["--keys", &keys]);
        assert!(code == 2 && text.contains("holds no key"), "{text}");
        said.insert(format!("spoilt keys of {node}"), text.into());
    }
    for daemon in daemons {
        let node = daemon.node.clone();
        let log = daemon.end(&lab, "TERM");
        assert!(
            log.contains("TRACE") && log.contains("leads"),
            "all of it is logged: {}",
            log.len()
        );
        said.insert(format!("log of {node}"), log.into());
        let file = lab.run(&node, "cat", &[&recording(&node)]).stdout;
        let line = file.iter().position(|b| *b == b'\n').expect("a line that says the format") + 1;
        let mut records = Vec::new();
        flate2::read::GzDecoder::new(&file[line..]).read_to_end(&mut records).expect("gzip");
        let (wireguard, _) = &mesh_keys(&mesh, &node);
        assert!(
            contains(&records, wireguard),
            "public keys are in the recording of {node}, so it was read"
        );
        said.insert(format!("recording of {node}"), records);
    }
    let mut compared = 0;
    for (name, secret) in secrets.iter().flatten() {
        for (spelling, bytes) in spellings(secret) {
            for (place, text) in &said {
                assert!(!contains(text, &bytes), "{name} is in the {place}, as {spelling}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 8 * 6 * said.len());
}

/// A node's public keys, from the mesh file: WireGuard's and the control channel's.
fn mesh_keys(mesh: &str, node: &str) -> (Vec<u8>, Vec<u8>) {
    let table = mesh.split(&format!("[nodes.{node}]")).nth(1).expect("a node");
    let key = |name: &str| {
        let line = table.lines().find_map(|l| l.strip_prefix(name)).expect("a key");
        BASE64.decode(line.split('"').nth(1).expect("quoted")).expect("base64")
    };
    (key("wireguard_key = "), key("control_key = "))
}
