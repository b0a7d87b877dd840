//! Builds one record from an input, its effects, and whether all packets in it were authentic.

use leaderd_core::io::{Effect, Input, ProbeKind};
use leaderd_core::probe::stamp::redact;
use leaderd_core::time::Now;

use super::Record;

/// Call [`RecordBuilder::input`], [`RecordBuilder::effect`] for each effect, and [`RecordBuilder::record`]; without an input first it is the start.
#[derive(Debug, Default)]
pub struct RecordBuilder {
    input: Option<(Now, Box<Input>)>,
    effects: Vec<Effect>,
}

impl RecordBuilder {
    pub fn input(&mut self, now: Now, input: &Input) {
        self.input = Some((now, Box::new(input.clone())));
    }

    /// An input was given and its record was not taken yet.
    pub(super) fn has_input(&self) -> bool {
        self.input.is_some()
    }

    pub fn effect(&mut self, effect: &Effect) {
        let mut effect = effect.clone();
        match &mut effect {
            Effect::SendProbe(probe) => {
                if let ProbeKind::Stamp { packet, .. } = &mut probe.kind {
                    redact(packet, true);
                }
            }
            Effect::Reflect { bytes, .. } | Effect::ReflectThrough { bytes, .. } => {
                redact(bytes, true)
            }
            _ => {}
        }
        self.effects.push(effect);
    }

    /// What was gathered since the last one. `authentic`: no HMAC was wrong
    /// ([`leaderd_core::node::Node::forged_packets`] is what it was before the input).
    pub fn record(&mut self, authentic: bool) -> Record {
        let effects = std::mem::take(&mut self.effects);
        let Some((now, mut input)) = self.input.take() else { return Record::Started { effects } };
        if let Input::ProbeReply { bytes, .. } | Input::ProbeRequest { bytes, .. } = &mut *input {
            redact(bytes, authentic);
        }
        Record::Input { now, input, effects }
    }
}
