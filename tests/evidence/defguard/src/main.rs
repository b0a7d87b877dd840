//! Evidence for `docs/decisions/0001-defguard-wireguard-rs.md`.
//!
//! Makes a userspace interface, gives it one peer, changes the keep-alive of that peer, and tells what the library
//! answered, whether a thread panicked, and whether the interface can still be read.
//!
//! Run it with `sh run`, which makes namespaces of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use defguard_wireguard_rs::key::Key;
use defguard_wireguard_rs::peer::Peer;
use defguard_wireguard_rs::{InterfaceConfiguration, Userspace, WGApi, WireguardInterfaceApi};

static PANICS: AtomicUsize = AtomicUsize::new(0);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        default_hook(info);
    }));

    let mut api = WGApi::<Userspace>::new("evidence0")?;
    api.create_interface()?;

    let mut peer = Peer::new(Key::generate().public_key());
    peer.endpoint = Some("192.0.2.1:51820".parse()?);
    peer.persistent_keepalive_interval = Some(25);
    peer.allowed_ips.push("10.42.1.0/24".parse()?);

    api.configure_interface(&InterfaceConfiguration {
        name: "evidence0".to_owned(),
        prvkey: Key::generate().to_string(),
        addresses: vec!["100.127.0.1/32".parse()?],
        port: 51900,
        peers: vec![],
        mtu: None,
        fwmark: None,
    })?;

    println!("first configure_peer (new peer):       {:?}", api.configure_peer(&peer));
    sleep(Duration::from_millis(300));
    println!("peers now:                             {:?}", api.read_interface_data().map(|h| h.peers.len()));

    peer.persistent_keepalive_interval = Some(10);
    println!("second configure_peer (same, changed): {:?}", api.configure_peer(&peer));
    sleep(Duration::from_millis(300));
    println!("threads that panicked:                 {}", PANICS.load(Ordering::SeqCst));

    match api.read_interface_data() {
        Ok(host) => {
            println!("peers after:                           {}", host.peers.len());
            for p in host.peers.values() {
                println!("keep-alive after:                      {:?}", p.persistent_keepalive_interval);
            }
        }
        Err(e) => println!("reading the interface afterwards:      {e}"),
    }
    std::process::exit(i32::from(PANICS.load(Ordering::SeqCst) > 0));
}
