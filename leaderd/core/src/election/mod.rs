//! Who should lead a location: evidence in, a choice out. Nothing here knows Raft.
//!
//! [`Reports`] remembers what the nodes of the mesh said; a [`Situation`] is all of it that a decision depends on, at one
//! moment; `votes` makes one vote of what each location says, and `accusers` discounts those that turn often;
//! [`Situation::decide`] chooses; `narrate` puts a choice into words. What is chosen becomes a proposal in `group`.

mod accusers;
mod decide;
pub(crate) mod narrate;
mod reports;
mod situation;
mod status;
mod votes;

pub(crate) use decide::{Choice, Wait};
pub(crate) use reports::Reports;
pub(crate) use situation::Situation;
