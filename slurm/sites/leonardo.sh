# shellcheck shell=bash
# Leonardo Booster, CINECA: 4 NVIDIA A100 of 64 GB, 32 cores and 512 GB of memory a node.
# Hardware as docs.hpc.cineca.it/hpc/leonardo.html says, November 2026.
# Partitions and commands are unchecked, and nothing of ours ran there: look before you trust.
#
#     cat slurm/sites/leonardo.sh slurm/env.sh >my_site.sh        # and fill in the account
#     hpcmpq submit config.yaml --run-dir RUN --slurm env=my_site.sh \
#         --slurm "nodes=4 ntasks_per_node=4 cpus_per_task=8 gres=gpu:4 time=04:00:00"
export SBATCH_PARTITION=${SBATCH_PARTITION:-boost_usr_prod}
# export SBATCH_ACCOUNT=...                   # what `saldo -b` lists
HPCMPQ_SCRATCH=${HPCMPQ_SCRATCH:-${TMPDIR:-/tmp}}   # a job's own directory; ask for more with --slurm gres=tmpfs:...
