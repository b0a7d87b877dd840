//! `leaderd uninstall`: removes everything that leaderd wrote into the cluster. Pools belong to people and stay; `kubectl delete` removes
//! the CRD.

use std::process::ExitCode;

use anyhow::Context;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use leaderd_core::kubernetes::{ClusterView, uninstall_changes};
use serde_json::json;

use super::COMPONENT;
use super::api_health::{ApiError, call};
use super::convert;
use super::requests::condition_patch;
use super::watch::MESH_OBJECT;
use crate::cli::Namespace;

/// Attempts for a node that another client changes at the same time.
const TRIES: usize = 5;

/// Nodes read at once.
const PAGE: u32 = 500;

pub fn run(args: &Namespace) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let client = kube::Client::try_from(super::api().await?)?;
        remove(client, &args.namespace).await
    })?;
    for line in &done {
        println!("{line}");
    }
    if done.is_empty() {
        println!("nothing of leaderd's was found");
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns what was removed, one line each. The mesh goes first: a daemon that still runs must not find its node without keys in it.
async fn remove(client: kube::Client, namespace: &str) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    let meshes = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    match call(meshes.delete(MESH_OBJECT, &DeleteParams::default())).await {
        Ok(_) => done.push(format!("configmap {namespace}/{MESH_OBJECT}: deleted")),
        Err(ApiError::Kube(kube::Error::Api(status))) if status.code == 404 => {}
        Err(error) => {
            return Err(error).context(format!("cannot delete {namespace}/{MESH_OBJECT}"));
        }
    }
    let nodes = Api::<Node>::all(client);
    for name in names(&nodes).await? {
        let lines = of_node(&nodes, &name).await.with_context(|| format!("node {name}"))?;
        done.extend(lines);
    }
    Ok(done)
}

async fn names(nodes: &Api<Node>) -> anyhow::Result<Vec<String>> {
    let mut page = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let list = call(nodes.list_metadata(&page)).await.context("cannot list nodes")?;
        all.extend(list.items.into_iter().filter_map(|n| n.metadata.name));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(all),
        }
    }
}

async fn of_node(nodes: &Api<Node>, name: &str) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    for tried in 1.. {
        let node = convert::node(call(nodes.get(name)).await?);
        let conditions = [
            (convert::CONDITION, node.relay_forwarding.is_some()),
            (convert::REFUSED, node.change_refused.is_some()),
        ];
        let view =
            ClusterView { nodes: [(name.to_owned(), node)].into(), ..ClusterView::default() };
        let mut conflict = false;
        for change in uninstall_changes(&view) {
            let patch = Patch::Merge(json!({"metadata": {
                "resourceVersion": change.resource_version, "annotations": change.annotations,
            }}));
            match call(nodes.patch_metadata(name, &PatchParams::apply(COMPONENT), &patch)).await {
                Ok(_) => done.extend(
                    change
                        .annotations
                        .keys()
                        .map(|key| format!("node {name}: annotation {key} removed")),
                ),
                Err(error) if error.is_conflict() && tried < TRIES => conflict = true,
                Err(error) => return Err(error.into()),
            }
        }
        if conflict {
            continue;
        }
        for (kind, _) in conditions.into_iter().filter(|(_, there)| *there) {
            let patch = Patch::Strategic(condition_patch(kind, None, None, None, Timestamp::now()));
            call(nodes.patch_status(name, &PatchParams::apply(COMPONENT), &patch)).await?;
            done.push(format!("node {name}: condition {kind} removed"));
        }
        break;
    }
    Ok(done)
}
