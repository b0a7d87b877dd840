//! `wgctl completions SHELL`

use std::process::ExitCode;

use clap::CommandFactory;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Where the scripts go:
  bash   wgctl completions bash > /etc/bash_completion.d/wgctl
  zsh    wgctl completions zsh > /usr/local/share/zsh/site-functions/_wgctl
  fish   wgctl completions fish > ~/.config/fish/completions/wgctl.fish")]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// The shells that are documented; clap_complete knows more.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::Cli::command(), "wgctl", &mut script);
    super::Output::detect(false).print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}
