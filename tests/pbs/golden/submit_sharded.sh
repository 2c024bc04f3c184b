#!/usr/bin/env bash
# Submits the jobs of one run, each waiting for the one before; prints their names and numbers.
# With the name of a job: that one again.
set -euo pipefail
export HPCMPQ_ENV=/home/me/run/pbs/env.sh
export HPCMPQ_SUBMIT_PYTHON=/home/me/venv/bin/python
export HPCMPQ_STARTS=${HPCMPQ_STARTS:-1} HPCMPQ_TASKS=1
# The jobs get what is set now; in a job that submits itself again, what was set then.
export HPCMPQ_PASSED=${HPCMPQ_PASSED:-$(IFS=,; echo "${!HPCMPQ_*}")}
. "$HPCMPQ_ENV"
only=${1:-} before=()
submit() {
    local id
    if [ -n "$only" ] && [ "$only" != "$1" ]; then return; fi
    id=$(qsub -N "hpcmpq-$1" -j oe -r y -v "$HPCMPQ_PASSED,HPCMPQ_PASSED" \
        ${before[@]+"${before[@]}"} "${@:2}")
    before=(-W "depend=afterok:$id")
    echo "$1 $id"
}
submit calibrate \
    -o /home/me/run/pbs/ \
    -l select=2:ncpus=32:ngpus=4:mpiprocs=16 \
    -- /bin/bash /home/me/run/pbs/calibrate_mpi.pbs \
    /home/me/run
submit solve \
    -o /home/me/run/pbs/ \
    -l select=1:ncpus=1 \
    -- /bin/bash /home/me/run/pbs/solve.pbs \
    /home/me/run \
    reduce \
    solve
HPCMPQ_TASKS=4 submit refine \
    -o /home/me/run/pbs/ \
    -J 0-3 \
    -l select=1:ncpus=1:ngpus=1 \
    -- /bin/bash /home/me/run/pbs/calibrate_array.pbs \
    /home/me/run \
    refine
submit export \
    -o /home/me/run/pbs/ \
    -l select=1:ncpus=1:ngpus=1 \
    -- /bin/bash /home/me/run/pbs/solve.pbs \
    /home/me/run \
    export
submit evaluate \
    -o /home/me/run/pbs/ \
    -l select=2:ncpus=32:ngpus=4:mpiprocs=4 \
    -l walltime=2:00:00 \
    -- /bin/bash /home/me/run/pbs/evaluate.pbs \
    /home/me/run
submit report \
    -o /home/me/run/pbs/ \
    -l select=1:ncpus=1 \
    -- /bin/bash /home/me/run/pbs/solve.pbs \
    /home/me/run \
    report
