//! A daemon works whole or not at all: a panic anywhere, an essential part that ends and a thread that hangs end the process,
//! with a message, and the service manager starts it again. Forwarding goes on meanwhile: the kernel and the WireGuard
//! processes do it.
//!
//! Three mechanisms, all of the process and so global:
//! - [`end_on_panic`]: a panic in any thread or task ends the process with status 101. Who can handle one uses [`caught`].
//! - [`essential`]: a guard that a task or thread holds while it works. Once the daemon is [`running`], dropping the guard
//!   ends the process, unless the daemon is [`stopping`].
//! - [`Beat`]: a sign of life, given at least once a second. A thread that gives none for `watchdog::LIMIT` checks ends the process.
//!   Only threads that never wait for a disk have one: a disk that hangs stops voting, and a restart would not mend it. So the
//!   engine and the network's thread have one; the store, the recorder, the cluster's thread (it keeps a view on disk) and tokio's
//!   blocking threads (DNS, reading the mesh file, starting WireGuard processes) have none.
//!
//! Where the service manager has a watchdog (`WatchdogSec=`), it is fed while all beats are fresh: it also ends a process that
//! cannot end itself.

mod watchdog;

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::libc;

pub use watchdog::{Beat, beat, stalled};

/// Exit status after a panic, after the end of an essential part, and after a hang: the one that Rust gives to a panic.
pub const FAILED: i32 = 101;

/// How long the last message may take, in seconds. A standard error that is not read must not keep a broken process alive.
const LAST_MESSAGE: u32 = 5;

/// How far the daemon is.
enum Life {
    /// Not all parts are there yet; those that ended already are kept until then.
    Starting(Vec<&'static str>),
    Running,
    Stopping,
}

static LIFE: Mutex<Life> = Mutex::new(Life::Starting(Vec::new()));

fn life() -> MutexGuard<'static, Life> {
    LIFE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a panic of this thread leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnPanic {
    End,
    /// The stack is unwound first, within [`LAST_MESSAGE`]: what is dropped saves what it can. The process ends all the same.
    Unwind,
    /// The caller catches it, and goes on.
    Caught,
}

thread_local! {
    static ON_PANIC: Cell<OnPanic> = const { Cell::new(OnPanic::End) };
}

/// From now on a panic ends the process.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let then = ON_PANIC.get();
        if then == OnPanic::Caught {
            return;
        }
        end_within(LAST_MESSAGE);
        say(&panicked(info));
        if then == OnPanic::End {
            exit();
        }
    }));
}

/// Runs something that may panic. The process goes on.
///
/// # Errors
/// The panic's message.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let _restore = then(OnPanic::Caught);
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| message(panic.as_ref()).to_owned())
}

/// While the guard lives, a panic of this thread unwinds its stack before the process ends.
pub fn unwind_first() -> impl Drop {
    then(OnPanic::Unwind)
}

/// Runs what holds the daemon, and ends the process if it panics: unwinding is over then.
pub fn end_if_unwound<T>(work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| exit())
}

fn then(what: OnPanic) -> impl Drop {
    struct Restore(OnPanic);
    impl Drop for Restore {
        fn drop(&mut self) {
            // The hook has run when the stack unwinds through here.
            ON_PANIC.set(self.0);
        }
    }
    Restore(ON_PANIC.replace(what))
}

/// Held by a part that must work for as long as the daemon does.
#[derive(Debug)]
#[must_use = "dropping it says that the part has ended"]
pub struct Essential(&'static str);

/// This part works from now on, until the guard is dropped.
pub fn essential(name: &'static str) -> Essential {
    Essential(name)
}

impl Drop for Essential {
    fn drop(&mut self) {
        if let Life::Starting(ended) = &mut *life() {
            ended.push(self.0);
            return;
        }
        if matches!(*life(), Life::Running) {
            fail(&format!("the daemon's {} ended, and it cannot work without", self.0));
        }
    }
}

/// Runs a part that never ends by itself.
pub async fn never_ends<T>(name: &'static str, part: impl Future<Output = T>) -> T {
    let _essential = essential(name);
    part.await
}

/// All parts are there: from now on none may end. Starts the watchdog.
///
/// # Errors
/// If there is no thread for the watchdog.
pub fn running() -> std::io::Result<()> {
    let before = std::mem::replace(&mut *life(), Life::Running);
    if let Life::Starting(ended) = before
        && let Some(name) = ended.first()
    {
        fail(&format!("the daemon's {name} ended while it started, and it cannot work without"));
    }
    watchdog::start()
}

/// The daemon was asked to stop: its parts may end now.
pub fn stopping() {
    *life() = Life::Stopping;
}

/// Ends the process with a message.
pub fn fail(why: &str) -> ! {
    end_within(LAST_MESSAGE);
    say(why);
    exit()
}

/// Has SIGALRM end the process, whatever its threads wait for: it has no handler.
fn end_within(seconds: u32) {
    // SAFETY: alarm(2) takes and gives a number.
    unsafe { libc::alarm(seconds) };
}

fn say(why: &str) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{why}; forwarding goes on");
    } else {
        eprintln!("leaderd: {why}");
    }
}

/// Not `std::process::exit`, which runs handlers and takes locks that the panicking thread may hold.
fn exit() -> ! {
    // SAFETY: _exit(2) ends the process, and nothing runs after it.
    unsafe { libc::_exit(FAILED) }
}

fn panicked(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line()));
    format!("panic in thread {thread}{}: {}", place.unwrap_or_default(), message(info.payload()))
}

/// What a panic said.
fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Gives a beat once a second for as long as the thread's runtime turns.
pub async fn pulse(name: &'static str) {
    let beat = beat(name);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        beat.give();
    }
}

#[cfg(test)]
mod tests;
