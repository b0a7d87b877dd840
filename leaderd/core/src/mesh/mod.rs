//! The mesh file: reading and checking it, and the mesh that it describes.
//!
//! ```text
//! text → toml (positions kept) → draft (each field by itself) → check (fields against each other) → Mesh
//! ```
//!
//! Reading collects every mistake with its place and with what to do about it. Only a file without mistakes becomes a [`Mesh`].

mod check;
mod diagnostic;
mod draft;
mod endpoint;
mod index;
mod inner;
mod location;
mod model;
mod node;
mod policy;
mod reader;
mod template;
#[cfg(any(test, feature = "testing"))]
mod testing;
mod values;

#[cfg(test)]
mod tests;

use sha2::{Digest, Sha256};

pub use diagnostic::{Diagnostic, MAX_DIAGNOSTICS, report};
pub use endpoint::{Addresses, SILENCE, Unfit};
pub use inner::{InnerRange, NEW_INNER, OTHER_INNER, UNSAID_INNER, is_taken};
pub use location::{HttpRequest, Location, Overlay, Service, Steering, VxlanDevice};
pub use model::{Commands, Mesh, MeshSpec, NotCarried, ProofPolicy, plane};
pub use node::{ControlPublicKey, Host, Node};
pub use policy::{Policy, PolicyField, PolicyPatch};
pub use template::{EXAMPLE_NODES, ExampleKeys, example};

use diagnostic::Sink;

/// Longest mesh file, in bytes: 4,094 nodes with a dozen prefixes each fit.
pub const MAX_TEXT: usize = 8 << 20;

/// Reads and checks a mesh file. Fails with every mistake found (at most [`MAX_DIAGNOSTICS`]), in the file's order.
pub fn parse(text: &str) -> Result<Mesh, Vec<Diagnostic>> {
    let mut sink = Sink::new(text);
    if text.len() > MAX_TEXT {
        sink.push(
            0,
            format!("the file has {} bytes, the most is {MAX_TEXT}", text.len()),
            "split the mesh in two",
        );
        return Err(sink.into_diagnostics());
    }
    let (root, errors) = toml::de::DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |s| s.start);
        sink.push(
            at,
            format!("this is no TOML: {}", error.message().replace('\n', ", ")),
            "see https://toml.io",
        );
    }
    if !errors.is_empty() {
        return Err(sink.into_diagnostics());
    }
    let draft = draft::read(root.get_ref(), &mut sink);
    check::check(&draft, &mut sink);
    if sink.is_empty() {
        if let Some(mesh) = draft.into_mesh(Sha256::digest(text).into()) {
            return Ok(mesh);
        }
        // Unreachable, as whatever a draft lacks was a mistake. Half a mesh is refused all the same.
        sink.push(0, "the file is incomplete".into(), "compare it with `wgctl mesh init`");
    }
    Err(sink.into_diagnostics())
}

/// Returns the DNS name in lower case, if the text is one.
pub(crate) fn host_name(text: &str) -> Option<String> {
    match values::host(text) {
        Ok(Host::Name(name)) => Some(name),
        _ => None,
    }
}
