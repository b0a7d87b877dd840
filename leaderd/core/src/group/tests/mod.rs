mod behaviour;
mod cluster;
mod hostile;
