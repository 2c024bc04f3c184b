#!/usr/bin/env bash
# A real Slurm on one host for tests: munged, slurmctld and several slurmd, without systemd and cgroups.
#
#   eval "$(slurm/one_host_cluster.sh up)"     starts what is not running yet and prints `export SLURM_CONF=...`
#   slurm/one_host_cluster.sh down             ends what `up` started, jobs included, and nothing else
#
# Environment:
#   HPCMPQ_CLUSTER_DIR    configuration, logs, spool           (default /tmp/hpcmpq-slurm-$UID)
#   HPCMPQ_CLUSTER_PORT   first of the ports it listens on      (default 17900)
#   HPCMPQ_CLUSTER_NODES  number of nodes                       (default 3)
#   HPCMPQ_CLUSTER_CPUS   CPUs that each node claims to have    (default 4)
#
# Exit status: 0 done; 69 Slurm is missing and cannot be installed here; 1 it did not come up, logs on stderr.
set -euo pipefail

readonly EXIT_UNAVAILABLE=69
dir=${HPCMPQ_CLUSTER_DIR:-/tmp/hpcmpq-slurm-$UID}
port=${HPCMPQ_CLUSTER_PORT:-17900}
nodes=${HPCMPQ_CLUSTER_NODES:-3}
cpus=${HPCMPQ_CLUSTER_CPUS:-4}
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$dir/etc/slurm.conf

say() { echo "one_host_cluster: $*" >&2; }
pid_of() { cat "$dir/run/$1.pid" 2>/dev/null || true; }

# Whether the daemon that `up` started under this name runs; a zombie or a recycled process id does not count.
runs() {
    local pid
    pid=$(pid_of "$1")
    [ -n "$pid" ] && [[ $(readlink "/proc/$pid/exe") == */"${1%%.*}"* ]]
}

# Installs Debian packages where commands are missing and we are root.
require_slurm() {
    local missing="" command
    for command in munged slurmctld slurmd sbatch; do
        command -v "$command" >/dev/null || missing="$missing $command"
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "Slurm is not installed (no$missing) and only root on Debian or Ubuntu can install it here"
        exit $EXIT_UNAVAILABLE
    fi
    say "installing Slurm with apt-get"
    # RUNLEVEL=1 keeps the packages from starting daemons of their own.
    if ! (export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge procps) \
        >"$dir/log/apt.log" 2>&1; then
        say "Slurm is not installed and apt-get failed: $(tail -n 1 "$dir/log/apt.log")"
        exit $EXIT_UNAVAILABLE
    fi
}

# cred_expire is also the time that a requeued job waits; requeued jobs of a test should not wait two minutes.
write_configuration() {
    local user host i
    user=$(id -un) host=$(hostname -s)
    cat >"$dir/etc/slurm.conf" <<CONF
ClusterName=onehost
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.sock,cred_expire=10
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobcomp.txt
MpiDefault=none
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
InactiveLimit=0
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
NodeName=DEFAULT CPUs=$cpus CoresPerSocket=$cpus RealMemory=4000 State=UNKNOWN
CONF
    for ((i = 1; i <= nodes; i++)); do
        echo "NodeName=node$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i))"
    done >>"$dir/etc/slurm.conf"
    echo "PartitionName=main Nodes=node[1-$nodes] Default=YES MaxTime=01:00:00 State=UP" >>"$dir/etc/slurm.conf"
    echo "CgroupAutomount=no" >"$dir/etc/cgroup.conf"
}

num_ready() { timeout 5 sinfo -h -N -o %T 2>/dev/null | grep -c -x -E 'idle|mixed|allocated' || true; }

up() {
    local i
    mkdir -p "$dir"/{etc,run,log,state,spool}
    chmod 755 "$dir" "$dir"/{etc,run,log,state,spool}
    require_slurm
    if ! runs munged; then
        rm -f "$dir"/run/munge*
        (umask 077 && head -c 1024 /dev/urandom >"$dir/etc/munge.key")
        munged --key-file="$dir/etc/munge.key" --socket="$dir/run/munge.sock" --pid-file="$dir/run/munged.pid" \
            --log-file="$dir/log/munged.log" --seed-file="$dir/run/munge.seed" --num-threads=2 >&2
    fi
    if ! runs slurmctld; then
        write_configuration
        touch "$dir/log/jobcomp.txt"
        slurmctld >&2
    fi
    for ((i = 1; i <= nodes; i++)); do
        mkdir -p "$dir/spool/node$i"
        runs "slurmd.node$i" || slurmd -N "node$i" >&2
    done
    for ((i = 0; i < 150; i++)); do
        if [ "$(num_ready)" -ge "$nodes" ]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.2
    done
    say "the nodes are not ready: $(timeout 5 sinfo -h -N -o '%N %T %E' 2>&1 | tr '\n' ';')"
    tail -n 5 "$dir"/log/*.log >&2
    return 1
}

# Ends daemons, all at once, each by the process id in its file if that process still is the daemon.
end() {
    local name i left
    for name in "$@"; do
        runs "$name" && kill "$(pid_of "$name")" 2>/dev/null
    done
    for ((i = 0; i < 30; i++)); do
        left=0
        for name in "$@"; do runs "$name" && left=1; done
        [ $left = 0 ] && break
        sleep 0.1
    done
    for name in "$@"; do
        runs "$name" && kill -KILL "$(pid_of "$name")" 2>/dev/null
        rm -f "$dir/run/$name.pid"
    done
}

# Process ids of this cluster's jobs: a job outlives a slurmd that was killed.
job_processes() {
    local environ
    for environ in /proc/[0-9]*/environ; do
        if grep -q -z -F -x "SLURM_CONF=$SLURM_CONF" "$environ" 2>/dev/null &&
            grep -q -z '^SLURM_JOB_\?ID=' "$environ" 2>/dev/null; then
            environ=${environ%/environ}
            echo "${environ#/proc/}"
        fi
    done
}

down() {
    local i
    if runs slurmctld; then
        timeout 10 squeue -h -o %A 2>/dev/null | sort -u | xargs -r timeout 10 scancel 2>/dev/null || true
        for ((i = 0; i < 40; i++)); do
            [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
            sleep 0.2
        done
    fi
    local daemons=(slurmctld)
    for ((i = 1; i <= nodes; i++)); do daemons+=("slurmd.node$i"); done
    end "${daemons[@]}" munged
    job_processes | xargs -r kill -KILL 2>/dev/null || true
    rm -rf "$dir/state" "$dir/spool"
}

case "${1:-}" in
    up) up ;;
    down) down ;;
    *) sed -n '2,14s/^# \?//p' "$0" >&2; exit 2 ;;
esac
