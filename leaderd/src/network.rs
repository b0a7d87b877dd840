//! The kernel's side: a thread that owns the steward of the network, so that nothing it does can hold up the engine.
//!
//! It programs the newest desired network (those in between are skipped), repairs drift when the kernel tells of it, and
//! looks at what this node needs to relay at all: its interfaces up and forwarding on.

mod facts;
mod steward;

use std::future::Future;
use std::time::{Duration, Instant};

use leaderd_core::io::{Input, LocalFacts};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use wgctl_plan::Network;

pub use steward::{KernelSteward, cleanup};

use crate::counters::Counters;
use crate::engine::Program;
use crate::supervise;

/// Keeps the kernel as it is told to.
pub trait Steward {
    /// `kernel`, `wireguard-go` or `leaderd`.
    fn backend(&self) -> String;
    fn program(&mut self, network: Network) -> impl Future<Output = Result<(), String>>;
    /// Compares the kernel with the last programmed network, puts right what differs, and says what that was.
    fn reconcile(&mut self) -> impl Future<Output = Repairs>;
    /// True when something that was put off is due: call `reconcile`.
    fn is_due(&self) -> bool {
        false
    }
    /// Waits until the kernel tells of a change that may concern us. Cancel-safe.
    fn drift(&mut self) -> impl Future<Output = ()>;
}

/// What a comparison with the kernel led to. Some repairs may fail while others are made.
#[derive(Debug, Default)]
pub struct Repairs {
    pub made: Vec<String>,
    pub failed: Option<String>,
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
    inputs: mpsc::Sender<Input>,
    counters: Counters,
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
                        inputs,
                        counters,
                        programmed: None,
                        told: None,
                        complained: None,
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
    inputs: mpsc::Sender<Input>,
    counters: Counters,
    programmed: Option<Network>,
    told: Option<LocalFacts>,
    /// What kept us from programming, and when it was last logged.
    complained: Option<(String, Instant)>,
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
        self.counters.set("program_latency_micros", began.elapsed().as_micros() as u64);
        let error = match result {
            Ok(()) => {
                self.counters.count("programs");
                self.programmed = Some(*network);
                if self.complained.take().is_some() {
                    tracing::info!(revision, "the network is programmed now");
                }
                None
            }
            Err(error) => {
                self.counters.count("program_errors");
                let told =
                    |(why, at): &(String, Instant)| *why == error && at.elapsed() < REPEAT_LOG;
                if !self.complained.as_ref().is_some_and(told) {
                    tracing::error!(revision, error, "cannot program the network; trying again");
                    self.complained = Some((error.clone(), Instant::now()));
                }
                Some(error)
            }
        };
        let again = error.is_some().then(|| tokio::time::Instant::now() + RETRY);
        let _ = self.inputs.send(Input::Programmed { revision, error }).await;
        again
    }

    async fn reconcile(&mut self) {
        let began = Instant::now();
        let Repairs { made, failed } = self.steward.reconcile().await;
        if !made.is_empty() {
            self.counters.add("repairs", made.len() as u64);
            let took = began.elapsed();
            for change in made {
                tracing::warn!(?took, "repaired: {change}");
            }
        }
        if let Some(error) = failed {
            self.counters.count("repair_errors");
            tracing::error!(error, "cannot compare or repair the network");
        }
        self.look().await;
    }

    async fn look(&mut self) {
        let broken = self.programmed.as_ref().and_then(facts::broken);
        let facts = LocalFacts { broken, backend: self.steward.backend() };
        if self.told.as_ref() != Some(&facts) {
            self.told = Some(facts.clone());
            let _ = self.inputs.send(Input::Local(facts)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        failures: u32,
        seen: mpsc::UnboundedSender<Network>,
        repairs: Repairs,
    }
    impl Steward for Fake {
        fn backend(&self) -> String {
            "wireguard-go".into()
        }
        async fn program(&mut self, network: Network) -> Result<(), String> {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if self.failures > 0 {
                self.failures -= 1;
                return Err("busy".into());
            }
            self.seen.send(network).map_err(|e| e.to_string())
        }
        async fn reconcile(&mut self) -> Repairs {
            std::mem::take(&mut self.repairs)
        }
        async fn drift(&mut self) {
            std::future::pending().await
        }
    }

    fn marked(mark: &str) -> Box<Network> {
        Box::new(Network {
            sysctls: [(mark.to_owned(), "1".to_owned())].into(),
            ..Network::default()
        })
    }

    #[tokio::test]
    async fn the_newest_network_is_programmed_until_it_succeeds_and_those_between_are_skipped() {
        let (seen, mut programmed) = mpsc::unbounded_channel();
        let (programs, rx) = watch::channel(None);
        let (inputs, mut told) = mpsc::channel(64);
        start(
            move || async move { Ok(Fake { failures: 2, seen, repairs: Repairs::default() }) },
            rx,
            inputs,
            Counters::default(),
        )
        .await
        .unwrap();
        for revision in 1..=20u64 {
            programs.send_replace(Some((revision, marked(&format!("r{revision}")))));
        }
        let mut errors = 0;
        loop {
            match tokio::time::timeout(Duration::from_secs(10), told.recv()).await.unwrap().unwrap()
            {
                Input::Programmed { error: Some(_), .. } => errors += 1,
                Input::Programmed { revision, error: None } => {
                    assert_eq!(revision, 20);
                    break;
                }
                Input::Local(facts) => assert_eq!(facts.backend, "wireguard-go"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(errors, 2);
        assert_eq!(programmed.recv().await.unwrap(), *marked("r20"));
    }

    #[tokio::test]
    async fn a_repair_that_fails_in_part_counts_as_what_it_repaired_and_as_an_error() {
        let (seen, _programmed) = mpsc::unbounded_channel();
        let (programs, rx) = watch::channel(None);
        let (inputs, _told) = mpsc::channel(64);
        let counters = Counters::default();
        let made = vec!["add route".to_owned(), "set up".to_owned()];
        let repairs = Repairs { made, failed: Some("EEXIST".into()) };
        let fake = Fake { failures: 0, seen, repairs };
        start(move || async move { Ok(fake) }, rx, inputs, counters.clone()).await.unwrap();
        programs.send_replace(Some((1, marked("r1"))));
        let deadline = Instant::now() + Duration::from_secs(10);
        while counters.get("repair_errors") == 0 {
            assert!(Instant::now() < deadline, "nothing is compared");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!((counters.get("repairs"), counters.get("repair_errors")), (2, 1));
    }

    #[tokio::test]
    async fn a_steward_that_cannot_be_made_stops_the_start_with_its_reason() {
        let (_programs, rx) = watch::channel(None);
        let make = || async { Err::<Fake, _>(anyhow::anyhow!("/dev/net/tun is missing")) };
        let error = start(make, rx, mpsc::channel(1).0, Counters::default()).await.unwrap_err();
        assert!(error.to_string().contains("/dev/net/tun"));
    }
}
