//! The lab without the rest of `wgctl`.

use clap::Parser;

#[derive(Parser)]
#[command(name = "lab")]
struct Args {
    #[command(flatten)]
    lab: wgctl_lab::LabArgs,
}

fn main() -> std::process::ExitCode {
    match wgctl_lab::run(Args::parse().lab) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("lab: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
