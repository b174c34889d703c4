"""A run as a Slurm job, from submission to its final state."""
