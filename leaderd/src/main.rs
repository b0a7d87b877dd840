//! The daemon's command line. Exit status: 0 success, 1 failure, 2 wrong usage.

use std::process::ExitCode;

use clap::Parser;
use leaderd::cli::{CleanupArgs, Cli, Verb};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Run(args) => leaderd::run::run(args),
        Verb::Replay(args) => leaderd::replay::run(&args),
        Verb::Userspace(args) => leaderd::userspace::run(&args),
        Verb::Cleanup(args) => cleanup(&args),
        #[cfg(feature = "kubernetes")]
        Verb::Crd => leaderd::kubernetes::print_crd(),
        #[cfg(feature = "kubernetes")]
        Verb::Uninstall(args) => leaderd::kubernetes::uninstall::run(&args),
        Verb::Reset(args) => leaderd::store::reset(&args.state).map_err(Into::into).map(|was| {
            let dir = args.state.display();
            println!(
                "{}",
                if was {
                    format!("forgot the store in {dir}")
                } else {
                    format!("no store in {dir}")
                }
            );
            ExitCode::SUCCESS
        }),
    };
    done.unwrap_or_else(|error| {
        eprintln!("leaderd: {}", leaderd::run::in_one_line(&error));
        ExitCode::FAILURE
    })
}

fn cleanup(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if args.idle {
            return idle().await;
        }
        let removed = leaderd::network::cleanup().await?;
        for change in &removed {
            println!("{change}");
        }
        if removed.is_empty() {
            println!("nothing of leaderd's was there");
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn idle() -> anyhow::Result<ExitCode> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    println!("idle until SIGTERM or SIGINT");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}
