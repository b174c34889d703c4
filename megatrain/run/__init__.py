"""A run's history: who trains it, where it is, and how each start ended. Free of torch."""
