//! leaderd on every node beside Kilo, told of the cluster: `leaderd run --kubernetes`, as its chart in `deploy/helm` says.
//!
//! The chart itself is applied with the real Helm and the real API server: CRD, roles, admission policy. Its DaemonSet stays an object,
//! as nothing here starts containers; the lab starts the daemons, each in its node's namespaces, with the name and the rights of the
//! chart's service account, by a token that is bound to the node.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wgctl_lab::{Instead, World};

use super::api::Api;
use super::control_plane::{ControlPlane, User};
use super::programs::Programs;

pub const NAMESPACE: &str = "leaderd";
pub const POOLS: &str = "/apis/leaderd.io/v1alpha1/locationpools";

/// Path of a pool.
pub fn pool_path(name: &str) -> String {
    format!("{POOLS}/{name}")
}

/// Installs the chart with a pool for each location, and says how the world's daemons are to be started.
pub fn prepare(
    world: &mut World,
    control: &ControlPlane,
    programs: &Programs,
    steering: &str,
) -> Result<()> {
    let api = control.api(User::Admin)?;
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    api.create("/api/v1/namespaces", &namespace)?;
    // As `helm install` does: definitions first.
    let definitions = chart().join("crds");
    control
        .kubectl(&["apply", "-f", definitions.to_str().context("a path that is no text")?], "")?;
    let crd = "crd/locationpools.leaderd.io";
    control.kubectl(&["wait", "--for=condition=established", "--timeout=60s", crd], "")?;
    let pools = world.topology.locations.iter().map(|l| format!("pools.{0}.location={0}", l.name));
    let values: Vec<String> = pools
        // The stand-in is Kilo beside flannel.
        .chain(
            ["image.repository=leaderd", "admissionPolicy.enabled=true", "overlay=flannel"]
                .map(String::from),
        )
        .chain([format!("steering={steering}")])
        .collect();
    control.kubectl(&["apply", "-f", "-"], &render(programs, &values.join(","))?)?;
    let of_chart = api.get("/api/v1/namespaces/leaderd/configmaps/leaderd-settings")?;
    let settings = world.dir.join("settings.toml");
    std::fs::write(&settings, of_chart["data"]["settings.toml"].as_str().context("no settings")?)?;
    for n in &world.nodes {
        // It makes its own.
        std::fs::remove_dir_all(n.dir.join("keys"))?;
        let config = n.dir.join("leaderd.kubeconfig");
        control.write_kubeconfig_of(&control.node_token(&n.node.name)?, &config)?;
        let arguments = vec!["--kubernetes".into(), "--settings".into(), settings.clone().into()];
        let environment =
            vec![("KUBECONFIG", config.into_os_string()), ("POD_NAMESPACE", NAMESPACE.into())];
        world.instead.push(Instead { arguments, environment });
    }
    Ok(())
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/leaderd")
}

/// The chart's manifests with these values, as `--set` takes them.
fn render(programs: &Programs, values: &str) -> Result<String> {
    let out = Command::new(programs.kilo.join("helm"))
        .args(["template", "leaderd"])
        .arg(chart())
        .args(["--namespace", NAMESPACE, "--set", values])
        .output()
        .context("helm")?;
    ensure!(out.status.success(), "helm template: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(String::from_utf8(out.stdout)?)
}

pub fn create_pool(api: &Api, name: &str, spec: Value) -> Result<()> {
    let pool = json!({
        "apiVersion": "leaderd.io/v1alpha1", "kind": "LocationPool", "metadata": {"name": name}, "spec": spec,
    });
    api.create(POOLS, &pool).map(drop)
}
