mod behaviour;
mod bounds;
mod claims;
pub(crate) mod cluster;
mod disk;
mod hostile;
mod versions;
mod voters;
