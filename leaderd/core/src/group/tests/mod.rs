mod behaviour;
pub(crate) mod cluster;
mod disk;
mod hostile;
