//! The addresses within this node's prefixes that the host holds: read from the kernel at the start, and whenever it reports a change.

use std::sync::Arc;
use std::time::Duration;

use leaderd_core::ids::NodeName;
use leaderd_core::io::{HeldAddress, Input};
use leaderd_core::mesh::Mesh;
use tokio::sync::{mpsc, watch};
use wgctl::net::{AddressEvents, local_addresses};

/// Changes come together: a device that goes takes its addresses along, a CNI that starts gives several.
const SETTLE: Duration = Duration::from_millis(50);

/// How often to read them where the kernel reports nothing.
const CHECK: Duration = Duration::from_secs(5);

/// Most addresses that are reported: the core needs one of each family, and a host may hold thousands.
const MAX_REPORTED: usize = 256;

/// Runs until the engine is gone.
pub async fn watch(
    me: NodeName,
    mut meshes: watch::Receiver<Arc<Mesh>>,
    inputs: mpsc::Sender<Input>,
) {
    let mut news = match AddressEvents::open() {
        Ok(news) => Some(news),
        Err(error) => {
            tracing::warn!(%error, "no news of addresses: changes are seen a little later");
            None
        }
    };
    let (mut told, mut complained) = (None, false);
    loop {
        let mesh = meshes.borrow_and_update().clone();
        // Not here: a host with many devices takes a while to list them, and the engine shares this thread.
        let name = me.clone();
        let looked = tokio::task::spawn_blocking(move || within(&mesh, &name)).await;
        match looked.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(held) => {
                complained = false;
                if told.as_ref() != Some(&held) {
                    tracing::debug!(addresses = ?held, "addresses within this node's prefixes");
                    told = Some(held.clone());
                    if inputs.send(Input::Addresses(held)).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::error!(%error, "cannot find out which addresses this host holds");
                }
            }
        }
        let again = complained || news.is_none();
        tokio::select! {
            () = tokio::time::sleep(CHECK), if again => {}
            () = heard(&mut news) => {
                tokio::time::sleep(SETTLE).await;
                if let Some(news) = &news {
                    news.drain();
                }
            }
            changed = meshes.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// Never, if there are no news.
async fn heard(news: &mut Option<AddressEvents>) {
    let Some(socket) = news else { return std::future::pending().await };
    if let Err(error) = socket.next().await {
        tracing::warn!(%error, "no more news of addresses: changes are seen a little later");
        *news = None;
    }
}

/// The addresses of this host that lie in this node's prefixes.
fn within(mesh: &Mesh, me: &NodeName) -> std::io::Result<Vec<HeldAddress>> {
    let Some(me) = mesh.node(me) else { return Ok(Vec::new()) };
    let mut all = local_addresses()?;
    // Its own first: that one must be among them.
    all.sort_by_key(|h| h.address != me.address);
    let all = all.into_iter().filter(|h| h.address == me.address || me.has_workload(h.address));
    let all = all.map(|h| HeldAddress { device: h.device, address: h.address });
    Ok(all.take(MAX_REPORTED).collect())
}
