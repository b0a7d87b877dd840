//! Who should lead a location: evidence in, a choice out. Nothing here knows Raft.
//!
//! [`Reports`] remembers what the nodes of the mesh said; a [`Situation`] is all of it that a decision depends on, at one
//! moment; [`Situation::decide`] chooses; `narrate` puts a choice into words. What is chosen becomes a proposal in `group`.

mod decide;
pub(crate) mod narrate;
mod reports;
mod situation;
mod status;

pub(crate) use decide::Choice;
pub(crate) use reports::Reports;
pub(crate) use situation::Situation;
