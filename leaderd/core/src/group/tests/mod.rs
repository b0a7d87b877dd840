mod behaviour;
mod bounds;
mod claims;
pub(crate) mod cluster;
mod disk;
mod hostile;
mod power;
mod versions;
mod voters;
