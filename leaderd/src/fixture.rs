//! The example mesh file, for tests.

use leaderd_core::mesh::{EXAMPLE_NODES, ExampleKeys, Mesh, example, parse};

pub(crate) fn example_mesh() -> Mesh {
    let keys: [ExampleKeys; EXAMPLE_NODES] = std::array::from_fn(|n| ExampleKeys {
        wireguard: [n as u8 + 1; 32],
        control: [n as u8 + 101; 32],
    });
    parse(&example(&keys)).expect("the example is a good mesh")
}
