#!/usr/bin/env bash
# Submits the jobs of one run, each waiting for the one before; prints their names and numbers.
set -euo pipefail
export HPCMPQ_ENV=/home/me/run/slurm/env.sh
export HPCMPQ_SUBMIT_PYTHON=/home/me/venv/bin/python
. "$HPCMPQ_ENV"
before=()
submit() {
    local id
    id=$(sbatch --parsable --job-name="hpcmpq-$1" ${before[@]+"${before[@]}"} "${@:2}")
    before=("--dependency=afterok:${id%%;*}" --kill-on-invalid-dep=yes)
    echo "$1 ${id%%;*}"
}
submit plan \
    --output=/home/me/run/slurm/%x-%j.log \
    --signal=B:USR2@300 \
    /home/me/run/slurm/plan.sbatch \
    /home/me/config.yaml \
    /home/me/run
submit calibrate \
    --output=/home/me/run/slurm/%x-%j.log \
    --nodes=3 \
    --gpus-per-node=4 \
    --signal=B:USR2@300 \
    /home/me/run/slurm/calibrate_ray.sbatch \
    /home/me/run
submit solve \
    --output=/home/me/run/slurm/%x-%j.log \
    --signal=B:USR2@300 \
    /home/me/run/slurm/solve.sbatch \
    /home/me/run \
    reduce \
    solve
submit finish \
    --output=/home/me/run/slurm/%x-%j.log \
    --signal=B:USR2@300 \
    --gpus=1 \
    /home/me/run/slurm/solve.sbatch \
    /home/me/run \
    export \
    evaluate \
    report
