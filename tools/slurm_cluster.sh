#!/usr/bin/env bash
# A real Slurm on this one machine, for the tests: munged, slurmctld and slurmd, run by whoever calls, with all their
# files in one folder and on ports of their own, so that a Slurm which is already here is left alone.
#
#   tools/slurm_cluster.sh install          the Debian packages; needs root or sudo
#   tools/slurm_cluster.sh start FOLDER     returns when the node takes jobs; SLURM_CONF=FOLDER/slurm.conf leads there
#   tools/slurm_cluster.sh stop FOLDER      ends the jobs, then the daemons
set -euo pipefail

# Where Debian keeps daemons, which is not on everybody's path.
PATH=$PATH:/usr/sbin:/sbin

install_packages() {
    if command -v slurmctld slurmd munged >/dev/null; then
        return
    fi
    if ! command -v apt-get >/dev/null; then
        echo "error: Slurm is not installed, and there is no apt-get to install it with" >&2
        return 1
    fi
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null
}

# Whether the daemon of a pid file is alive.
runs() {
    [ -f "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null
}

free_port() {
    python3 -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"
}

write_configuration() {
    local host
    host=$(hostname -s)
    cat >slurm.conf <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
StateSaveLocation=$PWD/slurmctld
SlurmdSpoolDir=$PWD/slurmd
SlurmctldPidFile=$PWD/slurmctld.pid
SlurmdPidFile=$PWD/slurmd.pid
SlurmctldLogFile=$PWD/slurmctld.log
SlurmdLogFile=$PWD/slurmd.log
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits as long as a credential lasts: two minutes, unless told.
AuthInfo=socket=$PWD/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=0
KillWait=5
# Without accounting, a job that has ended is known only as long as the controller remembers it.
MinJobAge=3600
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
# Four tasks run at once, whatever the machine has.
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000
PartitionName=debug Nodes=$host Default=YES State=UP
CONF
}

start_munged() {
    [ -f munge.key ] || (umask 077 && head -c 1024 /dev/urandom >munge.key)
    # By force, because a folder that only its owner may enter is fine here: nobody else has jobs.
    munged --force --socket="$PWD/munge.socket" --key-file="$PWD/munge.key" --pid-file="$PWD/munged.pid" \
        --log-file="$PWD/munged.log" --seed-file="$PWD/munged.seed"
}

start() {
    mkdir -p "$1/slurmctld" "$1/slurmd"
    cd "$1"
    [ -f slurm.conf ] || write_configuration
    export SLURM_CONF=$PWD/slurm.conf
    runs munged.pid || start_munged
    runs slurmctld.pid || slurmctld
    runs slurmd.pid || slurmd
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --format=%t 2>/dev/null)" != idle ] || return 0
        sleep 0.5
    done
    echo "error: the node is not idle after 30 s; see $PWD/slurmctld.log and $PWD/slurmd.log" >&2
    return 1
}

stop() {
    local pid
    [ -f "$1/slurm.conf" ] || return 0
    cd "$1"
    export SLURM_CONF=$PWD/slurm.conf
    if runs slurmctld.pid; then
        scancel --user="$(id -un)"
        for _ in $(seq 40); do
            [ -n "$(squeue --noheader)" ] || break
            sleep 0.5
        done
    fi
    for daemon in slurmd slurmctld munged; do
        if runs $daemon.pid; then
            pid=$(cat $daemon.pid)
            kill "$pid"
            timeout 20 tail --pid="$pid" -f /dev/null
        fi
    done
}

case "${1:-}" in
install) install_packages ;;
start) start "$2" ;;
stop) stop "$2" ;;
*) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 2 ;;
esac
