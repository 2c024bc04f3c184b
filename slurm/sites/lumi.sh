# shellcheck shell=bash
# LUMI-G, CSC: 4 AMD MI250X a node, which Slurm and torch see as 8 GPUs of 64 GB; 56 of 64 cores are for jobs, 7 a GPU.
# Hardware as docs.lumi-supercomputer.eu says, November 2026.
# Partitions and commands are unchecked, and nothing of ours ran there: look before you trust.
#
#     cat slurm/sites/lumi.sh slurm/env.sh >my_site.sh            # and fill in account and container
#     hpcmpq submit config.yaml --run-dir RUN --slurm env=my_site.sh \
#         --slurm "nodes=4 ntasks_per_node=8 cpus_per_task=7 gpus_per_node=8 time=04:00:00"
export SBATCH_PARTITION=${SBATCH_PARTITION:-standard-g}   # whole nodes; small-g shares them
# export SBATCH_ACCOUNT=project_...
# Many small files are slow on Lustre, so LUMI asks for Python in a container, with the ROCm build of torch in it:
# HPCMPQ_CONTAINER="singularity exec hpcmpq.sif"
# HPCMPQ_PYTHON=python
HPCMPQ_SCRATCH=${HPCMPQ_SCRATCH:-/tmp}              # nodes have no disk: it is memory, and the model has to fit beside
