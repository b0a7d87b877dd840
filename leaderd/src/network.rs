//! The kernel's side: a thread that owns the steward of the network, so that nothing it does can hold up the engine.
//!
//! It programs the newest desired network (those in between are skipped), repairs drift when the kernel tells of it, and
//! looks at what this node needs to relay at all: its interfaces up and forwarding on.

mod facts;
mod failing;
mod steward;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, Instant};

use leaderd_core::io::{Input, LocalFacts};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use wgctl_plan::{Network, WgPublicKey};

pub use failing::Failing;
pub use steward::{KernelSteward, cleanup};

use crate::counters::Counters;
use crate::engine::Program;
use crate::supervise;

/// Keeps the kernel as it is told to.
pub trait Steward {
    /// `kernel`, `wireguard-go` or `leaderd`.
    fn backend(&self) -> String;
    /// Gives what the kernel refused of it; all else is programmed then.
    ///
    /// # Errors
    /// If nothing could be programmed, as the kernel cannot be read.
    fn program(&mut self, network: Network) -> impl Future<Output = Result<Failing, String>>;
    /// Compares the kernel with the last programmed network, puts right what differs, and says what that was.
    fn reconcile(&mut self) -> impl Future<Output = Repairs>;
    /// True when something that was put off is due: call `reconcile`.
    fn is_due(&self) -> bool {
        false
    }
    /// Peers that were sent to and are silent, by the last comparison.
    fn silent(&self) -> BTreeSet<WgPublicKey> {
        BTreeSet::new()
    }
    /// What works less well than it should although nothing failed, and what to do about it.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
    /// Waits until the kernel tells of a change that may concern us. Cancel-safe.
    fn drift(&mut self) -> impl Future<Output = ()>;
}

/// What a comparison with the kernel led to. Some repairs may fail while others are made.
#[derive(Debug)]
pub struct Repairs {
    pub made: Vec<String>,
    /// What the kernel refused; or why nothing could be compared.
    pub failing: Result<Failing, String>,
}

/// Whom the thread tells what.
#[derive(Clone, Debug)]
pub struct Tells {
    pub inputs: mpsc::Sender<Input>,
    /// Peers that were sent to and are silent.
    pub silent: watch::Sender<BTreeSet<WgPublicKey>>,
    pub counters: Counters,
}

/// How often the node looks at its own ability to relay.
const LOOK: Duration = Duration::from_millis(250);

/// Everything is compared this often even without news: events can be lost, and nobody tells of WireGuard's peers.
const RECONCILE: Duration = Duration::from_secs(5);

/// A failed programming is tried again after this.
const RETRY: Duration = Duration::from_millis(500);

/// Between two log lines about the same failure.
const REPEAT_LOG: Duration = Duration::from_secs(60);

/// Starts the thread; waits until the steward is made, or gives why it cannot be.
/// Dropping the sender of `programs` ends it, and leaves the kernel as it is.
pub async fn start<S, M>(
    make: impl FnOnce() -> M + Send + 'static,
    programs: watch::Receiver<Program>,
    tells: Tells,
) -> anyhow::Result<()>
where
    S: Steward,
    M: Future<Output = anyhow::Result<S>>,
{
    let (made, is_made) = oneshot::channel();
    std::thread::Builder::new().name("network".into()).spawn(move || {
        let _essential = supervise::essential("network thread");
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = made.send(Err(error.into()));
                return;
            }
        };
        runtime.block_on(async {
            match make().await {
                Ok(steward) => {
                    let _ = made.send(Ok(()));
                    let keeper = Keeper {
                        steward,
                        tells,
                        programmed: None,
                        told: None,
                        complained: None,
                        failing: Failing::default(),
                        failing_told: Failing::default(),
                        notes: Vec::new(),
                    };
                    // What takes long (a WireGuard process that starts) is done elsewhere, and this goes on.
                    tokio::select! {
                        () = keeper.run(programs) => {}
                        () = supervise::pulse("network") => {}
                    }
                }
                Err(error) => {
                    let _ = made.send(Err(error));
                }
            }
        });
    })?;
    is_made.await.unwrap_or_else(|_| Err(anyhow::anyhow!("the network thread died")))
}

struct Keeper<S> {
    steward: S,
    tells: Tells,
    programmed: Option<Network>,
    told: Option<LocalFacts>,
    /// What kept us from programming, and when it was last logged.
    complained: Option<(String, Instant)>,
    /// What the kernel refused when it was last asked.
    failing: Failing,
    /// What it refused again, and was told of.
    failing_told: Failing,
    notes: Vec<String>,
}

impl<S: Steward> Keeper<S> {
    async fn run(mut self, mut programs: watch::Receiver<Program>) {
        self.look().await;
        let mut looks = interval(LOOK);
        let mut reconciles = interval(RECONCILE);
        for timer in [&mut looks, &mut reconciles] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut again: Option<tokio::time::Instant> = None;
        loop {
            tokio::select! {
                changed = programs.changed() => match changed {
                    Ok(()) => again = self.program(&mut programs).await,
                    Err(_) => return,
                },
                // A deadline, not a duration: the other timers come round more often and would start it anew.
                () = tokio::time::sleep_until(again.unwrap_or_else(tokio::time::Instant::now)), if again.is_some() => {
                    again = self.program(&mut programs).await;
                }
                () = self.steward.drift(), if self.programmed.is_some() => {
                    // First look, then repair: the core is to know of a fault that lasted only until we saw it.
                    self.look().await;
                    self.reconcile().await;
                }
                _ = looks.tick() => {
                    self.look().await;
                    if self.steward.is_due() {
                        self.reconcile().await;
                    }
                }
                _ = reconciles.tick(), if self.programmed.is_some() => self.reconcile().await,
            }
        }
    }

    /// When to try again, if it failed.
    async fn program(
        &mut self,
        programs: &mut watch::Receiver<Program>,
    ) -> Option<tokio::time::Instant> {
        let (revision, network) = programs.borrow_and_update().clone()?;
        let began = Instant::now();
        let result = self.steward.program((*network).clone()).await;
        self.tells.counters.set("program_latency_micros", began.elapsed().as_micros() as u64);
        let error = match result {
            // What failed before will fail again: all that can be in force is.
            Ok(failing) => {
                let error = (!failing.failed_before(&self.failing)).then(|| failing.to_string());
                self.failing(failing).await;
                error
            }
            Err(error) => Some(error),
        };
        match &error {
            None => {
                self.tells.counters.count("programs");
                self.programmed = Some(*network);
                if self.complained.take().is_some() {
                    tracing::info!(revision, "the network is programmed now");
                }
            }
            Some(error) => {
                self.tells.counters.count("program_errors");
                if self.complains(error) {
                    tracing::error!(revision, error, "cannot program the network; trying again");
                }
            }
        }
        let again = error.is_some().then(|| tokio::time::Instant::now() + RETRY);
        let _ = self.tells.inputs.send(Input::Programmed { revision, error }).await;
        again
    }

    /// Whether this is to be logged: not the same again and again.
    fn complains(&mut self, error: &str) -> bool {
        let told = |(why, at): &(String, Instant)| why == error && at.elapsed() < REPEAT_LOG;
        let new = !self.complained.as_ref().is_some_and(told);
        if new {
            self.complained = Some((error.to_owned(), Instant::now()));
        }
        new
    }

    /// What was refused just now. Told of is what was refused twice: much is gone the next time.
    async fn failing(&mut self, now: Failing) {
        let before = std::mem::replace(&mut self.failing, now);
        let still = self.failing.still(&before);
        if !still.has_same_parts(&self.failing_told) {
            if still.is_empty() {
                tracing::info!("all of the network can be programmed now");
            } else {
                tracing::error!(parts = still.len(), error = %still, "a part of the network cannot be programmed; all else is in force");
            }
            self.tells.counters.set("network_parts_failing", still.len() as u64);
            self.failing_told = still;
        }
        self.tell_notes().await;
    }

    async fn tell_notes(&mut self) {
        let mut notes = self.steward.notes();
        self.tells.counters.set("transit_tracked", notes.len() as u64);
        if !self.failing_told.is_empty() {
            let parts = self.failing_told.len();
            let what = format!(
                "{parts} parts of this node's network cannot be programmed, all else is in force"
            );
            notes.push(format!("{what}: {}", self.failing_told));
        }
        if notes != self.notes {
            self.notes.clone_from(&notes);
            let _ =
                self.tells.inputs.send(Input::HostNotes { part: "network".into(), notes }).await;
        }
    }

    async fn reconcile(&mut self) {
        let began = Instant::now();
        let Repairs { made, failing } = self.steward.reconcile().await;
        if !made.is_empty() {
            self.tells.counters.add("repairs", made.len() as u64);
            let took = began.elapsed();
            for change in made {
                tracing::warn!(?took, "repaired: {change}");
            }
        }
        match failing {
            Ok(failing) => {
                if !failing.is_empty() {
                    self.tells.counters.count("repair_errors");
                }
                self.failing(failing).await;
            }
            Err(error) => {
                self.tells.counters.count("repair_errors");
                if self.complains(&error) {
                    tracing::error!(error, "cannot compare or repair the network");
                }
            }
        }
        let silent = self.steward.silent();
        self.tells.silent.send_if_modified(|told| {
            let changed = *told != silent;
            *told = silent;
            changed
        });
        self.look().await;
    }

    async fn look(&mut self) {
        let broken = self.programmed.as_ref().and_then(facts::broken);
        let facts = LocalFacts { broken, backend: self.steward.backend() };
        if self.told.as_ref() != Some(&facts) {
            self.told = Some(facts.clone());
            let _ = self.tells.inputs.send(Input::Local(facts)).await;
        }
    }
}
