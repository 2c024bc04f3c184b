# shellcheck shell=bash
# What PBS does in another way than Slurm: read after env.sh, whose functions of the same names it replaces.

: "${HPCMPQ_MPIEXEC:=mpiexec}"   # the site's, which knows PBS; else such as "mpiexec -f $PBS_NODEFILE"
: "${HPCMPQ_WARN_S:=120}"        # seconds before its limit at which a job stops, to go on in another start

# Directory of this run's batch scripts.
folder=$(cd "$(dirname "$HPCMPQ_ENV")" && pwd)

job_nodes() { sort -u "$PBS_NODEFILE"; }
nodes_to_exclude() { :; }

# Seconds that this job may run, by PBS; nothing without a limit.
limit_s() {
    local hours minutes seconds
    IFS=: read -r hours minutes seconds < <(qstat -f "$PBS_JOBID" | sed -n 's/^ *Resource_List.walltime = //p') || return 0
    [ -z "$hours" ] || echo $((10#$hours * 3600 + 10#$minutes * 60 + 10#$seconds))
}

# Warns this shell (USR2) before its time is over. PBS itself only ends a job.
warn_before_limit() {
    local limit
    limit=$(limit_s)
    [ -n "$limit" ] || return 0
    if [ "$limit" -le "$HPCMPQ_WARN_S" ]; then
        echo "a limit of $limit s leaves no time before the warning; ask for more walltime, or set HPCMPQ_WARN_S" >&2
        exit 2
    fi
    (sleep $((limit - HPCMPQ_WARN_S - SECONDS)) && kill -USR2 $$) </dev/null >/dev/null 2>&1 &
}

# Copies the models of runs to every node of the job and exports their names, as the function of env.sh does.
stage_model() {
    local each model copy copies="" index marks done_by
    [ "$HPCMPQ_STAGE_MODEL" = 1 ] || return 0
    for each in "$@"; do
        model=$(model_directory "$each" 2>/dev/null) || continue
        [ -n "$model" ] || continue
        case $'\n'$copies in *$'\n'"$model"$'\t'*) continue ;; esac
        copy=$(staged_name "$model")
        marks=$(mktemp -d "$folder/staged.XXXXXX")
        # Of a host's lines in the node file one is enough. What a task says goes to the log, and its status nowhere.
        # shellcheck disable=SC2013,SC2016
        for index in $(awk '!seen[$0]++ { print NR - 1 }' "$PBS_NODEFILE"); do
            pbsdsh -n "$index" -- /bin/bash -c "$(declare -f stage_here)"'; stage_here "$0" "$1" && : >"$2/$(hostname)"' \
                "$model" "$copy" "$marks" || true
        done
        done_by=$(find "$marks" -type f | wc -l)
        rm -rf "$marks"
        if [ "$done_by" = "$(job_nodes | wc -l)" ]; then
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

# Jobs that wait for this one.
waiting() { qstat -f "$PBS_JOBID" | tr -d '\n\t ' | grep -o 'beforeok:[^A-Z]*' | tr ':' '\n' | sed -n 's/@.*//; /^[0-9]/p'; }

# Puts this job back into the queue. Where that is for operators alone, it submits itself again, and those that wait for
# it wait for the other from then on. The tasks of an array cannot: the same `hpcmpq submit` goes on.
requeue() {
    local why=${1:-time is nearly over} starts new next
    trap '' TERM
    starts=$(($(qstat -f "$PBS_JOBID" | sed -n 's/^ *run_count = //p') + HPCMPQ_STARTS - 1))
    if [ "$starts" -gt "$HPCMPQ_MAX_REQUEUES" ]; then
        echo "not requeued: this was start $starts, HPCMPQ_MAX_REQUEUES=$HPCMPQ_MAX_REQUEUES" >&2
    elif qrerun "$PBS_JOBID" 2>/dev/null; then
        echo "$why; job $PBS_JOBID is back in the queue" >&2
    elif [ -z "${PBS_ARRAY_INDEX:-}" ] && new=$(HPCMPQ_STARTS=$((starts + 1)) bash "$folder/submit.sh" "${PBS_JOBNAME#hpcmpq-}"); then
        new=${new#* }
        echo "$PBS_JOBID $new" >>"$folder/again"
        for next in $(waiting); do qalter -W "depend=afterok:$new" "$next"; done
        echo "$why; it goes on as job $new" >&2
        exit 0   # a job that fails takes with it those that ever waited for it
    else
        echo "job $PBS_JOBID cannot requeue itself here; submit it again to go on" >&2
    fi
    exit 75
}
