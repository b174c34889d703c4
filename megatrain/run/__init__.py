"""A run's history: who trains it, where it is, and how each attempt ended. Free of torch."""
