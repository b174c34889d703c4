"""Look at a run's configuration."""
