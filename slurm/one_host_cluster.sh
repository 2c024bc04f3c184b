#!/usr/bin/env bash
# A real Slurm on one host for tests: munged, slurmctld and several slurmd, without systemd and cgroups.
#
#   eval "$(slurm/one_host_cluster.sh up)"     starts what is not running yet and prints `export SLURM_CONF=...`
#   eval "$(slurm/one_host_cluster.sh up --hosts)"   the same, but each node is a host of its own, see below
#   slurm/one_host_cluster.sh cut node2        takes a host's cable out; `mend node2` puts it in again
#   slurm/one_host_cluster.sh down             ends what `up` started, jobs included, and nothing else
#
# A host has a name and an address of its own (10.77.X.1 and so on, on a bridge of this cluster; nothing leads beyond
# it), and its own /tmp, /dev/shm and shared memory. All other directories are shared. This needs root that may make
# namespaces.
#
# Environment:
#   HPCMPQ_CLUSTER_DIR    configuration, logs, spool           (default /tmp/hpcmpq-slurm-$UID)
#   HPCMPQ_CLUSTER_PORT   first of the ports it listens on      (default 17900)
#   HPCMPQ_CLUSTER_NODES  number of nodes                       (default 3)
#   HPCMPQ_CLUSTER_CPUS   CPUs that each node claims to have    (default 4)
#   HPCMPQ_CLUSTER_SHARED directories below /tmp that hosts share, separated by colons
#
# Exit status: 0 done; 69 Slurm is missing and cannot be installed here, or hosts are not allowed; 1 it did not come
# up, logs on stderr.
set -euo pipefail

readonly EXIT_UNAVAILABLE=69
dir=${HPCMPQ_CLUSTER_DIR:-/tmp/hpcmpq-slurm-$UID}
port=${HPCMPQ_CLUSTER_PORT:-17900}
nodes=${HPCMPQ_CLUSTER_NODES:-3}
cpus=${HPCMPQ_CLUSTER_CPUS:-4}
hosts=0 controller=127.0.0.1
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
    for command in munged slurmctld slurmd sbatch ip; do
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
        apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge procps iproute2) \
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
SlurmctldHost=$host($controller)
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
        if [ "$hosts" = 1 ]; then
            echo "NodeName=node$i NodeHostname=node$i NodeAddr=${controller%.*}.$i Port=$((port + i))"
        else
            echo "NodeName=node$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i))"
        fi
    done >>"$dir/etc/slurm.conf"
    echo "PartitionName=main Nodes=node[1-$nodes] Default=YES MaxTime=01:00:00 State=UP" >>"$dir/etc/slurm.conf"
    echo "CgroupAutomount=no" >"$dir/etc/cgroup.conf"
}

# Name of this cluster's bridge; its cables are NAME-1 and so on, and so are the network namespaces of its hosts.
network() { cat "$dir/run/network" 2>/dev/null || true; }

# Sets `controller` to the address that hosts know this machine by. Makes the bridge and the hosts' networks unless
# they are there; a bridge's name is taken by whoever makes it, so that clusters do not meet.
connect_hosts() {
    local number i net
    if [ -z "$(network)" ]; then
        for ((number = 0; number < 200; number++)); do
            ip link add "hq$number" type bridge 2>"$dir/log/network.log" && break
            grep -q 'File exists' "$dir/log/network.log" || number=200
        done
        if [ "$number" -ge 200 ]; then
            say "hosts need root that may make network namespaces: $(tail -n 1 "$dir/log/network.log")"
            exit $EXIT_UNAVAILABLE
        fi
        echo "hq$number" >"$dir/run/network"
        ip addr add "10.77.$number.254/24" dev "hq$number"
        ip link set "hq$number" up
    fi
    net=$(network) number=${net#hq}
    controller=10.77.$number.254
    echo "127.0.0.1 localhost" >"$dir/etc/hosts"
    echo "$controller $(hostname -s)" >>"$dir/etc/hosts"
    for ((i = 1; i <= nodes; i++)); do
        echo "10.77.$number.$i node$i" >>"$dir/etc/hosts"
        [ -e "/run/netns/$net-$i" ] && continue
        if ! { ip netns add "$net-$i" && unshare --mount --uts --ipc true; } 2>"$dir/log/network.log"; then
            say "hosts need root that may make namespaces: $(tail -n 1 "$dir/log/network.log")"
            disconnect_hosts
            exit $EXIT_UNAVAILABLE
        fi
        ip link add "$net-$i" type veth peer name eth0 netns "$net-$i"
        ip link set "$net-$i" master "$net" up
        ip -n "$net-$i" link set lo up
        ip -n "$net-$i" addr add "10.77.$number.$i/24" dev eth0
        ip -n "$net-$i" link set eth0 up
    done
}

disconnect_hosts() {
    local net i
    net=$(network)
    [ -n "$net" ] || return 0
    for ((i = 1; i <= nodes; i++)); do
        [ -e "/run/netns/$net-$i" ] || continue
        ip netns pids "$net-$i" | xargs -r kill -KILL 2>/dev/null || true
        ip netns del "$net-$i"
    done
    ip link del "$net"
    rm -f "$dir/run/network"
}

# Runs a command on host node$1: its network, its name, its own /tmp and memory to share.
on_host() {
    local i=$1
    shift
    # `ip netns exec` would hide /sys/fs/cgroup, without which slurmd ends.
    # shellcheck disable=SC2016
    nsenter --net="/run/netns/$(network)-$i" unshare --mount --uts --ipc --propagation private bash -euc '
        new=$1/spool/$2.tmp shared=$3
        hostname "$2"
        mkdir -p "$new"
        mount -t tmpfs -o mode=1777 none "$new"
        IFS=:
        for each in $1 $shared; do
            case $each in /tmp/*) mkdir -p "$new/${each#/tmp/}"; mount --rbind "$each" "$new/${each#/tmp/}" ;; esac
        done
        unset IFS
        mount --bind "$1/etc/hosts" /etc/hosts
        if [ -e /etc/resolv.conf ]; then mount --bind /dev/null /etc/resolv.conf; fi
        mount -t tmpfs -o mode=1777 none /dev/shm
        mount --move "$new" /tmp
        shift 3
        exec "$@"' host "$dir" "node$i" "${HPCMPQ_CLUSTER_SHARED:-}" "$@"
}

num_ready() { timeout 5 sinfo -h -N -o %T 2>/dev/null | grep -c -x -E 'idle|mixed|allocated' || true; }

up() {
    local i
    mkdir -p "$dir"/{etc,run,log,state,spool}
    chmod 755 "$dir" "$dir"/{etc,run,log,state,spool}
    require_slurm
    if [ "$hosts" = 1 ]; then connect_hosts; fi
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
        runs "slurmd.node$i" && continue
        if [ "$hosts" = 1 ]; then on_host "$i" slurmd -N "node$i" >&2; else slurmd -N "node$i" >&2; fi
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
    disconnect_hosts
    rm -rf "$dir/state" "$dir/spool"
}

# Takes the cable of host $1 out (down) or puts it in (up).
set_cable() {
    if [ ! -e "/sys/class/net/$(network)-${1#node}" ]; then
        say "no cable leads to '$1'; hosts are those of \`up --hosts\`: node1 to node$nodes"
        exit 2
    fi
    ip link set "$(network)-${1#node}" "$2"
}

case "${1:-}" in
    up)
        if [ "${2:-}" = --hosts ] || [ -n "$(network)" ]; then hosts=1; fi
        up
        ;;
    cut) set_cable "${2:-}" down ;;
    mend) set_cable "${2:-}" up ;;
    down) down ;;
    *) sed -n '/^set /q;2,$s/^# \?//p' "$0" >&2; exit 2 ;;
esac
