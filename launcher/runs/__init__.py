"""A run's folder as the launcher sees it: prepared, claimed, watched and stopped, wherever it runs."""
