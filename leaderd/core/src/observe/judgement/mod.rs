//! From evidence to verdicts: `losses` runs the sequential tests (`sprt`), `classify` names the cause, `path_mtu` searches for
//! the size that passes, `verdict` is the state of one path, and `judge` moves it.

mod classify;
mod judge;
mod losses;
pub mod path_mtu;
pub mod sprt;
pub mod verdict;
