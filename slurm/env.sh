# shellcheck shell=bash
# Everything about a site in one place. Copy this file, edit the settings, and name the copy:
# `hpcmpq submit ... --slurm env=my_site.sh`. A variable set before the job is submitted wins over its line here.

# --- Settings

# sbatch reads these itself; what stays commented out is left to the site's defaults.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=project
# export SBATCH_QOS=normal
# export SBATCH_TIMELIMIT=04:00:00

: "${HPCMPQ_MODULES:=}"          # environment modules to load, such as "gcc/13 openmpi/5.0"
: "${HPCMPQ_VENV:=}"             # directory of the Python environment to activate
: "${HPCMPQ_CONTAINER:=}"        # what to put before python, such as "apptainer exec --nv hpcmpq.sif"
: "${HPCMPQ_PYTHON:=${HPCMPQ_SUBMIT_PYTHON:-python}}"   # by default the one that ran `hpcmpq submit`
: "${HPCMPQ_MPI:=}"              # srun --mpi=...: pmi2 for MPICH and Intel MPI, pmix for Open MPI; empty: found out in the job
: "${HPCMPQ_SCRATCH:=${TMPDIR:-/tmp}}"   # a directory on each node's own disk
: "${HPCMPQ_STAGE_MODEL:=1}"     # 1: copy the model to each node's scratch once; 0: read it where it lies
: "${HPCMPQ_STAGE_BY:=copy}"      # copy: every node copies the model itself; sbcast: one reads it, and Slurm passes it on
: "${HPCMPQ_SBCAST_AT_ONCE:=8}"    # files that sbcast passes on at once
: "${HPCMPQ_MAX_REQUEUES:=20}"   # times that a job puts itself back into the queue
export HPCMPQ_SCRATCH

# --- What the jobs do with them

# Prepares the shell of a job: modules, Python, and variables that every stage needs on compute nodes.
prepare_node() {
    local module
    for module in $HPCMPQ_MODULES; do module load "$module"; done
    # shellcheck disable=SC1091
    if [ -n "$HPCMPQ_VENV" ]; then . "$HPCMPQ_VENV/bin/activate"; fi
    read -r -a PYTHON <<<"$HPCMPQ_CONTAINER $HPCMPQ_PYTHON"
    SRUN=(srun --kill-on-bad-exit=1)
    if [ -n "$HPCMPQ_MPI" ]; then SRUN+=("--mpi=$HPCMPQ_MPI"); fi
    if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    export HDF5_USE_FILE_LOCKING=FALSE          # parallel file systems often have no locks
    export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1   # compute nodes have no internet
    export PYTHONUNBUFFERED=1
    trap requeue USR2   # a warning that comes before `run_resumable`
}

# Directory that the plan reads the model from; empty for a factory.
model_directory() {
    "${PYTHON[@]}" -c 'import json, sys; print(json.load(open(sys.argv[1], encoding="utf-8"))["config"]["model"]["path"] or "")' \
        "$1/plan.json"
}

# Prints where a copy of the model directory $1 belongs on a node's own disk; its name changes with the content.
staged_name() {
    local listing
    listing=$(cd "$1" && find -L . -type f -printf '%P %s %T@\n' | LC_ALL=C sort | sha256sum)
    echo "$HPCMPQ_SCRATCH/hpcmpq-$(id -un)/$(basename "$1")-${listing:0:16}"
}

# Copies the model directory $1 to $2 on this node, unless it is there. The copy gets its name when it is whole.
stage_here() {
    local attempt
    [ -d "$2" ] && return 0
    mkdir -p "$(dirname "$2")"
    attempt=$(mktemp -d "$2.XXXXXX.partial")
    cp -rL --preserve=timestamps "$1/." "$attempt" || { rm -rf "$attempt"; return 1; }
    # Another job may have been faster; its copy is the same.
    mv -T "$attempt" "$2" 2>/dev/null || rm -rf "$attempt"
    [ -d "$2" ]
}

# Copies the model directory $1 to $2 on every node, unless it is there on all: this node reads it, and slurmds pass it on
# in a tree, each to two. The next piece of a file leaves when all nodes have the last one, so several files go at once.
stage_by_sbcast() {
    local attempt="$2.$SLURM_JOB_ID.partial" each
    each=(srun --overlap "--ntasks=$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task=1)
    "${each[@]}" test -d "$2" 2>/dev/null && return 0
    # shellcheck disable=SC2016
    (cd "$1" && find -L . -type d -printf '%P\0') | xargs -0 "${each[@]}" bash -c \
        'rm -rf "$0"; mkdir -p "$0" && for each in "$@"; do mkdir -p "$0/$each" || exit; done' "$attempt" || return
    # shellcheck disable=SC2016
    (cd "$1" && find -L . -type f -printf '%P\0') | xargs -0 -n 1 -P "$HPCMPQ_SBCAST_AT_ONCE" \
        bash -c 'sbcast --preserve --fanout=2 "$0/$2" "$1/$2"' "$1" "$attempt" || { "${each[@]}" rm -rf "$attempt"; return 1; }
    # shellcheck disable=SC2016
    "${each[@]}" bash -c 'mv -T "$0" "$1" 2>/dev/null || rm -rf "$0"; [ -d "$1" ]' "$attempt" "$2"
}

# Copies the models of runs to every node of the job and exports their names, which `hpcmpq calibrate` reads instead: of
# one run as HPCMPQ_MODEL_DIR, of several in HPCMPQ_MODEL_COPIES, a line for each model: it, a tab, its copy.
stage_model() {
    local each model copy copies=""
    [ "$HPCMPQ_STAGE_MODEL" = 1 ] || return 0
    for each in "$@"; do
        # What is wrong with a plan is said when it is read to calibrate.
        model=$(model_directory "$each" 2>/dev/null) || continue
        [ -n "$model" ] || continue
        case $'\n'$copies in *$'\n'"$model"$'\t'*) continue ;; esac
        copy=$(staged_name "$model")
        # shellcheck disable=SC2016
        if { [ "$HPCMPQ_STAGE_BY" = sbcast ] && stage_by_sbcast "$model" "$copy"; } ||
            srun --overlap --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task=1 \
                bash -c "$(declare -f stage_here)"'; stage_here "$0" "$1"' "$model" "$copy"; then
            copies+=$model$'\t'$copy$'\n'
        else
            echo "cannot copy $model to $copy on every node; reading it where it lies" >&2
        fi
    done
    if [ $# -gt 1 ]; then
        export HPCMPQ_MODEL_COPIES=$copies
    elif [ -n "$copies" ]; then
        export HPCMPQ_MODEL_DIR=$copy
    fi
}

# Runs a command in the background and waits. The warning that the time is over (USR2) and termination (TERM) go on
# to the command. If it then stopped and is resumable, the job puts itself back into the queue. So it does where units
# fail on a node of the job and on no other: the job goes on elsewhere.
run_resumable() {
    local child status warned=0 bad node
    "$@" &
    child=$!
    trap 'warned=1; kill -USR2 $child 2>/dev/null' USR2
    trap 'kill -TERM $child 2>/dev/null' TERM
    while :; do
        wait $child && status=0 || status=$?
        # A trapped signal ends `wait` early.
        if [ $status -gt 128 ] && kill -0 $child 2>/dev/null; then continue; fi
        break
    done
    trap requeue USR2
    trap - TERM
    if [ $warned = 1 ] && { [ $status = 75 ] || [ $status -gt 128 ]; }; then requeue; fi
    if [ $status = 2 ]; then
        bad=$(nodes_to_exclude)
        for node in $(job_nodes); do
            case ",$bad," in *",$node,"*) requeue "units fail on $node" ;; esac
        done
    fi
    return $status
}

# What scontrol knows this job by. The last task of an array has the array's own number, which means all of its tasks.
this_job() {
    if [ "${SLURM_ARRAY_JOB_ID:-}" = "$SLURM_JOB_ID" ]; then
        echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    else
        echo "$SLURM_JOB_ID"
    fi
}

job_nodes() { scontrol show hostnames "${SLURM_JOB_NODELIST:-}"; }

# Prints the nodes that this job excludes and those on which units of the run, or of one of the array `runs`, fail again
# and again and on no other; nothing without the latter.
nodes_to_exclude() {
    local before said each found=""
    [ -n "${run:-}" ] || return 0
    before=$(scontrol show job "$(this_job)" --oneliner | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
    before=${before#(null)}
    for each in "${runs[@]:-$run}"; do
        said=$("${PYTHON[@]}" -m hpcmpq.slurm.excluded "$each" "$before") || continue
        if [ -n "$said" ]; then before=$said found=$said; fi
    done
    if [ -n "$found" ]; then echo "$found"; fi
}

# Puts this job back into the queue, under the same number, so that jobs which wait for it go on waiting; without the
# nodes on which units fail, where the site lets a job say so.
requeue() {
    local why=${1:-time is nearly over} job nodes
    job=$(this_job)
    nodes=$(nodes_to_exclude)
    trap '' TERM   # which comes as soon as the job is in the queue
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$HPCMPQ_MAX_REQUEUES" ]; then
        echo "not requeued: this was start $((SLURM_RESTART_COUNT + 1)), HPCMPQ_MAX_REQUEUES=$HPCMPQ_MAX_REQUEUES" >&2
    elif scontrol requeue "$job"; then
        if [ -n "$nodes" ] && ! scontrol update JobId="$job" ExcNodeList="$nodes"; then nodes="" ; fi
        echo "$why; job $job is back in the queue${nodes:+, without $nodes}" >&2
    else
        echo "job $job cannot requeue itself here; submit it again to go on" >&2
    fi
    exit 75
}
