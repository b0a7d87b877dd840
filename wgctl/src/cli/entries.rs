//! What `wgctl events` lists: events of locations, and the changes of relay pairs that this node has seen, in one order.

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::state::Event;
use leaderd_core::status::{RelayChange, RelayChangeKind, RelayChanges};
use leaderd_core::time::WallTime;
use serde::Serialize;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::events::at;
use super::output::Style;

/// A change of a relay pair, and who saw it: other nodes may have seen it at another time, or not at all.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeenChange {
    pub seen_by: NodeName,
    /// The location of the node that saw it, and the other one.
    pub between: [LocationName; 2],
    #[serde(flatten)]
    pub change: RelayChange,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    Event(Box<Event>),
    Relays(SeenChange),
}

impl Entry {
    pub fn at(&self) -> Option<WallTime> {
        match self {
            Self::Event(e) => at(e),
            Self::Relays(seen) => Some(seen.change.at),
        }
    }

    /// True if it is of this location; a change is of both its locations.
    pub fn concerns(&self, location: &LocationName) -> bool {
        match self {
            Self::Event(e) => e.location == *location,
            Self::Relays(seen) => seen.between.contains(location),
        }
    }
}

impl SeenChange {
    pub fn all(changes: Option<RelayChanges>) -> Vec<Self> {
        let Some(RelayChanges { node, location, changes }) = changes else { return Vec::new() };
        let seen = |change: RelayChange| Self {
            seen_by: node.clone(),
            between: [location.clone(), change.location.clone()],
            change,
        };
        changes.into_iter().map(seen).collect()
    }

    /// `home–cloud`
    pub fn reference(&self) -> String {
        format!("{}–{}", self.between[0], self.between[1])
    }

    pub fn kind(&self) -> (Style, &'static str) {
        let kind = self.change.kind;
        let style = match kind {
            RelayChangeKind::Detour => Style::Warn,
            RelayChangeKind::LongDetour | RelayChangeKind::CutOff => Style::Bad,
            RelayChangeKind::DetourEnded | RelayChangeKind::Reached => Style::Good,
        };
        (style, kind.as_str())
    }

    /// What happened, why, and who saw it.
    pub fn summary(&self) -> String {
        let what = match (self.change.kind, &self.change.why) {
            (RelayChangeKind::Detour, Some(why)) => why.clone(),
            (RelayChangeKind::Detour, None) => "other relays than the two leaders carry".to_owned(),
            (RelayChangeKind::DetourEnded, _) => "the two leaders carry again".to_owned(),
            (RelayChangeKind::LongDetour, why) => {
                let why = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                format!("the detour has lasted for 15 minutes{why}")
            }
            (RelayChangeKind::CutOff, _) => "no tunnel between them is known to be good".to_owned(),
            (RelayChangeKind::Reached, _) => "a tunnel between them is good again".to_owned(),
        };
        format!("{what} (seen by {})", self.seen_by)
    }
}

/// Asks for all that there is, oldest first.
///
/// # Errors
/// If the daemon does not answer as it should.
pub fn fetch(client: &Client) -> Result<Vec<Entry>, ClientError> {
    let events = client.events()?.into_iter().map(|e| Entry::Event(Box::new(e))).collect();
    let changes = SeenChange::all(client.relay_changes()?);
    Ok(merged(events, changes.into_iter().map(Entry::Relays).collect(), Entry::at))
}

/// The same as JSON, with the fields of a newer daemon.
///
/// # Errors
/// If the daemon does not answer as it should.
pub fn fetch_json(client: &Client) -> anyhow::Result<Vec<Value>> {
    let Value::Array(events) = client.value("/v1/events")? else {
        anyhow::bail!(
            "leaderd's answer to /v1/events is no list; are wgctl and leaderd of one version?"
        );
    };
    let changes: Result<Vec<Value>, _> =
        SeenChange::all(client.relay_changes()?).iter().map(serde_json::to_value).collect();
    Ok(merged(events, changes?, json_at))
}

/// [`Entry::concerns`], of JSON.
pub fn json_concerns(entry: &Value, location: &LocationName) -> bool {
    let is = |v: &Value| v.as_str() == Some(location.as_str());
    match entry.get("between").and_then(Value::as_array) {
        Some(two) => two.iter().any(is),
        None => entry.get("location").is_some_and(is),
    }
}

fn json_at(entry: &Value) -> Option<WallTime> {
    let times = entry.get("times").unwrap_or(&Value::Null);
    let known = ["committed", "condemned", "suspected", "first_loss"];
    let at = known.iter().find_map(|step| times.get(step)?.as_u64());
    at.or_else(|| entry.get("at")?.as_u64()).map(WallTime)
}

/// Puts changes, which are in order, among events, whose order stays.
fn merged<T>(events: Vec<T>, changes: Vec<T>, at: impl Fn(&T) -> Option<WallTime>) -> Vec<T> {
    let mut changes = changes.into_iter().peekable();
    let mut all = Vec::new();
    for event in events {
        while let Some(change) = changes.next_if(|change| at(change) < at(&event)) {
            all.push(change);
        }
        all.push(event);
    }
    all.extend(changes);
    all
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn entries() -> Vec<Entry> {
        let events = [fixture::failover(), fixture::drained()];
        let events = events.into_iter().map(|e| Entry::Event(Box::new(e))).collect();
        let changes = SeenChange::all(Some(fixture::relay_changes()));
        merged(events, changes.into_iter().map(Entry::Relays).collect(), Entry::at)
    }

    #[test]
    fn changes_stand_among_events_by_their_time() {
        let kinds: Vec<&str> = entries()
            .iter()
            .map(|e| match e {
                Entry::Event(e) => super::super::events::kind(e.kind).1,
                Entry::Relays(seen) => seen.kind().1,
            })
            .collect();
        assert_eq!(kinds, ["detour", "failover", "detour-ended", "operator", "cut-off"]);
    }

    #[test]
    fn json_has_the_same_order_and_says_who_saw_it() {
        let events = [fixture::failover(), fixture::drained()];
        let events = events.iter().map(|e| serde_json::to_value(e).unwrap()).collect();
        let changes = SeenChange::all(Some(fixture::relay_changes()));
        let changes = changes.iter().map(|c| serde_json::to_value(c).unwrap()).collect();
        let all = merged(events, changes, json_at);
        let kinds: Vec<&str> = all.iter().map(|v| v["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["detour", "failover", "detour-ended", "operator", "cut-off"]);
        assert_eq!(all[0]["seen_by"], "home-0");
        assert_eq!(all[0]["between"], serde_json::json!(["home", "cloud"]));
        let [home, cloud, edge] = ["home", "cloud", "edge"].map(|l| l.parse().unwrap());
        let of = |l: &LocationName| all.iter().filter(|v| json_concerns(v, l)).count();
        assert_eq!([of(&home), of(&cloud), of(&edge)], [4, 4, 0]);
        let typed = entries();
        for l in [home, cloud, edge] {
            assert_eq!(typed.iter().filter(|e| e.concerns(&l)).count(), of(&l));
        }
    }

    #[test]
    fn an_older_daemon_tells_of_no_changes() {
        assert_eq!(SeenChange::all(None), []);
    }
}
