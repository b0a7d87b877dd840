//! Running the core again, input by input, and comparing what it wants done with what was recorded.

use std::any::Any;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use leaderd_core::io::Effect;
use leaderd_core::node::{Node, NodeConfig};
use leaderd_core::probe::keys::ProbeKeys;
use leaderd_core::time::Now;
use serde::Serialize;

use super::account::Account;
use super::render;
use crate::record::{Header, Record, Records, Tail};

/// What a replay found: `account` is what the core did until `outcome`.
#[derive(Debug, Serialize)]
pub struct Replay {
    pub account: Account,
    pub outcome: Outcome,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Every effect of every input is what was recorded, byte for byte.
    AsRecorded,
    Diverged(Box<Divergence>),
    /// The file is damaged from here on; up to here all was as recorded.
    Damaged {
        why: String,
    },
    /// The core panicked at this input; up to here all was as recorded.
    Panicked {
        record: u64,
        input: String,
        message: String,
    },
    /// This core does not start from what the recorded one started from.
    Refused {
        why: String,
    },
}

/// The first input that another effect came of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Divergence {
    /// Number of the record; 0 is the header, 1 the start, the first input is 2.
    pub record: u64,
    /// Since the start of the recording, in microseconds.
    pub at_micros: u64,
    pub input: String,
    /// Number of the first effect that differs, from 0.
    pub effect: usize,
    /// That effect in the recording, and now; `None`: there is none.
    pub recorded: Option<String>,
    pub replayed: Option<String>,
}

/// Runs all of it. The header was read; the records are next.
pub fn play<R: Read>(header: Header, records: &mut Records<R>) -> Replay {
    let mut account = Account::new(&header);
    let outcome = run(header, records, &mut account);
    Replay { account, outcome }
}

fn run<R: Read>(header: Header, records: &mut Records<R>, account: &mut Account) -> Outcome {
    let start = header.now;
    let config = NodeConfig {
        mesh: Arc::new(header.mesh),
        me: header.me,
        keys: ProbeKeys::redacted(),
        restored: header.restored,
        seed: header.seed,
        resolved: header.resolved,
    };
    let mut node = match caught(|| Node::new(config, start)) {
        Ok(Ok(node)) => node,
        Ok(Err(error)) => return Outcome::Refused { why: error.to_string() },
        Err(message) => return Outcome::Panicked { record: 1, input: "start".into(), message },
    };
    let mut record = 0;
    loop {
        let (now, input, recorded) = match records.next_record() {
            Err(error) => return Outcome::Damaged { why: error.to_string() },
            Ok(None) => {
                account.ended(&node, records.tail().unwrap_or(Tail::CutOff));
                return Outcome::AsRecorded;
            }
            Ok(Some(Record::Started { effects })) => (start, None, effects),
            Ok(Some(Record::Input { now, input, effects })) => (now, Some(*input), effects),
            Ok(Some(Record::Ended(_))) => continue,
        };
        record += 1;
        let cause = input.as_ref().map_or_else(|| "start".to_owned(), render::input);
        account.input(record, now, input.as_ref());
        let effects = caught(|| {
            if let Some(input) = input {
                node.handle_input(now, input);
            }
            std::iter::from_fn(|| node.poll_effect()).collect::<Vec<Effect>>()
        });
        let effects = match effects {
            Ok(effects) => effects,
            Err(message) => return Outcome::Panicked { record, input: cause, message },
        };
        account.effects(&node, &cause, &effects);
        if let Some((effect, recorded, replayed)) = first_difference(&recorded, &effects) {
            account.ended(&node, Tail::CutOff);
            return Outcome::Diverged(Box::new(Divergence {
                record,
                at_micros: micros(start, now),
                input: cause,
                effect,
                recorded: recorded.map(render::effect),
                replayed: replayed.map(render::effect),
            }));
        }
    }
}

pub(super) fn micros(start: Now, now: Now) -> u64 {
    now.mono.0.saturating_sub(start.mono.0)
}

/// Number of the first effect that differs, and both.
fn first_difference<'a>(
    recorded: &'a [Effect],
    replayed: &'a [Effect],
) -> Option<(usize, Option<&'a Effect>, Option<&'a Effect>)> {
    let longer = recorded.len().max(replayed.len());
    (0..longer).map(|n| (n, recorded.get(n), replayed.get(n))).find(|(_, a, b)| match (a, b) {
        // By their bytes: a number that is none (NaN) does not equal itself.
        (Some(a), Some(b)) => a != b && postcard::to_stdvec(a) != postcard::to_stdvec(b),
        _ => true,
    })
}

/// Returns a panic's message in place of the panic: recordings of daemons that panicked are replayed to find out why.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without words").to_owned()
    })
}
