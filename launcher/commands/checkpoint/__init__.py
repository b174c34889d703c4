"""Look at a run's checkpoints."""
