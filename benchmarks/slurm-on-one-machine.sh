#!/usr/bin/env bash
# A real Slurm with one node on this machine, to try the benchmark's cluster path. Debian, as root.
#   slurm-on-one-machine.sh start | stop
set -euo pipefail

start() {
  if ! command -v slurmctld >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq slurm-wlm munge >/dev/null
  fi
  local name memory
  name=$(hostname -s)
  # Two thirds of the memory, in MB, as slurmd wants a number below what there is.
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 2 / 3)}' /proc/meminfo)
  mkdir -p /etc/slurm /var/spool/slurmctld /var/spool/slurmd /var/log/slurm /run/munge
  chown munge /run/munge
  cat >/etc/slurm/slurm.conf <<END
ClusterName=one
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
  runuser -u munge -- /usr/sbin/munged
  sleep 1
  slurmctld
  slurmd
  for _ in $(seq 30); do
    sinfo --noheader --format %t 2>/dev/null | grep -q idle && break
    sleep 1
  done
  sinfo
}

stop() {
  for file in /run/slurmd.pid /run/slurmctld.pid /run/munge/munged.pid; do
    if [ -f "$file" ]; then kill "$(cat "$file")" || true; fi
  done
}

case "${1:-}" in
start) start ;;
stop) stop ;;
*)
  sed -n 2,3p "$0"
  exit 2
  ;;
esac
