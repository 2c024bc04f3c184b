"""Runs as jobs of a batch system: what is submitted, and how far it is; `SCHEDULERS` are the systems.

A new one is a room beside `slurm` and `pbs` with a `hpcmpq.batch.scheduler.Scheduler`, a line in `SCHEDULERS`, and a
folder of batch scripts. `tests/slurm` and `tests/pbs` hold what each submits in golden files.
"""
