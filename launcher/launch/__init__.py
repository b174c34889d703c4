"""Ranks without Slurm: here, by ssh, or as one of many launchers."""
