# shellcheck shell=bash
# MareNostrum 5 ACC, BSC: 4 NVIDIA H100 of 64 GB and 80 cores a node, 20 cores with each GPU.
# Hardware as www.bsc.es/supportkc says, November 2026.
# Partitions and commands are unchecked, and nothing of ours ran there: look before you trust.
#
#     cat slurm/sites/marenostrum5.sh slurm/env.sh >my_site.sh    # and fill in account and qos
#     hpcmpq submit config.yaml --run-dir RUN --slurm env=my_site.sh \
#         --slurm "nodes=4 ntasks_per_node=4 cpus_per_task=20 gres=gpu:4 time=04:00:00"
# export SBATCH_ACCOUNT=...                   # what `bsc_project list` lists
# export SBATCH_QOS=acc_...                   # the queue that goes with it, such as acc_ehpc; `bsc_queues` lists them
# Login nodes have no internet either: install from wheels that were copied there.
HPCMPQ_SCRATCH=${HPCMPQ_SCRATCH:-${TMPDIR:-/tmp}}   # a job's own directory on the node's disk
