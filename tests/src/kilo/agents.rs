//! Kilo's agents, one on each node: the real ones where `$KILO_KG` names the program, else the stand-in.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use wgctl_lab::World;

use super::control_plane::ControlPlane;
use super::real::RealKilo;
use super::stand_in::StandIn;

/// A node was reprogrammed.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Microseconds since the Unix epoch.
    pub at: u64,
    pub node: usize,
    pub leads: bool,
}

/// Who plays Kilo.
#[derive(Debug)]
pub enum Agents {
    StandIn(StandIn),
    Real(RealKilo),
}

impl Agents {
    /// The program that `$KILO_KG` names, if it is set.
    pub fn program() -> Result<Option<PathBuf>> {
        let Some(path) = std::env::var_os("KILO_KG").filter(|p| !p.is_empty()) else {
            return Ok(None);
        };
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "KILO_KG={} is no file: name Kilo's agent, kg", path.display());
        Ok(Some(path.canonicalize()?))
    }

    pub fn start(
        program: Option<&Path>,
        world: &Arc<World>,
        control: &ControlPlane,
    ) -> Result<Self> {
        Ok(match program {
            Some(program) => Self::Real(RealKilo::start(program, world, control)?),
            None => Self::StandIn(StandIn::start(world, control)?),
        })
    }

    /// Starts an agent where none runs.
    pub fn launch(&self, node: usize, control: &ControlPlane) -> Result<()> {
        match self {
            Self::StandIn(kilo) => kilo.launch(node, control),
            Self::Real(kilo) => kilo.launch(node),
        }
    }

    /// The agent dies at once; the kernel stays as it is.
    pub fn kill(&self, node: usize) {
        match self {
            Self::StandIn(kilo) => kilo.kill(node),
            Self::Real(kilo) => kilo.kill(node),
        }
    }

    /// SIGTERM: the agent cleans up and ends.
    pub fn terminate(&self, node: usize) -> Result<()> {
        match self {
            Self::StandIn(kilo) => {
                kilo.terminate(node);
                Ok(())
            }
            Self::Real(kilo) => kilo.terminate(node),
        }
    }

    /// After a crash of the node: the device anew, and an agent.
    pub fn boot(&self, node: usize, control: &ControlPlane) -> Result<()> {
        match self {
            Self::StandIn(kilo) => kilo.boot(node, control),
            Self::Real(kilo) => kilo.boot(node),
        }
    }

    /// Where agents reprogrammed a node since then.
    pub fn applied_since(&self, at: u64) -> Result<Vec<Applied>> {
        match self {
            Self::StandIn(kilo) => Ok(kilo.applied_since(at)),
            Self::Real(kilo) => kilo.applied_since(at),
        }
    }

    pub fn save_logs(&self, to: &Path) -> Result<()> {
        match self {
            Self::StandIn(_) => Ok(()),
            Self::Real(kilo) => kilo.save_logs(to),
        }
    }
}

pub(super) fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
