"""Jobs under Slurm: what is submitted, with which settings, and how far they are."""
