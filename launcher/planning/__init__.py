"""A run and its cluster → the layouts that can be, what each needs and how fast it is."""
