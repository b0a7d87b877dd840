//! From evidence to verdicts: `losses` runs the sequential tests (`sprt`), `classify` names the fault, `verdict` moves
//! the verdict of each path.

mod classify;
mod losses;
pub mod sprt;
mod verdict;
