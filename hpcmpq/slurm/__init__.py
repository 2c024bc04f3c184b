"""Slurm: what its jobs may be told, how they are submitted, where they stand, and what they used."""
