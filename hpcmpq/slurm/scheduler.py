"""Slurm, as one of the batch systems."""

from hpcmpq.batch.scheduler import Scheduler
from hpcmpq.slurm.chain import chain_script
from hpcmpq.slurm.settings import parse_settings, with_memory
from hpcmpq.slurm.states import states

SLURM = Scheduler(
    "Slurm", "sbatch", "scancel", "slurm", "sbatch", (), parse_settings, chain_script, states, with_memory
)
