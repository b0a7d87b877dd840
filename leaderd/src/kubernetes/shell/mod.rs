//! The loop: one word of a watch, one answer or one timer at a time. It never waits for the API: requests are under way beside
//! it, each bounded in time, and at most one for each thing. Which mesh is in force: `mesh`; what is done when its turn has come: `work`; what the log says:
//! `tell`.

mod mesh;
mod tell;
mod work;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered};
use leaderd_core::admin::{AdminRequest, AdminResponse};
use leaderd_core::cluster::{self, Problem, Turns};
use leaderd_core::mesh::Mesh;
use leaderd_core::state::Event;
use leaderd_core::status::Status;
use tokio::sync::{mpsc, watch};

use super::Config;
use super::backoff::{Asked, is_overload};
use super::carry::{Call, Carrier};
use super::contact::{CallError, Contact};
use super::keep::Keeper;
use super::prefixes::{Kind, Told};
use super::seen::{self, News, Scope, Seen, Word};
use crate::clock::Clock;
use crate::counters::Counters;
use crate::engine::Request;
use crate::run::Daemon;
use mesh::Doubt;

/// How long after a change of the view it is looked at: what changes together is looked at once.
const SETTLE: Duration = Duration::from_millis(200);

/// The same where an annotation changed: what was written is there, and the next step waits for that.
const AT_ONCE: Duration = Duration::from_millis(10);

/// How often the daemon of a candidate is asked for its status although it did not say that something was decided.
const POLL: Duration = Duration::from_secs(1);

/// How often everything is weighed again although nothing seems to have changed.
const ANEW: Duration = Duration::from_secs(10);

/// What the daemon knows.
struct Known {
    status: Status,
    events: Vec<Event>,
    /// It is connected to somebody.
    hears: bool,
}

impl Known {
    /// But for what changes all the time.
    fn says_the_same(&self, other: &Self) -> bool {
        let same = self.events == other.events && self.hears == other.hears;
        same && material(&self.status) == material(&other.status)
    }
}

/// What others are told.
#[derive(Debug)]
pub struct Out {
    pub meshes: watch::Sender<Option<Arc<Mesh>>>,
}

/// What came of something that was under way.
enum Done {
    /// The daemon's answer; `None`: it is too busy.
    Status(Option<Box<Known>>),
    /// `then`: what was to follow once it was done.
    Call {
        key: String,
        what: &'static str,
        result: Result<(), CallError>,
        then: Vec<Call>,
    },
    Command {
        key: String,
        request: AdminRequest,
        response: Option<AdminResponse>,
    },
}

pub struct Shell {
    config: Config,
    carrier: Carrier,
    /// Pauses that the server asked for.
    asked: Asked,
    out: Out,
    counters: Counters,
    clock: Clock,
    /// Objects of others that are looked at.
    kinds: Vec<Kind>,
    seen: Seen,
    contact: Contact,
    keeper: Keeper,
    turns: Turns,
    daemon: Option<Daemon>,
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
    busy: BTreeSet<String>,
    asking: bool,
    /// The mesh in force, by the text that it was read from.
    in_force: Option<(String, Option<Arc<Mesh>>)>,
    /// The cluster holds a mesh with keys that are not believed: since when, and whether that was said.
    doubted: Option<Doubt>,
    status: Option<Box<Known>>,
    /// The status changed in something that counts, or the view did, since all was weighed.
    stale: bool,
    weighed: Option<Instant>,
    look_at: Option<Instant>,
    next_turn: Option<Instant>,
    keep_at: Option<Instant>,
    next_poll: Instant,
    next_ask: Instant,
    problems: Vec<Problem>,
    waits_for: Option<String>,
}

impl Shell {
    /// Within a runtime.
    pub fn new(
        client: kube::Client,
        asked: Asked,
        config: Config,
        out: Out,
        counters: Counters,
    ) -> Self {
        let (keeper, kept) = Keeper::open(&config.state);
        let kinds = Kind::all(cluster::prefix_source(&config.settings));
        let seen = kept.map_or_else(Seen::default, Seen::from_kept).looking_at(&kinds);
        let carrier =
            Carrier { client, namespace: config.namespace.clone(), me: config.me.clone() };
        Self {
            config,
            carrier,
            out,
            contact: Contact::new(counters.clone(), asked.clone()),
            asked,
            counters,
            clock: Clock::default(),
            kinds,
            seen,
            keeper,
            turns: Turns::default(),
            daemon: None,
            under_way: FuturesUnordered::new(),
            busy: BTreeSet::new(),
            asking: false,
            in_force: None,
            doubted: None,
            status: None,
            stale: true,
            weighed: None,
            look_at: Some(Instant::now()),
            next_turn: None,
            keep_at: None,
            next_poll: Instant::now(),
            next_ask: Instant::now(),
            problems: Vec::new(),
            waits_for: None,
        }
    }

    /// Runs for ever. The daemon comes once it runs.
    pub async fn run(mut self, mut daemons: mpsc::Receiver<Daemon>) {
        self.take_mesh();
        let mut words = self.watch();
        let mut decided: Option<watch::Receiver<u64>> = None;
        loop {
            let wake = [self.look_at, self.next_turn, self.keep_at].into_iter().flatten();
            let wake = wake.fold(self.next_poll.min(self.contact.next_try()), Instant::min);
            let mut sleep = pin!(tokio::time::sleep_until(wake.into()));
            tokio::select! {
                Some(word) = words.next() => {
                    let of_mesh = matches!(word, Word::Mesh(_)) || self.doubted.is_some();
                    self.word(word);
                    if of_mesh && self.rescope() {
                        words = self.watch();
                    }
                }
                Some(done) = self.under_way.next() => {
                    if self.done(done) {
                        words = self.watch();
                    }
                }
                Some(daemon) = daemons.recv() => {
                    decided = Some(daemon.decided.clone());
                    self.daemon = Some(daemon);
                    self.waits_for = None;
                    if self.rescope() {
                        words = self.watch();
                    }
                    self.ask();
                }
                more = changed(&mut decided) => {
                    if !more {
                        decided = None;
                    }
                    self.ask();
                }
                () = &mut sleep => self.timers(),
            }
        }
    }

    fn watch(&self) -> BoxStream<'static, Word> {
        let (me, scope) = (self.config.me.as_str(), self.seen.scope());
        let (client, namespace) = (&self.carrier.client, &self.config.namespace);
        seen::watch(client, &self.asked, namespace, &self.kinds, scope, me)
    }

    /// True if the watches are to begin anew, as the mesh in force gives this daemon more to look at, or less.
    fn rescope(&mut self) -> bool {
        let mesh = self.in_force.as_ref().and_then(|(_, mesh)| mesh.as_ref());
        // Without a daemon it still waits for a mesh with its keys, and tells what is missing.
        let own = self.daemon.is_some()
            && mesh.is_some_and(|mesh| !cluster::looks(mesh, &self.config.me));
        let other = self.seen.look_at(if own { Scope::Own } else { Scope::All });
        if other {
            // It was asked for another purpose, and maybe long ago: nothing is to be weighed by it.
            self.status = None;
            self.stale = true;
            self.next_ask = Instant::now();
            tracing::debug!(own_node_alone = own, "another part of the cluster is watched");
        }
        other
    }

    fn word(&mut self, word: Word) {
        let news = match word {
            Word::Node(event) => {
                let news = self.seen.node(event);
                // It may say now why a key is another.
                if self.doubted.is_some() && news != News::Nothing {
                    self.take_mesh();
                }
                news
            }
            Word::Pool(event) => self.seen.pool(event),
            Word::Mesh(event) => {
                self.seen.mesh(event);
                self.take_mesh();
                News::Soon
            }
            Word::Object(kind, Told::Failed(error)) => return self.failed(kind.name(), error),
            Word::Object(kind, told) => {
                if let Told::Absent { hint: Some(hint) } = &told {
                    tracing::warn!(
                        what = kind.name(),
                        reason = hint,
                        "not allowed to look, as if there were none"
                    );
                }
                self.seen.object(kind, told)
            }
            Word::Failed(what, error) => return self.failed(what, error),
        };
        // A watch of its own accord begins anew after an outage; what else it was is for the next request to find out.
        self.contact.overheard();
        let settle = match news {
            News::Nothing => return,
            News::Soon => SETTLE,
            News::AtOnce => AT_ONCE,
        };
        self.stale = true;
        let at = Instant::now() + settle;
        self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
    }

    fn failed(&mut self, what: &'static str, error: kube::runtime::watcher::Error) {
        use kube::runtime::watcher::Error;
        match error {
            Error::InitialListFailed(kube::Error::Api(status))
            | Error::WatchStartFailed(kube::Error::Api(status))
                if is_overload(status.code) =>
            {
                self.contact.throttled(what, &status.message);
            }
            Error::InitialListFailed(kube::Error::Api(status))
            | Error::WatchStartFailed(kube::Error::Api(status)) => {
                let hint =
                    if status.code == 404 { "; apply what `leaderd crd` prints" } else { "" };
                self.contact.refused(what, &format!("{}{hint}", status.message));
            }
            Error::InitialListFailed(error) | Error::WatchStartFailed(error) => {
                self.contact.silent(&error);
            }
            // The server ended a watch, or a connection broke: the watch begins anew, and tells if that fails.
            other => tracing::debug!(what, error = %other, "a watch begins anew"),
        }
    }

    /// True if the watches are to begin anew.
    fn done(&mut self, done: Done) -> bool {
        match done {
            Done::Status(answer) => {
                self.asking = false;
                if let Some(new) = answer {
                    let news = self.status.as_ref().is_none_or(|old| !old.says_the_same(&new));
                    self.stale |= news;
                    self.status = Some(new);
                    self.weigh();
                }
                false
            }
            Done::Call { key, what, result, then } => {
                self.busy.remove(&key);
                for call in then.into_iter().filter(|_| result.is_ok()) {
                    self.call(EVENT.to_owned(), call);
                }
                if key != BEAT && result.is_ok() {
                    self.counters.count("kubernetes_writes");
                }
                let held = self.contact.holds();
                let back = self.contact.heard(what, result.as_ref().map(|&()| ()));
                if held && !self.contact.holds() {
                    self.stale = true;
                    self.weigh();
                }
                back
            }
            Done::Command { key, request, response } => {
                self.busy.remove(&key);
                match response {
                    Some(AdminResponse::Done { message, .. }) => {
                        tracing::info!(message, "a pool asked for it");
                    }
                    Some(AdminResponse::Refused { message }) => {
                        tracing::warn!(request = ?request, reason = message, "what a pool asks for is refused");
                    }
                    None => tracing::warn!(request = ?request, "no answer to what a pool asks for"),
                }
                false
            }
        }
    }

    fn timers(&mut self) {
        let now = Instant::now();
        if self.contact.next_try() <= now {
            self.contact.trying();
            self.call(BEAT.to_owned(), Call::Beat);
        }
        if self.next_poll <= now {
            self.next_poll = now + POLL;
            self.contact.measure();
            self.say_doubt();
            if self.next_ask <= now {
                self.ask();
            }
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.keep_at) {
            self.keep_at = self.keeper.keep(&self.seen.view);
        }
        if due(self.look_at) {
            self.look_at = None;
            self.look();
        }
        if due(self.next_turn) {
            self.next_turn = None;
            self.stale = true;
            self.weigh();
        }
    }

    /// The view has changed.
    fn look(&mut self) {
        if self.seen.is_read() {
            self.keep_at = self.keeper.keep(&self.seen.view);
        }
        self.weigh();
    }

    /// What a member knows is told by the candidates.
    fn is_candidate(&self) -> bool {
        let mesh = self.in_force.as_ref().and_then(|(_, mesh)| mesh.as_ref());
        mesh.and_then(|m| m.node(&self.config.me)).is_some_and(|me| me.slot.is_some())
    }

    /// Asks the daemon how it stands, unless it is being asked.
    fn ask(&mut self) {
        self.next_ask = Instant::now() + if self.is_candidate() { POLL } else { ANEW };
        let Some(daemon) = &self.daemon else { return self.weigh() };
        if std::mem::replace(&mut self.asking, true) {
            return;
        }
        let asker = daemon.asker.clone();
        self.under_way.push(Box::pin(async move {
            let snapshot = asker.lookup(Request::Snapshot).await;
            let events = asker.lookup(Request::Events).await;
            Done::Status(snapshot.zip(events).map(|(s, events)| {
                Box::new(Known { hears: s.peers_connected > 0, status: s.status, events })
            }))
        }));
    }
}

/// Keys of what is no task of the core's.
const BEAT: &str = "beat";
const OWN: &str = "own";
const LOST: &str = "lost-mesh";
const EVENT: &str = "event";

async fn changed(decided: &mut Option<watch::Receiver<u64>>) -> bool {
    match decided {
        Some(decided) => decided.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;

/// The status without what moves all the time: that is weighed anew now and then.
fn material(status: &Status) -> Status {
    let mut status = status.clone();
    for candidate in status.locations.iter_mut().flat_map(|l| &mut l.candidates) {
        candidate.rtt_ms = None;
        candidate.loss = None;
    }
    status
}
