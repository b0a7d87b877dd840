//! Who does WireGuard on this node: the kernel, else a program.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Backend, Missing};

/// Environment variable that names a [`Backend`] which must be used.
pub const BACKEND_VARIABLE: &str = "LEADERD_WIREGUARD";

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

    /// Where it is. leaderd is looked for as the running program and beside it first, so that versions do not mix.
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

/// The running program if it is leaderd. One that was replaced since it started is found under its name.
fn itself(running: &Path) -> Option<PathBuf> {
    let text = running.to_str()?;
    let path = Path::new(text.strip_suffix(" (deleted)").unwrap_or(text));
    (path.file_name()? == Program::Leaderd.name()).then(|| path.to_owned())
}

/// What [`BACKEND_VARIABLE`] asks for, if anything.
pub(crate) fn wanted() -> Result<Option<Backend>, Missing> {
    match std::env::var_os(BACKEND_VARIABLE) {
        None => Ok(None),
        Some(value) => parse(&value.to_string_lossy()),
    }
}

fn parse(value: &str) -> Result<Option<Backend>, Missing> {
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
        None => Err(Missing::Choice(value.to_owned())),
    }
}

/// The one to use: the one asked for, else the first that is there.
///
/// # Errors
/// If that is not there, or nobody is.
pub(crate) fn choose(
    wanted: Option<Backend>,
    kernel: bool,
    has: impl Fn(Program) -> bool,
) -> Result<Backend, Missing> {
    match wanted {
        Some(Backend::Kernel) if !kernel => Err(Missing::Module),
        Some(Backend::Userspace(program)) if !has(program) => Err(Missing::Asked(program.name())),
        Some(backend) => Ok(backend),
        None if kernel => Ok(Backend::Kernel),
        None => [Program::WireguardGo, Program::Leaderd]
            .into_iter()
            .find(|program| has(*program))
            .map(Backend::Userspace)
            .ok_or(Missing::Program),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO: Backend = Backend::Userspace(Program::WireguardGo);
    const OWN: Backend = Backend::Userspace(Program::Leaderd);

    #[test]
    fn the_kernel_comes_first_then_wireguard_go_then_our_own() {
        assert_eq!(choose(None, true, |_| true), Ok(Backend::Kernel));
        assert_eq!(choose(None, false, |_| true), Ok(GO));
        assert_eq!(choose(None, false, |p| p == Program::Leaderd), Ok(OWN));
        assert_eq!(choose(None, false, |_| false), Err(Missing::Program));
    }

    #[test]
    fn who_is_asked_for_is_used_or_missed() {
        assert_eq!(choose(Some(OWN), true, |_| true), Ok(OWN));
        assert_eq!(choose(Some(Backend::Kernel), false, |_| true), Err(Missing::Module));
        let only_own = |p| p == Program::Leaderd;
        assert_eq!(choose(Some(GO), true, only_own), Err(Missing::Asked("wireguard-go")));
    }

    #[test]
    fn a_backend_is_asked_for_by_the_name_it_is_shown_with() {
        for backend in [Backend::Kernel, GO, OWN] {
            assert_eq!(parse(&backend.to_string()), Ok(Some(backend)));
        }
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("boringtun"), Err(Missing::Choice("boringtun".into())));
    }

    #[test]
    fn a_leaderd_that_was_replaced_is_found_under_its_name() {
        let own = Some(PathBuf::from("/usr/local/bin/leaderd"));
        assert_eq!(itself(Path::new("/usr/local/bin/leaderd")), own);
        assert_eq!(itself(Path::new("/usr/local/bin/leaderd (deleted)")), own);
        assert_eq!(itself(Path::new("/usr/local/bin/wgctl")), None);
    }
}
