"""Everything that is done *to* a built model. `apply.parallelize` does it, in one order."""
