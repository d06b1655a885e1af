#!/bin/bash
# A real SLURM of one node on this machine, started by hand: cluster.sh start|stop FOLDER. Needs Debian's slurm-wlm and munge, and root.
# The node claims more cores and memory than there may be, and two GPUs, so that jobs of the study's profile are granted what they ask for.
set -e
folder=$(realpath -m "$2"); host=$(hostname -s); port=$((20000 + $$ % 20000))
conf=/etc/slurm/slurm.conf
stop() { [ "$(readlink $conf)" = "$folder/slurm.conf" ] && rm -f $conf /etc/slurm/gres.conf; for f in "$folder"/*.pid; do [ -f "$f" ] && kill "$(cat "$f")" 2>/dev/null; done; true; }
[ "$1" = stop ] && { stop; exit 0; }
[ -e $conf ] && { echo "$conf is there: this machine has a SLURM of its own." >&2; exit 1; }
mkdir -p /etc/slurm "$folder"/{state,spool}; chmod 755 "$folder"
cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
ReturnToService=2
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=200000 Gres=gpu:2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
CONF
printf "NodeName=$host Name=gpu File=%s\n" /dev/null /dev/zero > "$folder/gres.conf"
ln -sf "$folder"/{slurm,gres}.conf /etc/slurm/     # where jobs look for it
(umask 077; head -c 1024 /dev/urandom > "$folder/munge.key")
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
slurmctld
slurmd
for _ in $(seq 60); do [ "$(sinfo -h -o %t 2>/dev/null)" = idle ] && exit 0; sleep 1; done
echo "The node did not come up; see $folder/*.log" >&2; stop; exit 1
