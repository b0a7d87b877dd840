//! `wgctl`, the operator's one tool: reads and steers leaderd, shows the network, checks the mesh file, runs the lab.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}
