//! The programs of `tests/kilo/build`, and ours.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::agents::Agents;

/// Where everything is that runs in the rig.
#[derive(Clone, Debug)]
pub struct Programs {
    /// etcd, kube-apiserver, kubectl, helm.
    pub kilo: PathBuf,
    pub leaderd: PathBuf,
    /// The real Kilo agent, if whoever runs this has it (`$KILO_KG`).
    pub kg: Option<PathBuf>,
}

impl Programs {
    /// From `$KILO_BIN_DIR` and `$LEADERD_BIN_DIR`; else from cargo's target directory, as this program is in `TARGET/PROFILE/deps`.
    /// An error names all that is missing.
    pub fn find() -> Result<Self> {
        let me = std::env::current_exe()?;
        let profile = me.ancestors().nth(2).unwrap_or(Path::new("")).to_owned();
        let dir = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        let kilo = dir("KILO_BIN_DIR").unwrap_or_else(|| profile.join("../kilo/bin"));
        let leaderd = dir("LEADERD_BIN_DIR").unwrap_or(profile).join("leaderd");
        let mut missing = Vec::new();
        for program in ["server", "kube-apiserver", "kubectl", "helm"] {
            if !kilo.join(program).is_file() {
                missing.push(format!("{program} in {} (tests/kilo/build)", kilo.display()));
            }
        }
        if !leaderd.is_file() {
            missing.push(format!("{} (make lab, or set LEADERD_BIN_DIR)", leaderd.display()));
        }
        if !missing.is_empty() {
            bail!("missing: {}", missing.join("; "));
        }
        Ok(Self {
            kilo: kilo.canonicalize()?,
            leaderd: leaderd.canonicalize()?,
            kg: Agents::program()?,
        })
    }
}
