//! `wgctl keygen`: a node's two keys. Writes the secrets into files of mode 0600, and prints the public halves as lines for the
//! node's table in the mesh file.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroize;

use super::file;
use super::output::Output;

/// File of the X25519 secret, for WireGuard and for probes.
const WIREGUARD_FILE: &str = "wireguard.key";
/// File of the Ed25519 seed, for the control channel.
const CONTROL_FILE: &str = "control.key";

/// 32 bytes in base64.
const ENCODED: usize = 44;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wgctl keygen                            keys of this node, where leaderd looks for them
  wgctl keygen --out keys/cloud-0         keys of a new node, to copy there

Put the two printed lines into the node's table in the mesh file.")]
pub struct Args {
    /// Directory for wireguard.key and control.key; created (mode 0700) if it does not exist.
    #[arg(long, value_name = "DIR", default_value = "/etc/leaderd/keys")]
    out: PathBuf,
    /// Overwrite existing keys. Other nodes do not know the node again until the mesh file has its new keys.
    #[arg(long)]
    force: bool,
}

/// A secret key: not printable, wiped when dropped.
pub(super) struct Secret([u8; 32]);

impl Secret {
    fn random() -> anyhow::Result<Self> {
        let mut secret = Self([0; 32]);
        getrandom::fill(&mut secret.0)
            .map_err(|e| io::Error::other(e.to_string()))
            .context("cannot get randomness from the kernel")?;
        Ok(secret)
    }

    /// Base64 and a newline.
    fn line(&self) -> SecretLine {
        let mut line = SecretLine([b'\n'; ENCODED + 1]);
        STANDARD.encode_slice(self.0, &mut line.0[..ENCODED]).expect("32 bytes are 44 in base64");
        line
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

struct SecretLine([u8; ENCODED + 1]);

impl Drop for SecretLine {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The two secrets of a node.
pub(super) struct NodeKeys {
    wireguard: Secret,
    control: Secret,
}

impl NodeKeys {
    pub(super) fn generate() -> anyhow::Result<Self> {
        let mut wireguard = Secret::random()?;
        // Clamped as `wg genkey` does (RFC 7748 §5), so that all tools show the same key.
        wireguard.0[0] &= 248;
        wireguard.0[31] = (wireguard.0[31] & 127) | 64;
        Ok(Self { wireguard, control: Secret::random()? })
    }

    pub(super) fn wireguard_public(&self) -> [u8; 32] {
        let secret = x25519_dalek::StaticSecret::from(self.wireguard.0);
        x25519_dalek::PublicKey::from(&secret).to_bytes()
    }

    pub(super) fn control_public(&self) -> [u8; 32] {
        ed25519_dalek::SigningKey::from_bytes(&self.control.0).verifying_key().to_bytes()
    }
}

pub fn run(args: &Args, out: &Output) -> anyhow::Result<ExitCode> {
    let keys = NodeKeys::generate()?;
    let files = [
        (args.out.join(WIREGUARD_FILE), &keys.wireguard),
        (args.out.join(CONTROL_FILE), &keys.control),
    ];
    if !args.force
        && let Some((path, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok())
    {
        bail!(
            "{} exists: use --force to replace it, or --out for another directory",
            path.display()
        );
    }
    make_directory(&args.out)
        .with_context(|| format!("cannot make directory {}", args.out.display()))?;
    for (path, secret) in &files {
        file::write(path, &secret.line().0, 0o600, args.force)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let (wireguard, control) =
        (STANDARD.encode(keys.wireguard_public()), STANDARD.encode(keys.control_public()));
    let text = if out.json {
        format!("{}\n", serde_json::json!({ "wireguard_key": wireguard, "control_key": control }))
    } else {
        format!("wireguard_key = \"{wireguard}\"\ncontrol_key = \"{control}\"\n")
    };
    out.print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Creates the directory with mode 0700. Its parents get the usual mode: the mesh file is there, and leaderd may run as another user
/// than the one that made the keys.
fn make_directory(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const OUT: Output = Output { json: false, color: false };

    fn args(out: &Path, force: bool) -> Args {
        Args { out: out.to_owned(), force }
    }

    #[test]
    fn keys_are_written_for_their_owner_only_and_read_back_as_what_was_published() {
        let dir = tempfile::tempdir().unwrap();
        let keys = NodeKeys::generate().unwrap();
        let path = dir.path().join("k");
        file::write(&path, &keys.wireguard.line().0, 0o600, false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        let bytes: [u8; 32] =
            STANDARD.decode(text.strip_suffix('\n').unwrap()).unwrap().try_into().unwrap();
        let public = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(bytes));
        assert_eq!(public.to_bytes(), keys.wireguard_public());
    }

    #[test]
    fn existing_keys_are_kept_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("keys");
        run(&args(&out, false), &OUT).unwrap();
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o700);
        let before = fs::read(out.join(CONTROL_FILE)).unwrap();
        let error = run(&args(&out, false), &OUT).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error:#}");
        assert_eq!(fs::read(out.join(CONTROL_FILE)).unwrap(), before);
        run(&args(&out, true), &OUT).unwrap();
        assert_ne!(fs::read(out.join(CONTROL_FILE)).unwrap(), before);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 2, "nothing is left beside");
        assert_eq!(
            fs::metadata(out.join(CONTROL_FILE)).unwrap().permissions().mode() & 0o7777,
            0o600
        );
    }

    #[test]
    fn the_directory_above_the_keys_has_the_usual_mode() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("any")).unwrap();
        run(&args(&dir.path().join("etc/keys"), false), &OUT).unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("etc"), mode("any"));
        assert_eq!(mode("etc/keys") & 0o777, 0o700);
    }

    #[test]
    fn one_existing_key_is_enough_to_write_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CONTROL_FILE), "mine").unwrap();
        assert!(run(&args(dir.path(), false), &OUT).is_err());
        assert!(!dir.path().join(WIREGUARD_FILE).exists());
    }
}
