//! `leaderd replay`: the same core over a recording's inputs. It prints what the daemon decided, when and why, and says
//! whether the core still wants done exactly what was recorded. Nothing but the file is read; nothing is sent.

mod account;
mod play;
mod render;

use std::process::ExitCode;

pub use account::{Account, Entry, What};
pub use play::{Divergence, Outcome, Replay, play};

use crate::cli::ReplayArgs;
use crate::record::{ReadError, Reader};

/// Exit status if the file is no recording that this version reads.
const USAGE_ERROR: u8 = 2;

pub fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let opened = Reader::open(&args.file).and_then(|mut reader| Ok((reader.header()?, reader)));
    let (header, mut reader) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            match error {
                ReadError::Open { .. } => eprintln!("leaderd: {error}"),
                _ => eprintln!("leaderd: {}: {error}", args.file.display()),
            }
            return Ok(ExitCode::from(USAGE_ERROR));
        }
    };
    let replay = play(header, &mut reader);
    let text = if args.json {
        serde_json::to_string_pretty(&replay)? + "\n"
    } else {
        render::render(&replay, args.debug)
    };
    // A reader that has seen enough (`| head`) is no failure of ours.
    if let Err(error) = std::io::Write::write_all(&mut std::io::stdout().lock(), text.as_bytes())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(error.into());
    }
    Ok(if replay.outcome == Outcome::AsRecorded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
