mod behaviour;
mod claims;
pub(crate) mod cluster;
mod disk;
mod hostile;
mod versions;
mod voters;
