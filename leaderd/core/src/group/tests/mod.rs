mod behaviour;
pub(crate) mod cluster;
mod hostile;
