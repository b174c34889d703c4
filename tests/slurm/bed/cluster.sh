#!/usr/bin/env bash
# A real Slurm cluster of several pretended nodes on this host, without systemd or cgroups, for tests.
#
#   cluster.sh start             prints the `export SLURM_CONF=…` that clients need
#   cluster.sh stop              ends what start began, and nothing else
#   cluster.sh guard             waits until its standard input ends, as it does when its parent dies, then stops
#   cluster.sh crash NODE        kills everything on a node (root)
#   cluster.sh freeze|thaw NODE  stops a node's processes, and lets them go on (root)
#   cluster.sh boot NODE         starts a crashed node again
#   cluster.sh down              kills the controller
#   cluster.sh up [LINE]         starts it again, with one more line of slurm.conf
#
# Environment: BED (its folder), NODES, CPUS and GPUS (of each node), PREFIX (of node names), PORT, SLURMD_TIMEOUT.
# It needs Debian's slurm-wlm and munge, writes to $BED only, and as root adds the nodes' names to /etc/hosts.
# GPUs are links to /dev/null: Slurm hands them out, nothing more.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
BED=${BED:-${TMPDIR:-/tmp}/slurm-bed}
NODES=${NODES:-2} CPUS=${CPUS:-4} GPUS=${GPUS:-4} PREFIX=${PREFIX:-node} PORT=${PORT:-26800}
SLURMD_TIMEOUT=${SLURMD_TIMEOUT:-10}
export SLURM_CONF=$BED/etc/slurm.conf PATH=$PATH:/usr/sbin:/sbin
# With a UTS namespace each node has its own host name, and its processes can be told from the others'.
own_names=$([[ $(id -u) = 0 ]] && unshare --uts true 2>/dev/null && echo 1 || echo 0)

daemon() { # daemon NAME COMMAND…: in the background, its process id in $BED/run
    local name=$1
    shift
    setsid "$@" </dev/null >>"$BED/log/$name.out" 2>&1 &
    echo $! >"$BED/run/$name.pid"
}

alive() { kill -0 "$1" 2>/dev/null && [[ $(ps -o stat= -p "$1") != Z* ]]; }

start_munge() {
    (umask 077; dd if=/dev/urandom of="$BED/munge/key" bs=128 count=1 status=none)
    daemon munged munged --foreground --force --key-file="$BED/munge/key" --socket="$BED/munge/socket" \
        --pid-file="$BED/munge/pid" --log-file="$BED/log/munged.log" --seed-file="$BED/munge/seed"
    for _ in $(seq 100); do
        munge -n -S "$BED/munge/socket" >/dev/null 2>&1 && return
        sleep 0.05
    done
    echo "munged does not answer; see $BED/log" >&2
    return 1
}

write_configuration() {
    sed -e "s#@BED@#$BED#g; s#@USER@#$(id -un)#g; s#@HOST@#$(hostname -s)#g; s#@PORT@#$PORT#g" \
        -e "s#@SLURMD_TIMEOUT@#$SLURMD_TIMEOUT#g" "$here/slurm.conf.in" >"$SLURM_CONF"
    echo "CgroupPlugin=cgroup/v1" >"$BED/etc/cgroup.conf" # unused, but slurmd looks for a cgroup file system without it
    local gres="" range="$PREFIX[1-$NODES]" i
    : >"$BED/etc/gres.conf"
    if ((GPUS > 0)); then
        for ((i = 0; i < GPUS; i++)); do ln -s /dev/null "$BED/dev/nvidia$i"; done
        echo "NodeName=$range Name=gpu File=$BED/dev/nvidia[0-$((GPUS - 1))]" >"$BED/etc/gres.conf"
        gres="Gres=gpu:$GPUS"
    fi
    for ((i = 1; i <= NODES; i++)); do
        local host
        host=$([[ $own_names = 1 ]] && echo "$PREFIX$i" || hostname -s)
        echo "NodeName=$PREFIX$i NodeHostname=$host NodeAddr=127.0.1.$i Port=$((PORT + i)) CPUs=$CPUS Boards=1" \
            "SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=4000 $gres State=UNKNOWN"
    done >>"$SLURM_CONF"
    echo "PartitionName=main Nodes=$range Default=YES PriorityTier=1 GraceTime=5 MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
    echo "PartitionName=high Nodes=$range PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
}

name_nodes() { # each node's name resolves to its address
    [[ -w /etc/hosts ]] || return 0
    for ((i = 1; i <= NODES; i++)); do echo "127.0.1.$i $PREFIX$i # slurm bed $BED" >>/etc/hosts; done
}

forget_nodes() { # in place: /etc/hosts may be a bind mount
    [[ -w /etc/hosts ]] || return 0
    local rest
    rest=$(grep -vF "# slurm bed $BED" /etc/hosts) && printf '%s\n' "$rest" >/etc/hosts
}

boot() {
    mkdir -p "$BED/spool/$1"
    local command=(slurmd -D -N "$1" -f "$SLURM_CONF")
    # shellcheck disable=SC2016 # $0 and $@ are the inner shell's
    [[ $own_names = 0 ]] || command=(unshare --uts sh -c 'hostname "$0" && exec "$@"' "$1" "${command[@]}")
    daemon "slurmd-$1" "${command[@]}"
}

wait_until_idle() {
    for _ in $(seq 300); do
        local idle
        idle=$(sinfo -h -N -p main -o '%N %T' 2>/dev/null | grep -c ' idle$' || true)
        [[ $idle = "$NODES" ]] && return
        sleep 0.1
    done
    echo "the nodes did not come up:" >&2
    { sinfo -N -l; tail -n 15 "$BED"/log/*; } >&2 || true
    return 1
}

start() {
    local tool
    for tool in munged slurmctld slurmd scontrol; do
        command -v $tool >/dev/null || { echo "missing $tool: apt-get install slurm-wlm munge" >&2; exit 3; }
    done
    stop
    rm -rf "$BED"
    mkdir -p "$BED"/{etc,log,run,state,munge,dev,spool}
    chmod 755 "$BED" "$BED"/*
    chmod 700 "$BED/state"
    name_nodes
    start_munge
    write_configuration
    cp "$SLURM_CONF" "$SLURM_CONF.first"
    daemon slurmctld slurmctld -D -c -f "$SLURM_CONF"
    for ((i = 1; i <= NODES; i++)); do boot "$PREFIX$i"; done
    wait_until_idle
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    [[ -d $BED/run ]] || return 0
    timeout 10 scancel --quiet --user="$(id -un)" 2>/dev/null || true
    for _ in $(seq 80); do
        [[ -z $(timeout 5 squeue -h 2>/dev/null) ]] && break
        sleep 0.1
    done
    local file id
    for file in "$BED"/run/slurmctld.pid "$BED"/run/slurmd-*.pid "$BED"/run/munged.pid; do
        [[ -f $file ]] || continue
        id=$(cat "$file")
        rm -f "$file"
        alive "$id" || continue
        kill -CONT "$id"
        kill -TERM "$id"
        for _ in $(seq 50); do alive "$id" || break; sleep 0.1; done
        if alive "$id"; then kill -KILL "$id"; fi
    done
    end_steps
    forget_nodes
}

end_steps() { # job steps whose slurmd was killed carry on; theirs is this cluster's SLURM_CONF
    local folder
    for folder in /proc/[0-9]*; do
        { tr '\0' ' ' <"$folder/cmdline"; } 2>/dev/null | grep -q '^slurmstepd:' || continue
        if { tr '\0' '\n' <"$folder/environ"; } 2>/dev/null | grep -qx "SLURM_CONF=$SLURM_CONF"; then
            kill -KILL "${folder#/proc/}" 2>/dev/null || true
        fi
    done
}

members() { # the processes of a node: those in its slurmd's UTS namespace
    [[ $own_names = 1 ]] || { echo "nodes can be told apart only as root" >&2; exit 2; }
    local space folder
    space=$(readlink "/proc/$(cat "$BED/run/slurmd-$1.pid")/ns/uts")
    for folder in /proc/[0-9]*; do
        [[ $(readlink "$folder/ns/uts" 2>/dev/null) != "$space" ]] || echo "${folder#/proc/}"
    done
}

signal_node() { # signal_node NODE SIGNAL
    local ids
    mapfile -t ids < <(members "$1")
    kill -"$2" "${ids[@]}" 2>/dev/null || true
}

down() { # as in a power cut: what the controller knows of its jobs is the state that it has saved
    local id
    id=$(cat "$BED/run/slurmctld.pid")
    sleep 6 # it writes its state down every 5 s
    kill -KILL "$id"
    while alive "$id"; do sleep 0.05; done
}

up() { # up [LINE]
    { cat "$SLURM_CONF.first"; echo "${1:-}"; } >"$SLURM_CONF"
    daemon slurmctld slurmctld -D -f "$SLURM_CONF"
    for _ in $(seq 100); do
        timeout 5 scontrol ping 2>/dev/null | grep -q ' UP' && return
        sleep 0.1
    done
    echo "the controller does not come back; see $BED/log" >&2
    return 1
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    guard) cat >/dev/null; stop ;;
    boot) boot "$2" ;;
    crash) signal_node "$2" KILL && rm -f "$BED/run/slurmd-$2.pid" ;;
    freeze) signal_node "$2" STOP ;;
    thaw) signal_node "$2" CONT ;;
    down) down ;;
    up) up "${2:-}" ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
