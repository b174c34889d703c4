"""Which sample stands at a position: pure functions, the same on any number of ranks."""
