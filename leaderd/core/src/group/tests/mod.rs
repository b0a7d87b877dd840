mod cluster;
mod behaviour;
mod hostile;
