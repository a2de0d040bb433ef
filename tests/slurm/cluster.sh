#!/usr/bin/env bash
# A real SLURM on this machine for tests: two nodes of one CPU, one pretend GPU, accounting in a
# database. Debian packages, root, no systemd; everything listens on loopback only.
#
#   cluster.sh start    installs what is missing (exit 3: cannot), writes /etc/slurm, starts all daemons
#   cluster.sh stop     stops them and removes what they wrote
#
# It refuses to touch a machine that has a SLURM configuration of its own.
set -euo pipefail
ETC=/etc/slurm # job steps strip SLURM_CONF from the environment: no other place works
HOME_DIR=/var/lib/iaunet-slurm-test
MARK="# written by tests/slurm/cluster.sh"
NODES=(node1 node2)
NODE_MB=6000
PACKAGES=(slurm-wlm slurmdbd munge mariadb-server)

fail() {
  echo "cluster.sh: $*" >&2
  exit 1
}

install_packages() {
  local missing=()
  for package in "${PACKAGES[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  # Daemons would be started by their packages, with settings that are not ours.
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  export DEBIAN_FRONTEND=noninteractive
  local apt=(apt-get -o DPkg::Lock::Timeout=300 -qq)
  if ! "${apt[@]}" update || ! "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null; then
    echo "cluster.sh: cannot install ${missing[*]}" >&2
    exit 3
  fi
}

write_configuration() {
  if [ -e "$ETC/slurm.conf" ] && ! grep -qF "$MARK" "$ETC/slurm.conf"; then
    fail "$ETC/slurm.conf is there and not of this test"
  fi
  mkdir -p "$ETC" "$HOME_DIR"/{run,log,ctld}
  local host
  host=$(hostname -s)
  cat >"$ETC/slurm.conf" <<CONF
$MARK
ClusterName=iaunet-test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPidFile=$HOME_DIR/run/slurmctld.pid
SlurmdPidFile=$HOME_DIR/run/%n.pid
SlurmdSpoolDir=$HOME_DIR/%n
StateSaveLocation=$HOME_DIR/ctld
SlurmctldLogFile=$HOME_DIR/log/slurmctld.log
SlurmdLogFile=$HOME_DIR/log/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SchedulerParameters=bf_interval=1,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
KillWait=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStorageTRES=gres/gpu
NodeName=DEFAULT CPUs=1 RealMemory=$NODE_MB State=UNKNOWN
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 Gres=gpu:pretend:1
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 DefaultTime=10 State=UP
CONF
  # A GPU is a device file; Count= alone is refused.
  rm -f "$HOME_DIR/gpu0"
  mknod "$HOME_DIR/gpu0" c 1 3
  echo "NodeName=node1 Name=gpu Type=pretend File=$HOME_DIR/gpu0" >"$ETC/gres.conf"
  printf 'CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n' >"$ETC/cgroup.conf"
  cat >"$ETC/slurmdbd.conf" <<CONF
$MARK
DbdHost=localhost
DbdAddr=127.0.0.1
SlurmUser=root
LogFile=$HOME_DIR/log/slurmdbd.log
PidFile=$HOME_DIR/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=33306
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
  chmod 600 "$ETC/slurmdbd.conf"
}

# until_ok SECONDS COMMAND...: repeat a command until it succeeds
until_ok() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "gave up on: $*"
    sleep 0.2
  done
}

start_munge() {
  install -d -o munge -g munge -m 0755 /run/munge
  install -d -o munge -g munge -m 0700 /var/log/munge /var/lib/munge
  if [ ! -s /etc/munge/munge.key ]; then
    dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none
    chown munge:munge /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
  fi
  munge -n >/dev/null 2>&1 || runuser -u munge -- /usr/sbin/munged
  until_ok 10 munge -n
}

sql() {
  mariadb --no-defaults -S "$HOME_DIR/run/mysql/socket" -uroot -e "$1"
}

start_database() {
  local data=$HOME_DIR/mysql
  install -d -o mysql -g mysql "$HOME_DIR/run/mysql" "$data"
  if [ ! -d "$data/mysql" ]; then
    mariadb-install-db --no-defaults --user=mysql --datadir="$data" \
      --auth-root-authentication-method=normal --skip-test-db >/dev/null
  fi
  setsid mariadbd --no-defaults --user=mysql --datadir="$data" --bind-address=127.0.0.1 \
    --port=33306 --socket="$HOME_DIR/run/mysql/socket" --pid-file="$HOME_DIR/run/mysql/pid" \
    --innodb-buffer-pool-size=128M --innodb-lock-wait-timeout=900 --innodb-log-file-size=64M \
    >"$HOME_DIR/log/mariadb.log" 2>&1 </dev/null &
  until_ok 60 sql "SELECT 1"
  sql "CREATE DATABASE IF NOT EXISTS slurm_acct_db"
  for host in localhost 127.0.0.1; do
    sql "CREATE USER IF NOT EXISTS 'slurm'@'$host' IDENTIFIED BY 'slurm'"
    sql "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'$host'"
  done
  slurmdbd
  until_ok 60 sacctmgr -n list cluster
  sacctmgr -i add cluster iaunet-test >/dev/null 2>&1 || true
  sacctmgr -i add account test cluster=iaunet-test >/dev/null 2>&1 || true
  sacctmgr -i add user root account=test defaultaccount=test >/dev/null 2>&1 || true
}

all_nodes_are_up() {
  [ "$(sinfo -h -N -o "%N %T" | grep -cE " (idle|mixed|allocated)$")" -eq ${#NODES[@]} ]
}

start() {
  [ "$(id -u)" -eq 0 ] || fail "needs root"
  install_packages
  write_configuration
  start_munge
  start_database
  slurmctld
  for node in "${NODES[@]}"; do
    mkdir -p "$HOME_DIR/$node"
    slurmd -N "$node"
  done
  until_ok 60 all_nodes_are_up
  sinfo -N -o "%N %T %c %m %G"
}

stop() {
  scancel -u root >/dev/null 2>&1 || true
  for file in "$HOME_DIR"/run/{node1,node2,slurmctld,slurmdbd}.pid "$HOME_DIR/run/mysql/pid" \
    /run/munge/munged.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.2
    done
    kill -9 "$pid" 2>/dev/null || true
  done
  if grep -qsF "$MARK" "$ETC/slurm.conf"; then
    rm -rf "$HOME_DIR" "$ETC"/{slurm,gres,cgroup,slurmdbd}.conf
  fi
}

case "${1:-}" in
start) start ;;
stop) stop ;;
*) fail "usage: cluster.sh start|stop" ;;
esac
