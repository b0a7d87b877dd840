//! Key files: read once, refused if others may read them, and compared with this node's public keys in the mesh file.

use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use leaderd_core::mesh::{ControlPublicKey, Node};
use wgctl_plan::WgPublicKey;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::durable;

/// Longest key file in bytes: a key takes 45.
const MAX_KEY_FILE: u64 = 1024;

/// File of the X25519 secret, for WireGuard and for probes.
const WIREGUARD_FILE: &str = "wireguard.key";
/// File of the Ed25519 seed, for the control channel.
const CONTROL_FILE: &str = "control.key";

/// The previous control key, while it vouches for the new one.
const OLD_CONTROL_FILE: &str = "control.key.old";

/// 32 secret bytes. No `Debug`, zeroed on drop.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
#[allow(missing_debug_implementations)]
pub struct Secret([u8; 32]);

impl Secret {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// Returns a copy, which the caller must zero.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Both private keys of this node.
#[derive(Clone)]
pub struct Keys {
    /// X25519, of WireGuard and the probes.
    pub wireguard: Secret,
    /// Ed25519 seed, of the control channel.
    pub control: Secret,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(…)")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("key file {}: {source}; make keys with `wgctl keygen --out {}`", path.display(), dir.display())]
    Read { path: PathBuf, dir: PathBuf, source: std::io::Error },
    #[error("cannot make key file {}: {source}", path.display())]
    Make { path: PathBuf, source: std::io::Error },
    #[error("key file {} may be read by others (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("key file {} holds no key: base64 of 32 bytes and a newline is wanted", .0.display())]
    Malformed(PathBuf),
    #[error(
        "key file {} does not belong to node {node}: its public half is {found}, but the mesh file says {field} = \"{expected}\"; \
         put the public key into the mesh file, or the right key file in place", path.display()
    )]
    Mismatch { path: PathBuf, node: String, field: &'static str, found: String, expected: String },
}

impl Keys {
    /// Reads `wireguard.key` and `control.key` of `dir`, and compares them with the node's public keys.
    pub fn load(dir: &Path, node: &Node) -> Result<Self, SecretError> {
        let (wireguard_path, control_path) = (dir.join(WIREGUARD_FILE), dir.join(CONTROL_FILE));
        let keys = Self { wireguard: read(&wireguard_path)?, control: read(&control_path)? };
        let check = |path: &Path, field: &'static str, found: [u8; 32], expected: [u8; 32]| {
            if found == expected {
                return Ok(());
            }
            Err(SecretError::Mismatch {
                path: path.to_owned(),
                node: node.name.to_string(),
                field,
                found: BASE64.encode(found),
                expected: BASE64.encode(expected),
            })
        };
        check(&wireguard_path, "wireguard_key", keys.wireguard_public().0, node.wireguard_key.0)?;
        check(&control_path, "control_key", keys.control_public().0, node.control_key.0)?;
        Ok(keys)
    }

    /// Reads both keys of `dir`, and makes missing ones: for a node that publishes its own public keys. The second value says whether
    /// one was made.
    pub fn load_or_make(dir: &Path) -> Result<(Self, bool), SecretError> {
        let mut made = false;
        let mut key = |name: &str, clamp: bool| {
            let path = dir.join(name);
            if let Err(error) = path.symlink_metadata()
                && error.kind() == std::io::ErrorKind::NotFound
            {
                make(&path, clamp)
                    .map_err(|source| SecretError::Make { path: path.clone(), source })?;
                made = true;
            }
            read(&path)
        };
        let keys =
            Self { wireguard: key(WIREGUARD_FILE, true)?, control: key(CONTROL_FILE, false)? };
        Ok((keys, made))
    }

    /// Returns whether the mesh names the public halves of these keys.
    pub fn are_of(&self, node: &Node) -> bool {
        self.wireguard_public() == node.wireguard_key && self.control_public() == node.control_key
    }

    /// Returns Ed25519 signatures by the control key, and by the previous one if `dir` still has it.
    pub fn sign_as_ever(&self, dir: &Path, message: &[u8]) -> Result<Vec<[u8; 64]>, SecretError> {
        let old = dir.join(OLD_CONTROL_FILE);
        let old = old.exists().then(|| read(&old)).transpose()?;
        let all = std::iter::once(&self.control).chain(&old);
        let sign = |key: &Secret| {
            use ed25519_dalek::Signer as _;
            ed25519_dalek::SigningKey::from_bytes(key.expose()).sign(message).to_bytes()
        };
        Ok(all.map(sign).collect())
    }

    pub fn wireguard_public(&self) -> WgPublicKey {
        let secret = x25519_dalek::StaticSecret::from(*self.wireguard.expose());
        WgPublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    pub fn control_public(&self) -> ControlPublicKey {
        ControlPublicKey(
            ed25519_dalek::SigningKey::from_bytes(self.control.expose()).verifying_key().to_bytes(),
        )
    }
}

/// Writes a new key to a file that others can never read and that is never half written.
fn make(path: &Path, clamp: bool) -> std::io::Result<()> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *secret).map_err(|e| std::io::Error::other(e.to_string()))?;
    if clamp {
        // As `wg genkey` does (RFC 7748 §5), so that all tools show the same key.
        secret[0] &= 248;
        secret[31] = (secret[31] & 127) | 64;
    }
    let mut line = Zeroizing::new([b'\n'; 45]);
    BASE64.encode_slice(*secret, &mut line[..44]).expect("32 bytes are 44 in base64");
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    durable::replace(path, &*line)
}

fn read(path: &Path) -> Result<Secret, SecretError> {
    let dir = path.parent().unwrap_or(Path::new(".")).to_owned();
    let failed = |source| SecretError::Read { path: path.to_owned(), dir: dir.clone(), source };
    let file = File::open(path).map_err(failed)?;
    // Of the open file, so that it cannot be swapped in between.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Mode { path: path.to_owned(), mode });
    }
    let malformed = || SecretError::Malformed(path.to_owned());
    let mut text = Zeroizing::new(String::with_capacity(MAX_KEY_FILE as usize));
    match file.take(MAX_KEY_FILE).read_to_string(&mut text) {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => return Err(malformed()),
        other => other.map_err(failed)?,
    };
    let bytes = Zeroizing::new(BASE64.decode(text.trim()).map_err(|_| malformed())?);
    Ok(Secret(bytes.as_slice().try_into().map_err(|_| malformed())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_the_command_that_helps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.key");
        write(&path, &BASE64.encode([7; 32]), 0o644);
        let error = read(&path).err().unwrap().to_string();
        assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
        write(&path, &format!("{}\n", BASE64.encode([7; 32])), 0o600);
        assert_eq!(read(&path).ok().unwrap().expose(), &[7; 32]);
    }

    #[test]
    fn an_old_control_key_vouches_for_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (old, _) = Keys::load_or_make(dir.path()).unwrap();
        let signs = |keys: &Keys| keys.sign_as_ever(dir.path(), b"new keys").unwrap();
        assert_eq!(signs(&old).len(), 1);
        std::fs::rename(dir.path().join(CONTROL_FILE), dir.path().join(OLD_CONTROL_FILE)).unwrap();
        let (new, made) = Keys::load_or_make(dir.path()).unwrap();
        assert!(made && new.wireguard_public() == old.wireguard_public());
        let both = signs(&new);
        let verifies = |key: ControlPublicKey, signature: [u8; 64]| {
            let key = ed25519_dalek::VerifyingKey::from_bytes(&key.0).unwrap();
            key.verify_strict(b"new keys", &ed25519_dalek::Signature::from_bytes(&signature))
                .is_ok()
        };
        assert!(verifies(new.control_public(), both[0]) && verifies(old.control_public(), both[1]));
        assert!(!verifies(old.control_public(), both[0]));
    }

    #[test]
    fn keys_that_are_missing_are_made_once_and_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        let (first, made) = Keys::load_or_make(&keys).unwrap();
        assert!(made);
        for name in [WIREGUARD_FILE, CONTROL_FILE] {
            let mode = std::fs::metadata(keys.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{name}");
        }
        assert_eq!(std::fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o700);
        // A crash between the two leaves one: it is kept.
        std::fs::remove_file(keys.join(CONTROL_FILE)).unwrap();
        let (second, made) = Keys::load_or_make(&keys).unwrap();
        assert!(made);
        assert_eq!(first.wireguard_public(), second.wireguard_public());
        assert_ne!(first.control_public(), second.control_public());
        let (third, made) = Keys::load_or_make(&keys).unwrap();
        assert!(!made);
        assert_eq!(second.control_public(), third.control_public());
        // One that is there and no key is told, never replaced.
        write(&keys.join(CONTROL_FILE), "mine", 0o600);
        assert!(matches!(Keys::load_or_make(&keys), Err(SecretError::Malformed(_))));
    }

    #[test]
    fn what_is_no_key_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        for text in ["", "short", &BASE64.encode([1; 31]), &"A".repeat(5000)] {
            write(&path, text, 0o600);
            assert!(matches!(read(&path), Err(SecretError::Malformed(p)) if p == path));
        }
        let error = read(&dir.path().join("none.key")).err().unwrap().to_string();
        assert!(error.contains("wgctl keygen"), "{error}");
    }
}
