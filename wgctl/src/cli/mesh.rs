//! `wgctl mesh init` writes an example of a mesh file; `wgctl mesh validate` names every mistake in one.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use leaderd_core::mesh::{self, Diagnostic, EXAMPLE_NODES, ExampleKeys, Mesh, Overlay};
use leaderd_core::observe::steady_probes;
use serde::Serialize;

use super::keygen::NodeKeys;
use super::output::{Output, Style, Table};
use super::{UsageError, file};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wgctl mesh init --out mesh.toml    a working example to edit
  wgctl mesh validate mesh.toml      every mistake with its line and what to do; exit 1 if any")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Write an example of a mesh file: two locations, a witness, comments on what to change.
    Init {
        /// File to write; standard output if not given.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Overwrite the file if it is there.
        #[arg(long)]
        force: bool,
    },
    /// Check a mesh file: names every mistake with its line and what to do.
    Validate {
        #[arg(value_name = "FILE", default_value = "/etc/leaderd/mesh.toml")]
        file: PathBuf,
    },
}

pub fn run(args: &Args, out: &Output) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Init { out: file, force } => init(file.as_deref(), *force, out),
        Verb::Validate { file } => validate(file, out),
    }
}

fn init(file: Option<&Path>, force: bool, out: &Output) -> anyhow::Result<ExitCode> {
    if out.json {
        return Err(UsageError("a mesh file is TOML: `mesh init` has no --json".to_owned()).into());
    }
    let text = example()?;
    let Some(path) = file else {
        out.print(&text)?;
        return Ok(ExitCode::SUCCESS);
    };
    match file::write(path, text.as_bytes(), 0o666, force) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            bail!("{} exists: use --force", path.display())
        }
        written => written.with_context(|| format!("cannot write {}", path.display()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the example with new keys, whose secret halves are discarded.
fn example() -> anyhow::Result<String> {
    let mut keys = [ExampleKeys { wireguard: [0; 32], control: [0; 32] }; EXAMPLE_NODES];
    for key in &mut keys {
        let node = NodeKeys::generate()?;
        *key = ExampleKeys { wireguard: node.wireguard_public(), control: node.control_public() };
    }
    Ok(mesh::example(&keys))
}

/// What `validate --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    file: &'a Path,
    valid: bool,
    mistakes: &'a [Diagnostic],
    /// Valid, but hardly intended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh: Option<Summary>,
}

#[derive(Debug, Serialize)]
struct Summary {
    name: String,
    generation: u64,
    nodes: usize,
    locations: Vec<LocationSummary>,
}

#[derive(Debug, Serialize)]
struct LocationSummary {
    name: String,
    overlay: &'static str,
    candidates: usize,
    members: usize,
    voters: Vec<String>,
    /// The number of voters that must agree.
    quorum: usize,
}

fn validate(file: &Path, out: &Output) -> anyhow::Result<ExitCode> {
    let source = read(file)?;
    let result = mesh::parse(&source);
    let mistakes = result.as_ref().err().map_or(&[][..], Vec::as_slice);
    let warnings = result.as_ref().map(warnings).unwrap_or_default();
    let mesh = result.as_ref().ok().map(summary);
    let text = if out.json {
        let report = Report { file, valid: result.is_ok(), mistakes, warnings, mesh };
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        let mut text = mesh::report(&file.display().to_string(), &source, mistakes, out.color);
        if let Some(mesh) = mesh {
            text += &render(&mesh, out);
        }
        for warning in warnings {
            writeln!(text, "warning: {warning}")?;
        }
        text
    };
    out.print(&text)?;
    Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Warns of candidates whose probe budget is too small for what they watch: names the one that lacks most.
fn warnings(mesh: &Mesh) -> Vec<String> {
    let candidates = mesh.nodes.values().filter(|n| n.slot.is_some());
    let rates = candidates.map(|n| (n, steady_probes(mesh, n)));
    let short = rates.filter(|(_, (wanted, may))| wanted > may);
    // Of several that lack the same, the first.
    let worst = short.reduce(|worst, other| if other.1.0 > worst.1.0 { other } else { worst });
    let warning = |(node, (wanted, may)): (&mesh::Node, (f64, f64))| {
        format!(
            "{} wants to send {wanted:.0} probes a second and may send {may:.0}, half of `probe_budget`: rounds are left out and faults found \
             later; raise `probe_budget` to {:.0}, or `probe_interval`",
            node.name,
            (2.0 * wanted / 100.0).ceil() * 100.0
        )
    };
    worst.map(warning).into_iter().collect()
}

/// Reads the file; of one that is too long, only enough to see that it is.
fn read(file: &Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let limit = mesh::MAX_TEXT as u64 + 1;
    File::open(file)
        .and_then(|f| f.take(limit).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", file.display()))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        // The limit cut a character in two: the file is too long in any case.
        Err(e) if e.as_bytes().len() as u64 == limit => {
            Ok(String::from_utf8_lossy(e.as_bytes()).into_owned())
        }
        Err(e) => {
            let line = e.as_bytes()[..e.utf8_error().valid_up_to()]
                .iter()
                .filter(|b| **b == b'\n')
                .count()
                + 1;
            bail!("{}:{line}: this is no UTF-8 text", file.display())
        }
    }
}

fn summary(mesh: &Mesh) -> Summary {
    let location = |(name, location): (&leaderd_core::ids::LocationName, &mesh::Location)| {
        let voters: Vec<String> = mesh.voters_of(name).iter().map(ToString::to_string).collect();
        let candidates = mesh.candidates_of(name).len();
        LocationSummary {
            name: name.to_string(),
            overlay: match location.overlay {
                Overlay::Direct => "direct",
                Overlay::Vxlan(_) => "vxlan",
                Overlay::Cni(_) => "cni",
                Overlay::External => "external",
                Overlay::Flannel { .. } => "flannel",
            },
            candidates,
            members: mesh.nodes_of(name).count() - candidates,
            quorum: voters.len() / 2 + 1,
            voters,
        }
    };
    Summary {
        name: mesh.name.clone(),
        generation: mesh.generation.0,
        nodes: mesh.nodes.len(),
        locations: mesh.locations.iter().map(location).collect(),
    }
}

fn render(mesh: &Summary, out: &Output) -> String {
    let Summary { name, generation, nodes, locations } = mesh;
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let head = ["LOCATION", "OVERLAY", "CANDIDATES", "MEMBERS", "QUORUM", "VOTERS"];
    let mut table = Table::new(&head);
    for l in locations {
        let cells = [
            l.name.clone(),
            l.overlay.to_owned(),
            l.candidates.to_string(),
            l.members.to_string(),
            format!("{} of {}", l.quorum, l.voters.len()),
            l.voters.join(", "),
        ];
        table.row(cells.map(|cell| (Style::Plain, cell)).into());
    }
    format!(
        "mesh {name}, generation {generation}: {}, {}, no mistakes\n{}",
        count(locations.len(), "location"),
        count(*nodes, "node"),
        table.render(out, 0)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Output = Output { json: false, color: false };

    #[test]
    fn the_example_is_valid_and_says_where_keys_belong() {
        let text = example().unwrap();
        let mesh = mesh::parse(&text).unwrap_or_else(|e| panic!("{e:#?}"));
        assert!(text.contains("wgctl keygen --out"));
        insta::assert_snapshot!(render(&summary(&mesh), &PLAIN), @r"
        mesh example, generation 1: 2 locations, 6 nodes, no mistakes
        LOCATION  OVERLAY  CANDIDATES  MEMBERS  QUORUM  VOTERS
        cloud     vxlan    3           1        2 of 3  cloud-0, cloud-1, cloud-2
        home      vxlan    2           0        2 of 3  home-0, home-1, cloud-0
        ");
    }

    #[test]
    fn a_probe_budget_that_is_too_small_gives_a_warning() {
        let mesh = |policy: &str| {
            let text = example().unwrap().replace("probe_interval = \"100ms\"", policy);
            mesh::parse(&text).unwrap_or_else(|e| panic!("{e:#?}"))
        };
        assert!(warnings(&mesh("")).is_empty());
        let fast = mesh("probe_interval = \"10ms\"\nprobe_budget = 200");
        // 3 slots, 100 rounds a second, and 2 more probes of each slot in 5 rounds.
        insta::assert_snapshot!(warnings(&fast).join("\n"), @"home-0 wants to send 420 probes a second and may send 100, half of `probe_budget`: rounds are left out and faults found later; raise `probe_budget` to 900, or `probe_interval`");
    }

    #[test]
    fn two_examples_share_no_key() {
        let keys = |text: &str| -> Vec<String> {
            text.lines().filter(|l| l.contains("_key =")).map(Into::into).collect()
        };
        let (one, other) = (keys(&example().unwrap()), keys(&example().unwrap()));
        assert_eq!(one.len(), 2 * EXAMPLE_NODES);
        assert!(one.iter().all(|k| !other.contains(k)));
    }

    #[test]
    fn init_does_not_overwrite_a_file_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mesh.toml");
        std::fs::write(&file, "mine").unwrap();
        let refused = init(Some(&file), false, &PLAIN).unwrap_err();
        assert!(refused.to_string().contains("--force"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
        init(Some(&file), true, &PLAIN).unwrap();
        assert_eq!(validate(&file, &PLAIN).unwrap(), ExitCode::SUCCESS);
    }

    #[test]
    fn init_refuses_json() {
        let error = init(None, false, &Output { json: true, color: false }).unwrap_err();
        assert!(error.is::<UsageError>(), "{error:#}");
    }

    #[test]
    fn a_mistake_is_exit_1_and_a_missing_file_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mesh.toml");
        std::fs::write(&file, "[mesh]\n").unwrap();
        for json in [false, true] {
            assert_eq!(validate(&file, &Output { json, color: false }).unwrap(), ExitCode::FAILURE);
        }
        assert!(validate(&dir.path().join("none.toml"), &PLAIN).is_err());
        std::fs::write(&file, b"[mesh]\nname = \"\xff\"\n").unwrap();
        let error = validate(&file, &PLAIN).unwrap_err();
        assert!(error.to_string().contains(":2: this is no UTF-8"), "{error:#}");
    }
}
