//! The kernel's side: a thread that owns the network's reconciler, so that nothing it does can delay the engine.
//!
//! The thread programs the newest desired network (and skips those in between), repairs drift when the kernel reports it, and
//! checks what this node needs to relay at all: interfaces up and forwarding on.

mod failed_parts;
mod health;
mod reconciler;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, Instant};

use leaderd_core::io::{Input, LocalFacts, OverriddenRoute, RouteCheck};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use wgctl_plan::{Network, WgPublicKey};

pub use failed_parts::FailedParts;
pub use reconciler::{KernelReconciler, cleanup};

use crate::counters::Counters;
use crate::engine::Program;
use crate::supervise;

/// Keeps the kernel as desired. The tests have one without a kernel.
pub trait Reconciler {
    /// `kernel`, `wireguard-go` or `leaderd`.
    fn backend(&self) -> String;
    /// Programs a network. Returns the parts that the kernel refused; all others are programmed then.
    ///
    /// # Errors
    /// If nothing was programmed, because the kernel cannot be read.
    fn program(&mut self, network: Network) -> impl Future<Output = Result<FailedParts, String>>;
    /// Compares the kernel with the last programmed network and repairs the differences.
    fn reconcile(&mut self) -> impl Future<Output = Repairs>;
    /// True when something that was put off is due: call `reconcile`.
    fn is_due(&self) -> bool {
        false
    }
    /// Peers that were sent to and are silent, as of the last comparison.
    fn silent(&self) -> BTreeSet<WgPublicKey> {
        BTreeSet::new()
    }
    /// What works less well than it should although nothing failed, and what to do about it.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
    /// Returns those of the packets that the kernel sends another way than the last programmed network does.
    fn overridden(&mut self, _checks: &[RouteCheck]) -> Vec<OverriddenRoute> {
        Vec::new()
    }
    /// Waits until the kernel reports a change that may concern us. True if what we programmed may have changed, false if only rules and
    /// routes of other programs did. Cancel-safe.
    fn drift(&mut self) -> impl Future<Output = bool>;
}

/// The result of a comparison with the kernel. Some repairs may fail while others succeed.
#[derive(Debug)]
pub struct Repairs {
    pub made: Vec<String>,
    /// What the kernel refused; or why nothing could be compared.
    pub failed: Result<FailedParts, String>,
}

/// What the engine asks of the thread: the newest of each.
#[derive(Debug)]
pub struct Orders {
    pub programs: watch::Receiver<Program>,
    /// Packets whose ways are asked for, whenever the kernel's rules, routes or links change and with each comparison.
    pub checks: watch::Receiver<Vec<RouteCheck>>,
}

/// Where the thread reports to.
#[derive(Clone, Debug)]
pub struct Outputs {
    pub inputs: mpsc::Sender<Input>,
    /// Peers that were sent to and are silent.
    pub silent: watch::Sender<BTreeSet<WgPublicKey>>,
    pub counters: Counters,
}

/// Time between two checks of the node's own ability to relay.
const HEALTH_CHECK: Duration = Duration::from_millis(250);

/// Time between two comparisons without a notification: notifications can be lost, and there are none about WireGuard's peers.
const RECONCILE: Duration = Duration::from_secs(5);

/// A programming that failed is tried again after this.
const RETRY: Duration = Duration::from_millis(500);

/// Time between two log lines about the same failure.
const REPEAT_LOG: Duration = Duration::from_secs(60);

/// Starts the thread and waits until the reconciler is made. Dropping the sender of `programs` ends the thread and leaves the
/// kernel as it is.
///
/// # Errors
/// If the thread cannot be started, or why the reconciler cannot be made.
pub async fn start<R, M>(
    make: impl FnOnce() -> M + Send + 'static,
    orders: Orders,
    outputs: Outputs,
) -> anyhow::Result<()>
where
    R: Reconciler,
    M: Future<Output = anyhow::Result<R>>,
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
                Ok(reconciler) => {
                    let _ = made.send(Ok(()));
                    let Orders { programs, checks } = orders;
                    let thread = NetworkThread::new(reconciler, checks, outputs);
                    // Slow work (starting a WireGuard process) runs on other threads, so the pulse goes on.
                    tokio::select! {
                        () = thread.run(programs) => {}
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

struct NetworkThread<R> {
    reconciler: R,
    checks: watch::Receiver<Vec<RouteCheck>>,
    outputs: Outputs,
    programmed: Option<Network>,
    reported_facts: Option<LocalFacts>,
    /// The error that was last logged, and when.
    logged_error: Option<(String, Instant)>,
    /// What the kernel refused at the last attempt.
    failed: FailedParts,
    /// What it refused twice in a row, and was reported.
    reported_parts: FailedParts,
    reported_notes: Vec<String>,
    reported_overridden: Vec<OverriddenRoute>,
}

impl<R: Reconciler> NetworkThread<R> {
    fn new(reconciler: R, checks: watch::Receiver<Vec<RouteCheck>>, outputs: Outputs) -> Self {
        Self {
            reconciler,
            checks,
            outputs,
            programmed: None,
            reported_facts: None,
            logged_error: None,
            failed: FailedParts::default(),
            reported_parts: FailedParts::default(),
            reported_notes: Vec::new(),
            reported_overridden: Vec::new(),
        }
    }

    async fn run(mut self, mut programs: watch::Receiver<Program>) {
        self.check_health().await;
        let mut health_checks = interval(HEALTH_CHECK);
        let mut reconciles = interval(RECONCILE);
        for timer in [&mut health_checks, &mut reconciles] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut retry_at: Option<tokio::time::Instant> = None;
        loop {
            tokio::select! {
                changed = programs.changed() => match changed {
                    Ok(()) => retry_at = self.program(&mut programs).await,
                    Err(_) => return,
                },
                // A deadline, not a duration: the other timers fire more often and would restart a duration.
                () = tokio::time::sleep_until(retry_at.unwrap_or_else(tokio::time::Instant::now)), if retry_at.is_some() => {
                    retry_at = self.program(&mut programs).await;
                }
                ours = self.reconciler.drift(), if self.programmed.is_some() => {
                    if ours {
                        // Check first, then repair: the core must learn of a fault that lasts only until it is repaired here.
                        self.check_health().await;
                        self.reconcile().await;
                    } else {
                        self.check_routes().await;
                    }
                }
                Ok(()) = self.checks.changed() => self.check_routes().await,
                _ = health_checks.tick() => {
                    self.check_health().await;
                    if self.reconciler.is_due() {
                        self.reconcile().await;
                    }
                }
                _ = reconciles.tick(), if self.programmed.is_some() => self.reconcile().await,
            }
        }
    }

    /// Programs the newest network. Returns when to try again if that failed.
    async fn program(
        &mut self,
        programs: &mut watch::Receiver<Program>,
    ) -> Option<tokio::time::Instant> {
        let (revision, network) = programs.borrow_and_update().clone()?;
        let began = Instant::now();
        let result = self.reconciler.program((*network).clone()).await;
        self.outputs.counters.set("program_latency_micros", began.elapsed().as_micros() as u64);
        let error = match result {
            // A part that failed before will fail again: all that can be in force is.
            Ok(failed) => {
                let error = (!failed.failed_before(&self.failed)).then(|| failed.to_string());
                self.report_failed(failed).await;
                error
            }
            Err(error) => Some(error),
        };
        match &error {
            None => {
                self.outputs.counters.count("programs");
                self.programmed = Some(*network);
                if self.logged_error.take().is_some() {
                    tracing::info!(revision, "the network is programmed now");
                }
            }
            Some(error) => {
                self.outputs.counters.count("program_errors");
                if self.should_log(error) {
                    tracing::error!(revision, error, "cannot program the network; trying again");
                }
            }
        }
        let retry_at = error.is_some().then(|| tokio::time::Instant::now() + RETRY);
        let _ = self.outputs.inputs.send(Input::Programmed { revision, error }).await;
        retry_at
    }

    /// False if the same error was logged within [`REPEAT_LOG`].
    fn should_log(&mut self, error: &str) -> bool {
        let same = |(why, at): &(String, Instant)| why == error && at.elapsed() < REPEAT_LOG;
        let new = !self.logged_error.as_ref().is_some_and(same);
        if new {
            self.logged_error = Some((error.to_owned(), Instant::now()));
        }
        new
    }

    /// Takes what was refused just now. Reports only what was refused twice in a row: most failures are gone the next time.
    async fn report_failed(&mut self, now: FailedParts) {
        let before = std::mem::replace(&mut self.failed, now);
        let still = self.failed.still(&before);
        if !still.has_same_parts(&self.reported_parts) {
            if still.is_empty() {
                tracing::info!("all of the network can be programmed now");
            } else {
                tracing::error!(parts = still.len(), error = %still, "a part of the network cannot be programmed; all else is in force");
            }
            self.outputs.counters.set("network_parts_failing", still.len() as u64);
            self.reported_parts = still;
        }
        self.report_notes().await;
    }

    async fn report_notes(&mut self) {
        let mut notes = self.reconciler.notes();
        self.outputs.counters.set("transit_tracked", notes.len() as u64);
        if !self.reported_parts.is_empty() {
            let parts = self.reported_parts.len();
            let what = format!(
                "{parts} parts of this node's network cannot be programmed, all else is in force"
            );
            notes.push(format!("{what}: {}", self.reported_parts));
        }
        if notes != self.reported_notes {
            self.reported_notes.clone_from(&notes);
            let input = Input::HostNotes { part: "network".into(), notes };
            let _ = self.outputs.inputs.send(input).await;
        }
    }

    async fn reconcile(&mut self) {
        let began = Instant::now();
        let Repairs { made, failed } = self.reconciler.reconcile().await;
        if !made.is_empty() {
            self.outputs.counters.add("repairs", made.len() as u64);
            let took = began.elapsed();
            for change in made {
                tracing::warn!(?took, "repaired: {change}");
            }
        }
        match failed {
            Ok(failed) => {
                if !failed.is_empty() {
                    self.outputs.counters.count("repair_errors");
                }
                self.report_failed(failed).await;
            }
            Err(error) => {
                self.outputs.counters.count("repair_errors");
                if self.should_log(&error) {
                    tracing::error!(error, "cannot compare or repair the network");
                }
            }
        }
        let silent = self.reconciler.silent();
        self.outputs.silent.send_if_modified(|reported| {
            let changed = *reported != silent;
            *reported = silent;
            changed
        });
        self.check_health().await;
        self.check_routes().await;
    }

    /// Asks the kernel which way packets go, and reports a change. Where a part of the network is missing the cause is known already.
    async fn check_routes(&mut self) {
        if self.programmed.is_none() || !self.failed.is_empty() {
            return;
        }
        let checks = self.checks.borrow_and_update().clone();
        let overridden = self.reconciler.overridden(&checks);
        if overridden != self.reported_overridden {
            self.reported_overridden.clone_from(&overridden);
            let _ = self.outputs.inputs.send(Input::Overridden(overridden)).await;
        }
    }

    /// Checks whether this node can relay, and reports a change.
    async fn check_health(&mut self) {
        let broken = self.programmed.as_ref().and_then(health::check);
        let facts = LocalFacts { broken, backend: self.reconciler.backend() };
        if self.reported_facts.as_ref() != Some(&facts) {
            self.reported_facts = Some(facts.clone());
            let _ = self.outputs.inputs.send(Input::Local(facts)).await;
        }
    }
}
