//! What is outside of the crate and must fit the mesh file's parser: the examples in the docs, and a large mesh.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use leaderd_core::mesh;
use leaderd_core::topology::{TopologyInput, desired};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes
}

/// Everything between ```` ```toml ```` and ```` ``` ````.
fn toml_blocks(markdown: &str) -> Vec<&str> {
    let after = markdown.split("```toml\n").skip(1);
    after.map(|rest| rest.split("```").next().expect("split yields one at least")).collect()
}

#[test]
fn every_example_in_the_documentation_is_a_valid_mesh_file() {
    let text = String::from_utf8(read(&repository().join("docs/configuration.md"))).unwrap();
    let blocks = toml_blocks(&text);
    assert!(blocks.len() >= 3, "{} examples", blocks.len());
    for block in blocks {
        if let Err(mistakes) = mesh::parse(block) {
            panic!("{block}\n{mistakes:#?}");
        }
    }
}

#[test]
fn the_documentation_names_every_field() {
    let text = String::from_utf8(read(&repository().join("docs/configuration.md"))).unwrap();
    // What the parser itself lists as known when it meets an unknown field.
    let probe = "[mesh]\nqqqqqqqqqqqq = 1\n[policy]\nqqqqqqqqqqqq = 1\n[locations.a]\nqqqqqqqqqqqq = 1\n\
                 vxlan = { qqqqqqqqqqqq = 1 }\n[nodes.a]\nqqqqqqqqqqqq = 1\n";
    let mistakes = mesh::parse(probe).unwrap_err();
    let lists: Vec<&str> =
        mistakes.iter().filter_map(|m| m.help.strip_prefix("known here: ")).collect();
    assert_eq!(lists.len(), 5, "{mistakes:#?}");
    for field in lists.iter().flat_map(|list| list.split(", ")) {
        assert!(
            text.contains(&format!("`{field}`")),
            "docs/configuration.md does not mention `{field}`"
        );
    }
}

#[test]
fn a_thousand_locations_of_three_candidates_are_a_mesh_too() {
    let mut text = String::from("[mesh]\nname = \"large\"\ngeneration = 1\n");
    let key = |n: usize| {
        let mut bytes = [1; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
    };
    for l in 0..1000 {
        text += &format!("[locations.l{l}]\noverlay = \"vxlan\"\n");
        for n in 0..3 {
            let i = 3 * l + n + 1;
            let (high, low) = (i / 256, i % 256);
            text += &format!("[nodes.l{l}-{n}]\nlocation = \"l{l}\"\nindex = {i}\nslot = {n}\n");
            text +=
                &format!("endpoint = \"198.18.{high}.{low}\"\naddress = \"192.168.0.{}\"\n", n + 1);
            text += &format!("prefixes = [\"10.{high}.{low}.0/24\"]\n");
            text += &format!(
                "wireguard_key = \"{}\"\ncontrol_key = \"{}\"\n",
                key(2 * i),
                key(2 * i + 1)
            );
        }
    }
    let mesh = mesh::parse(&text).unwrap_or_else(|e| panic!("{:#?}", &e[..e.len().min(3)]));
    let (leaders, resolved) = (BTreeMap::new(), BTreeMap::new());
    let me = "l500-1".parse().unwrap();
    let net = desired(&TopologyInput {
        mesh: &mesh,
        me: &me,
        leaders: &leaders,
        relays: &BTreeMap::new(),
        resolved: &resolved,
        lan_device: None,
        lan_mtu: None,
        holds_address: true,
        carried: &Default::default(),
    });
    assert!(net.wireguard.values().all(|w| w.peers.len() == 999));
    // Per remote location a group for transit and one for its own packets, and as many routes through each as it has prefixes, and one
    // for each candidate. Besides: its planes, the other candidates, its leader.
    assert_eq!(net.nexthops.len(), 3 + 2 + 1 + 2 * 999);
    assert_eq!(
        net.routes.len(),
        999 * (3 + 3 + 3) + 2 + 2 + 2,
        "remote; overlay, prefixes and slot ranges of the others"
    );
}
