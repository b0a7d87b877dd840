//! Input that this node does not believe: counted by reason, and logged once a minute for each source and reason.

use std::fmt;

use super::Node;
use super::decisions::DecisionRefusal;
use crate::io::LogLevel;
use crate::probe::reflect::Reject;
use crate::time::Now;
use crate::wire::limits::Nonsense;

/// Why something is ignored. [`Ignored::as_str`] names metrics, [`fmt::Display`] is for the log: rewording one leaves the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ignored {
    Stranger,
    Nonsense(Nonsense),
    RaftOfAnotherGroup,
    RelayedFromElsewhere,
    NotRelayed,
    ReportInAnothersName,
    AboutAnotherGroup,
    DecisionOfAnotherLocation,
    Decision(DecisionRefusal),
    HelloInAnothersName,
    UncarriedOfAnotherLocation,
    AddressesOfAnotherLocation,
    AddressesOutside,
    Event,
    AnswerNotAsked,
    SignatureOfNoVoter,
    TunnelsOfNoCandidate,
    DetoursOfNoCandidate,
    DecisionForCandidates,
    Probe(Reject),
}

impl Ignored {
    /// As in metrics, behind `ignored.`.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Nonsense(_) => "nonsense",
            Self::RaftOfAnotherGroup => "raft-of-another-group",
            Self::RelayedFromElsewhere => "relayed-from-elsewhere",
            Self::NotRelayed => "not-relayed",
            Self::ReportInAnothersName => "report-in-anothers-name",
            Self::AboutAnotherGroup => "about-another-group",
            Self::DecisionOfAnotherLocation => "decision-of-another-location",
            Self::Decision(why) => why.as_str(),
            Self::HelloInAnothersName => "hello-in-anothers-name",
            Self::UncarriedOfAnotherLocation => "uncarried-of-another-location",
            Self::AddressesOfAnotherLocation => "addresses-of-another-location",
            Self::AddressesOutside => "addresses-outside",
            Self::Event => "event",
            Self::AnswerNotAsked => "answer-not-asked",
            Self::SignatureOfNoVoter => "signature-of-no-voter",
            Self::TunnelsOfNoCandidate => "tunnels-of-no-candidate",
            Self::DetoursOfNoCandidate => "detours-of-no-candidate",
            Self::DecisionForCandidates => "decision-for-candidates",
            Self::Probe(_) => "probe",
        }
    }
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stranger => "frame from a node that is not in the mesh file",
            Self::Nonsense(why) => return write!(f, "frame that makes no sense: {why}"),
            Self::RaftOfAnotherGroup => "Raft message of a group that it or this node is not in",
            Self::RelayedFromElsewhere => "frame relayed by no voter of the location",
            Self::NotRelayed => "frame that may not be relayed",
            Self::ReportInAnothersName => "report in another's name",
            Self::AboutAnotherGroup => "observation about a group that this node is not in",
            Self::DecisionOfAnotherLocation => "decision about another's location",
            Self::Decision(why) => return why.fmt(f),
            Self::HelloInAnothersName => "hello in another's name",
            Self::UncarriedOfAnotherLocation => "where another location's node does not carry",
            Self::AddressesOfAnotherLocation => "addresses of another location's node",
            Self::AddressesOutside => "addresses that lie in none of the node's prefixes",
            Self::Event => "event that does not belong to its decision, or far beyond the newest",
            Self::AnswerNotAsked => "answer to a command from a node that was not asked",
            Self::SignatureOfNoVoter => "signature of no voter, or in another voter's name",
            Self::TunnelsOfNoCandidate => {
                "states of tunnels from a node that is no candidate, or of neither location"
            }
            Self::DetoursOfNoCandidate => "detours from a node that is no candidate here",
            Self::DecisionForCandidates => "decision of another location, told to a plain member",
            Self::Probe(why) => return write!(f, "probe: {why}"),
        })
    }
}

impl Node {
    pub(super) fn ignored(&mut self, now: Now, source: &str, why: Ignored) {
        self.count(&format!("ignored.{}", why.as_str()));
        if let Ignored::Nonsense(what) = why {
            self.count(&format!("nonsense.{}", what.as_str()));
        }
        if let Some(source) = self.ignored_log.allow(now.mono, source, why) {
            let fields = [("source", source), ("reason", why.to_string())];
            self.log(LogLevel::Warn, "ignored", fields);
        }
    }
}
