"""A run as a Slurm job, from submit to its last word."""
