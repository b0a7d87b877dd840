//! Who does WireGuard on this node: the kernel, else a program.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::Unavailable;

/// Environment variable that names the [`Backend`] to use.
pub const BACKEND_VARIABLE: &str = "LEADERD_WIREGUARD";

/// Who does WireGuard on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's module.
    Kernel,
    /// A process of this program for each interface.
    Userspace(Program),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace(program) => program.name(),
        })
    }
}

/// The program of a userspace interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `wireguard-go`, which keeps its UDP socket open while its interface is down.
    WireguardGo,
    /// `leaderd userspace`.
    Leaderd,
}

impl Program {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::WireguardGo => "wireguard-go",
            Self::Leaderd => "leaderd",
        }
    }

    pub(crate) fn is_there(self) -> bool {
        self.find().is_some()
    }

    /// Returns the path of the program. leaderd is first looked for as the running program and beside it, so that versions do
    /// not mix.
    pub(super) fn find(self) -> Option<PathBuf> {
        let running = std::env::current_exe().ok().filter(|_| self == Self::Leaderd);
        let itself = running.as_deref().and_then(itself);
        let beside = running.as_deref().and_then(|r| Some(r.parent()?.join(self.name())));
        let path = std::env::var_os("PATH")
            .unwrap_or_else(|| OsString::from("/usr/sbin:/usr/bin:/sbin:/bin"));
        let in_path = std::env::split_paths(&path).map(|dir| dir.join(self.name()));
        itself.into_iter().chain(beside).chain(in_path).find(|file| file.is_file())
    }
}

/// Returns the running program if it is leaderd, under its own name even if the file was replaced since it started.
fn itself(running: &Path) -> Option<PathBuf> {
    let text = running.to_str()?;
    let path = Path::new(text.strip_suffix(" (deleted)").unwrap_or(text));
    (path.file_name()? == Program::Leaderd.name()).then(|| path.to_owned())
}

/// Returns the backend that [`BACKEND_VARIABLE`] requests, if any.
///
/// # Errors
/// If it names no backend.
pub(crate) fn requested() -> Result<Option<Backend>, Unavailable> {
    match std::env::var_os(BACKEND_VARIABLE) {
        None => Ok(None),
        Some(value) => parse(&value.to_string_lossy()),
    }
}

fn parse(value: &str) -> Result<Option<Backend>, Unavailable> {
    const ALL: [Backend; 3] = [
        Backend::Kernel,
        Backend::Userspace(Program::WireguardGo),
        Backend::Userspace(Program::Leaderd),
    ];
    if value.is_empty() {
        return Ok(None);
    }
    match ALL.into_iter().find(|b| b.to_string() == value) {
        Some(backend) => Ok(Some(backend)),
        None => Err(Unavailable::UnknownBackend(value.to_owned())),
    }
}

/// Selects the requested backend, else the first available one.
///
/// # Errors
/// If the requested backend is not available, or none is.
pub(crate) fn select(
    requested: Option<Backend>,
    kernel: bool,
    has: impl Fn(Program) -> bool,
) -> Result<Backend, Unavailable> {
    match requested {
        Some(Backend::Kernel) if !kernel => Err(Unavailable::Module),
        Some(Backend::Userspace(program)) if !has(program) => {
            Err(Unavailable::Requested(program.name()))
        }
        Some(backend) => Ok(backend),
        None if kernel => Ok(Backend::Kernel),
        None => [Program::WireguardGo, Program::Leaderd]
            .into_iter()
            .find(|program| has(*program))
            .map(Backend::Userspace)
            .ok_or(Unavailable::AnyProgram),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO: Backend = Backend::Userspace(Program::WireguardGo);
    const OWN: Backend = Backend::Userspace(Program::Leaderd);

    #[test]
    fn the_kernel_comes_first_then_wireguard_go_then_our_own() {
        assert_eq!(select(None, true, |_| true), Ok(Backend::Kernel));
        assert_eq!(select(None, false, |_| true), Ok(GO));
        assert_eq!(select(None, false, |p| p == Program::Leaderd), Ok(OWN));
        assert_eq!(select(None, false, |_| false), Err(Unavailable::AnyProgram));
    }

    #[test]
    fn a_requested_backend_is_used_or_reported_unavailable() {
        assert_eq!(select(Some(OWN), true, |_| true), Ok(OWN));
        assert_eq!(select(Some(Backend::Kernel), false, |_| true), Err(Unavailable::Module));
        let only_own = |p| p == Program::Leaderd;
        let unavailable = Err(Unavailable::Requested("wireguard-go"));
        assert_eq!(select(Some(GO), true, only_own), unavailable);
    }

    #[test]
    fn a_backend_is_requested_by_the_name_it_is_shown_with() {
        for backend in [Backend::Kernel, GO, OWN] {
            assert_eq!(parse(&backend.to_string()), Ok(Some(backend)));
        }
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("boringtun"), Err(Unavailable::UnknownBackend("boringtun".into())));
    }

    #[test]
    fn a_leaderd_that_was_replaced_is_found_under_its_name() {
        let own = Some(PathBuf::from("/usr/local/bin/leaderd"));
        assert_eq!(itself(Path::new("/usr/local/bin/leaderd")), own);
        assert_eq!(itself(Path::new("/usr/local/bin/leaderd (deleted)")), own);
        assert_eq!(itself(Path::new("/usr/local/bin/wgctl")), None);
    }
}
