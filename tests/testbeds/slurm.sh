#!/bin/bash
# slurm.sh - a real one-machine Slurm cluster with accounting for tests, on a Debian or Ubuntu host, as root.
#
#   slurm.sh DIR [start]      build DIR/root if missing, start everything (idempotent)
#   slurm.sh DIR build        only build
#   slurm.sh DIR stop         end only what `start` started (one pid namespace)
#   slurm.sh DIR status       is it up? (exit 0/3)
#   slurm.sh DIR exec CMD..   run CMD inside as root  (exec-op: as user op)
#   slurm.sh DIR conf [--clear] K=V ..  change slurm.conf until the next `conf` or start, and restart slurmctld
#                             (--clear: it forgets all jobs)
#   slurm.sh DIR cgroup on|off  memory is enforced by the kernel (cgroup v1) until `cgroup off`; exit 4: not on this machine
#   slurm.sh DIR ctld stop|start|freeze|thaw   slurmctld;  dbd stop|start: slurmdbd;  node NAME kill|start: a slurmd
#   slurm.sh DIR shells       accounts with other login shells (in a running bed): op-dash, op-ksh, op-zsh, op-csh, op-tcsh, op-fish,
#                             op-talk (prints), op-cd (changes folder), op-alias, op-read (reads its input), op-sftp (prints, no internal-sftp)
#   slurm.sh DIR purge        stop, then delete what was built
#
# Two nodes n1 and n2 (one slurmd each, many pretended CPUs), slurmdbd with MariaDB on a socket, and an SSH server, all
# in a chroot and in pid, mount, UTS and IPC namespaces of its own: no mount is left on the host, and ending the one
# namespace init ends every daemon, job and session of this bed and nothing else. Listens on 127.0.0.1 only.
# Environment: SLURM_SUITE=trixie (Slurm 24.11) or bookworm (22.05); SLURM_PORT=16817 (and the 3 above); SLURM_SSH_PORT=2223;
#   SLURM_CPUS=32 per node; SLURM_BIND="HOSTDIR:CHROOTDIR ..." extra bind mounts; SLURM_KEY=DIR/../op_key (made if missing)
set -euo pipefail
umask 022
[ $# -ge 1 ] || { sed -n '2,20p' "$0"; exit 2; }
DIR=$(realpath -m "$1"); MODE=${2:-start}; shift; [ $# -gt 0 ] && shift || true
mkdir -p "$DIR"; ROOT=$DIR/root; PIDFILE=$DIR/init.pid
SUITE=${SLURM_SUITE:-trixie}; PORT=${SLURM_PORT:-16817}; SSH_PORT=${SLURM_SSH_PORT:-2223}; CPUS=${SLURM_CPUS:-32}
KEY=${SLURM_KEY:-$(dirname "$DIR")/op_key}; BIND=${SLURM_BIND:-}
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
say() { echo "[slurmbed] $*" >&2; }
die() { say "$*"; exit 1; }
[ "$(id -u)" = 0 ] || die "run as root"

# PIDFILE holds "PID STARTTIME" of the namespace's init, so that a recycled pid is never signalled.
starttime() { awk '{sub(/^.*\) /,""); if ($1 != "Z") print $20}' "/proc/$1/stat" 2>/dev/null || true; }
init_pid() { local p t; [ -s "$PIDFILE" ] || return 1; read -r p t <"$PIDFILE"; [ -n "${t:-}" ] && [ "$(starttime "$p")" = "$t" ] && echo "$p"; }
inside() {
  local p; p=$(init_pid) || die "not running: $DIR"
  nsenter -t "$p" -p -m -u -i -r -w -- /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root "$@"
}
as_op() { inside setpriv --reuid=op --regid=op --init-groups env HOME=/home/op USER=op LOGNAME=op sh -c 'cd; exec "$@"' sh "$@"; }

build() {
  [ -e "$DIR/.built" ] && return
  command -v debootstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq debootstrap >/dev/null; }
  # the host's own Debian mirror where it has one, so that a site's mirror is honoured
  local mirror; mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null | grep -v '^#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1 | tr -d ' ' || true)
  if [ ! -x "$ROOT/usr/bin/apt-get" ] || [ -d "$ROOT/debootstrap" ]; then
    rm -rf --one-file-system "$ROOT"
    say "debootstrap $SUITE -> $ROOT"
    debootstrap --variant=minbase "$SUITE" "$ROOT" ${mirror:+"$mirror"} >"$DIR/debootstrap.log" 2>&1 ||
      { tail -n 5 "$DIR/debootstrap.log" >&2; die "debootstrap failed"; }
  fi
  rm -f "$ROOT/etc/resolv.conf"; cp -L /etc/resolv.conf "$ROOT/etc/resolv.conf" 2>/dev/null || true
  for f in /etc/apt/apt.conf.d/*proxy* /etc/apt/apt.conf; do [ -f "$f" ] && cp "$f" "$ROOT/etc/apt/apt.conf.d/90host-$(basename "$f")"; done || true
  printf '#!/bin/sh\nexit 101\n' >"$ROOT/usr/sbin/policy-rc.d"; chmod 755 "$ROOT/usr/sbin/policy-rc.d"
  local packages="slurmctld slurmd slurm-client slurmdbd munge mariadb-server openssh-server tini procps"
  [ "$SUITE" = bookworm ] || packages="$packages slurm-wlm-mysql-plugin"
  say "apt-get install $packages"
  unshare --mount --pid --fork --kill-child bash -c "
    mount --make-rprivate / && mount -t proc proc '$ROOT/proc' && mount -t tmpfs tmpfs '$ROOT/dev/shm' &&
    chroot '$ROOT' sh -c 'apt-get update -q &&
      apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--force-unsafe-io $packages'" >"$DIR/apt.log" 2>&1 ||
    { tail -n 20 "$DIR/apt.log" >&2; die "apt failed"; }
  touch "$DIR/.built"
}

configure() {
  local version major; version=$(chroot "$ROOT" dpkg-query -W -f '${Version}' slurm-client); major=${version%%.*}
  chroot "$ROOT" sh -c "id op >/dev/null 2>&1 || useradd -m -s /bin/bash op"
  chroot "$ROOT" usermod -p '*' op # "!" means locked: without PAM sshd refuses even a key
  [ -e "$KEY" ] || ssh-keygen -q -t ed25519 -N '' -C bed-op -f "$KEY"
  [ -e "$ROOT/etc/ssh/ssh_host_ed25519_key" ] || chroot "$ROOT" ssh-keygen -A >/dev/null
  chroot "$ROOT" install -d -m 700 -o op -g op /home/op/.ssh
  install -m 600 "$KEY.pub" "$ROOT/home/op/.ssh/authorized_keys"; chroot "$ROOT" chown op:op /home/op/.ssh/authorized_keys
  awk -v p="$SSH_PORT" '{print "[127.0.0.1]:" p " " $1 " " $2}' "$ROOT/etc/ssh/ssh_host_ed25519_key.pub" >"$DIR/known_hosts"
  [ -s "$ROOT/etc/munge/munge.key" ] || head -c 1024 /dev/urandom >"$ROOT/etc/munge/munge.key"
  chroot "$ROOT" sh -c '
    chown -R munge:munge /etc/munge /var/lib/munge /var/log/munge; chmod 400 /etc/munge/munge.key
    install -d -o munge -g munge -m 755 /run/munge; install -d -o mysql -g mysql -m 755 /run/mysqld
    install -d -o slurm -g slurm -m 755 /var/spool/slurmctld /var/log/slurm /run/slurm /etc/slurm; mkdir -p /run/sshd'
  local b; for b in $BIND; do mkdir -p "$ROOT${b#*:}"; done
  cat >"$ROOT/etc/slurm/slurmdbd.conf" <<E
AuthType=auth/munge
DbdHost=bed
DbdAddr=127.0.0.1
DbdPort=$((PORT + 2))
SlurmUser=slurm
LogFile=/var/log/slurm/slurmdbd.log
PidFile=/run/slurm/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
E
  chroot "$ROOT" sh -c 'chown slurm:slurm /etc/slurm/slurmdbd.conf; chmod 600 /etc/slurm/slurmdbd.conf'
  if [ "$major" -ge 23 ]; then echo "CgroupPlugin=disabled"; else printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n'; fi >"$ROOT/etc/slurm/cgroup.conf.base"
  cp "$ROOT/etc/slurm/cgroup.conf.base" "$ROOT/etc/slurm/cgroup.conf"
  # Intervals are short, so that a test waits seconds; all else is as sites have it.
  cat >"$ROOT/etc/slurm/slurm.conf.base" <<E
ClusterName=bed
SlurmctldHost=bed(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd-%n
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd-%n.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd-%n.log
SlurmctldDebug=info
MailProg=/bin/true
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=200000,batch_sched_delay=0,sched_max_job_start=400,default_queue_depth=1000,bf_max_job_test=1000
SlurmdParameters=config_overrides
SlurmctldTimeout=30
MessageTimeout=4
SlurmdTimeout=15
InactiveLimit=0
KillWait=2
OverTimeLimit=0
MinJobAge=300
MaxJobCount=60000
MaxArraySize=20001
JobRequeue=1
RequeueExit=77
PriorityType=priority/basic
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 2))
NodeName=n1 NodeHostname=bed NodeAddr=127.0.0.1 Port=$((PORT + 1)) CPUs=$CPUS RealMemory=64000 State=UNKNOWN
NodeName=n2 NodeHostname=bed NodeAddr=127.0.0.1 Port=$((PORT + 3)) CPUs=$CPUS RealMemory=64000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
PartitionName=one Nodes=n2 MaxTime=10 DefaultTime=1 State=UP
PartitionName=cheap Nodes=n2 MaxTime=10 DefaultTime=1 PreemptMode=REQUEUE State=UP
PartitionName=urgent Nodes=n2 MaxTime=10 DefaultTime=1 PriorityTier=10 State=UP
E
  cp "$ROOT/etc/slurm/slurm.conf.base" "$ROOT/etc/slurm/slurm.conf"
  printf '127.0.0.1 localhost bed\n' >"$ROOT/etc/hosts"
  cat >"$ROOT/etc/ssh/sshd_config.testbed" <<E
Port $SSH_PORT
ListenAddress 127.0.0.1
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PubkeyAuthentication yes
PermitRootLogin no
UsePAM no
AllowUsers op op-*
MaxStartups 100
Subsystem sftp internal-sftp
Match User op-sftp
  ForceCommand case "\$SSH_ORIGINAL_COMMAND" in internal-sftp*) exec /usr/lib/openssh/sftp-server;; *) eval "\$SSH_ORIGINAL_COMMAND";; esac
E
  cat >"$ROOT/usr/local/sbin/bed-init" <<'E'
#!/bin/bash
# child of the bed's pid 1, inside the namespaces; each daemon logs to /var/log/bed
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /var/log/bed; rm -f /run/bed.ready /run/bed.failed
tryfor() { local n=$1; shift; for ((i=0;i<n*10;i++)); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done; echo "timeout: $*" >/run/bed.failed; return 1; }
rm -f /run/munge/* /run/slurm/*.pid /run/mysqld/*.pid /run/mysqld/*.sock
setpriv --reuid=munge --regid=munge --clear-groups munged --force >>/var/log/bed/munged 2>&1
tryfor 20 munge -n || exit
[ -d /var/lib/mysql/mysql ] || mariadb-install-db --user=mysql --datadir=/var/lib/mysql >>/var/log/bed/mariadb 2>&1
setsid mariadbd --no-defaults --user=mysql --datadir=/var/lib/mysql --skip-networking --socket=/run/mysqld/mysqld.sock --pid-file=/run/mysqld/mysqld.pid \
  --innodb-buffer-pool-size=128M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 --max-allowed-packet=64M >>/var/log/bed/mariadb 2>&1 &
tryfor 60 mariadb-admin --no-defaults -S /run/mysqld/mysqld.sock ping || exit
mariadb --no-defaults -S /run/mysqld/mysqld.sock -e "CREATE DATABASE IF NOT EXISTS slurm_acct_db; CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm'; GRANT ALL ON slurm_acct_db.* TO slurm@localhost;" >>/var/log/bed/mariadb 2>&1
setsid slurmdbd -D >>/var/log/bed/slurmdbd 2>&1 &
tryfor 60 sacctmgr -n list cluster || exit
setsid slurmctld -D -i >>/var/log/bed/slurmctld 2>&1 &
tryfor 60 sh -c 'scontrol ping | grep -q UP' || exit
tryfor 60 sh -c 'sacctmgr -n -P list cluster format=cluster | grep -q bed' || exit
sacctmgr -n -P list user op format=user,account withassoc | grep -q lsst || {
  sacctmgr -i add account lsst cluster=bed; sacctmgr -i add user op account=lsst cluster=bed; } >>/var/log/bed/sacctmgr 2>&1
for n in n1 n2; do mkdir -p /var/spool/slurmd-$n; setsid slurmd -D -N $n >>/var/log/bed/slurmd-$n 2>&1 & done
/usr/sbin/sshd -f /etc/ssh/sshd_config.testbed -E /var/log/bed/sshd
idle() { test "$(sinfo -h -N -t idle,mix,alloc -o %N | sort -u | wc -l)" = 2; }
tryfor 15 idle || { rm -f /run/bed.failed; scontrol update nodename=n1,n2 state=resume; tryfor 30 idle; } || exit
touch /run/bed.ready
E
  chmod 755 "$ROOT/usr/local/sbin/bed-init"
}

# The same person's work by other means: each account has a shell of its own, or startup files that surprise.
shells() {
  if [ ! -x "$ROOT/usr/bin/fish" ]; then
    inside sh -c 'apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
      -o Dpkg::Options::=--force-unsafe-io dash ksh zsh csh tcsh fish' >"$DIR/shells.log" 2>&1 ||
      { tail -n 20 "$DIR/shells.log" >&2; die "the shells could not be installed"; }
  fi
  local name shell
  for name in dash ksh zsh csh tcsh fish talk cd alias read sftp; do
    case $name in talk|cd|alias|read|sftp) shell=/bin/bash;; csh) shell=/bin/bsd-csh;; *) shell=$(inside sh -c "command -v $name");; esac
    inside sh -c "id op-$name >/dev/null 2>&1 || useradd -m -s $shell op-$name; usermod -s $shell -p '*' op-$name
      install -d -m 700 -o op-$name -g op-$name /home/op-$name/.ssh
      install -m 600 -o op-$name -g op-$name /home/op/.ssh/authorized_keys /home/op-$name/.ssh/authorized_keys
      sacctmgr -n -P list user op-$name format=user | grep -q . || sacctmgr -i add user op-$name account=lsst cluster=bed >/dev/null"
  done
  local talks='echo "*** Welcome to Cluster ***"; printf "no line end"; echo "stty: no terminal" >&2'
  startup() { printf '%s\n' "$2" >"$ROOT/home/op-$1/${3:-.bashrc}"; }
  startup talk "$talks"; startup sftp "$talks"
  startup cd 'cd /usr/lib; cd() { builtin cd /usr/share; }; export -f cd'
  startup alias 'shopt -s expand_aliases; alias ls="ls -l --color" cat="cat -n" rm="rm -i" sh="echo no" dd="echo no"; set -o noclobber'
  startup read 'read -t 1 -n 4 x; umask 002'
  startup tcsh "echo '*** Welcome ***'; alias rm 'rm -i'; set noclobber; umask 002" .cshrc
  startup csh "echo '*** Welcome ***'" .cshrc
  startup zsh "echo '*** Welcome ***'; setopt NO_CLOBBER; alias -g dd='no'" .zshenv
  mkdir -p "$ROOT/home/op-fish/.config/fish"
  startup fish "echo '*** Welcome ***'; function dd; echo no; end" .config/fish/config.fish
}

port_free() { python3 - "$@" <<'E'
import socket, sys
for port in sys.argv[1:]:
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try: s.bind(("127.0.0.1", int(port)))
    except OSError: sys.exit(f"port 127.0.0.1:{port} is taken")
    s.close()
E
}

start() {
  if init_pid >/dev/null; then say "already running"; wait_up; return; fi
  build; configure
  port_free "$SSH_PORT" "$PORT" $((PORT + 1)) $((PORT + 2)) $((PORT + 3)) || die "set SLURM_PORT and SLURM_SSH_PORT"
  rm -f "$ROOT/run/bed.ready" "$ROOT/run/bed.failed"
  # tini is pid 1 of the new pid namespace
  setsid unshare --pid --fork --mount --uts --ipc --kill-child=KILL bash -c "
    mount --make-rprivate / && mount -t proc proc '$ROOT/proc' && mount -t sysfs -o ro sysfs '$ROOT/sys' &&
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts '$ROOT/dev/pts' && mount -t tmpfs -o mode=1777 tmpfs '$ROOT/dev/shm' || exit 1
    if [ -d /sys/fs/cgroup/memory ]; then mount --rbind /sys/fs/cgroup '$ROOT/sys/fs/cgroup' || exit 1; fi
    for b in $BIND; do mount --bind \"\${b%%:*}\" '$ROOT'\"\${b#*:}\" || exit 1; done
    hostname bed
    exec chroot '$ROOT' /usr/bin/tini -- /bin/bash -c 'bed-init; exec sleep infinity'" >"$DIR/init.log" 2>&1 </dev/null &
  local up=$! p=""; disown
  for _ in $(seq 50); do p=$(cat "/proc/$up/task/$up/children" 2>/dev/null || true); p=${p%% *}; [ -n "$p" ] && break; sleep 0.1; done
  [ -n "$p" ] || die "the namespaces did not come up: $(cat "$DIR/init.log")"
  echo "$p $(starttime "$p")" >"$PIDFILE"
  wait_up
}

wait_up() {
  for _ in $(seq 1800); do
    [ -e "$ROOT/run/bed.ready" ] && return 0
    [ -e "$ROOT/run/bed.failed" ] && die "did not come up: $(cat "$ROOT/run/bed.failed"); logs in $ROOT/var/log/bed and slurm"
    init_pid >/dev/null || die "the bed died at start: $(cat "$DIR/init.log")"
    sleep 0.1
  done
  die "the cluster did not come up in 180 s"
}

stop() {
  local p; p=$(init_pid) || { say "not running"; rm -f "$PIDFILE"; return 0; }
  rm -f "$ROOT/run/bed.ready"
  # in order first, so that state is saved and the database closed; then the namespace's init, and with it everything
  inside bash -c '
    for f in slurmctld slurmdbd; do [ -s /run/slurm/$f.pid ] && { kill -CONT $(cat /run/slurm/$f.pid); kill $(cat /run/slurm/$f.pid); }; done
    for ((i=0;i<50;i++)); do pgrep -x "slurmctld|slurmdbd" >/dev/null || break; sleep 0.1; done
    timeout 30 mariadb-admin --no-defaults -S /run/mysqld/mysqld.sock shutdown
    for ((i=0;i<50;i++)); do pgrep -x mariadbd >/dev/null || break; sleep 0.1; done' >/dev/null 2>&1 || true
  kill -KILL "$p" 2>/dev/null || true
  for _ in $(seq 50); do init_pid >/dev/null || break; sleep 0.1; done
  rm -f "$PIDFILE"; say "stopped"
}

wait_ctld() { # and for its nodes
  inside bash -c 'for ((i=0;i<300;i++)); do
    scontrol ping 2>/dev/null | grep -q UP && test "$(sinfo -h -N -p main -o "%N %t" 2>/dev/null | grep -cvE "\*|down|unk")" = 2 && exit 0
    sleep 0.1
  done; exit 1' || die "slurmctld does not answer, or has no nodes"
}
ctld() {
  case $1 in
    stop) inside bash -c 'p=$(cat /run/slurm/slurmctld.pid); kill $p; for ((i=0;i<200;i++)); do kill -0 $p 2>/dev/null || exit 0; sleep 0.1; done; exit 1';;
    start) inside bash -c "setsid slurmctld -D ${2:-} >>/var/log/bed/slurmctld 2>&1 </dev/null &"; wait_ctld;;
    freeze) inside bash -c 'kill -STOP $(cat /run/slurm/slurmctld.pid)';;
    thaw) inside bash -c 'kill -CONT $(cat /run/slurm/slurmctld.pid)';;
    *) die "unknown: ctld $1";;
  esac
}
conf() {
  local clear=; [ "${1:-}" = --clear ] && { clear=-c; shift; }
  cp "$ROOT/etc/slurm/slurm.conf.base" "$ROOT/etc/slurm/slurm.conf"
  change "$@"
  ctld stop; ctld start "$clear"
}
change() {
  local kv; for kv in "$@"; do sed -i "/^${kv%%=*}=/d" "$ROOT/etc/slurm/slurm.conf"; echo "$kv" >>"$ROOT/etc/slurm/slurm.conf"; done
}

node() {
  case $2 in
    kill) inside bash -c "kill -KILL \$(cat /run/slurm/slurmd-$1.pid)";;
    start) inside bash -c "setsid slurmd -D -N $1 >>/var/log/bed/slurmd-$1 2>&1 </dev/null & for ((i=0;i<300;i++)); do sinfo -h -N -n $1 -t idle,mix,alloc -o %N | grep -q $1 && exit 0; sleep 0.1; done; exit 1";;
    *) die "unknown: node $2";;
  esac
}
cgroup() { # the nodes' daemons read it when they start
  [ -d /sys/fs/cgroup/memory ] || { say "no cgroup v1 with memory here"; exit 4; }
  cp "$ROOT/etc/slurm/cgroup.conf.base" "$ROOT/etc/slurm/cgroup.conf"
  local changes=()
  if [ "$1" = on ]; then
    printf 'CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedRAMSpace=100\n' >"$ROOT/etc/slurm/cgroup.conf"
    changes=(ProctrackType=proctrack/cgroup TaskPlugin=task/cgroup JobAcctGatherParams=NoOverMemoryKill)
  fi
  local n; for n in n1 n2; do inside bash -c "p=\$(cat /run/slurm/slurmd-$n.pid); kill \$p; for ((i=0;i<100;i++)); do kill -0 \$p 2>/dev/null || exit 0; sleep 0.1; done"; done
  [ "$1" = on ] || find /sys/fs/cgroup -mindepth 2 -depth -type d -path '*/slurm*' -exec rmdir {} + 2>/dev/null || true
  cp "$ROOT/etc/slurm/slurm.conf.base" "$ROOT/etc/slurm/slurm.conf"
  change "${changes[@]}"
  ctld stop; inside bash -c "setsid slurmctld -D >>/var/log/bed/slurmctld 2>&1 </dev/null &"
  for n in n1 n2; do node $n start; done
  wait_ctld
}

case "$MODE" in
  build) build;;
  start) start;;
  stop) stop;;
  status) if p=$(init_pid); then say "running (pid $p)"; inside sh -c 'scontrol ping; sinfo'; else say "not running"; exit 3; fi;;
  exec) inside "$@";;
  exec-op) as_op "$@";;
  shells) shells;;
  conf) conf "$@";;
  cgroup) cgroup "$@";;
  ctld) ctld "$@";;
  dbd)
    case $1 in
      stop) inside bash -c 'p=$(cat /run/slurm/slurmdbd.pid); kill $p; for ((i=0;i<200;i++)); do kill -0 $p 2>/dev/null || exit 0; sleep 0.1; done; exit 1';;
      start) inside bash -c 'setsid slurmdbd -D >>/var/log/bed/slurmdbd 2>&1 </dev/null & for ((i=0;i<200;i++)); do sacctmgr -n list cluster >/dev/null 2>&1 && exit 0; sleep 0.1; done; exit 1';;
    esac;;
  node) node "$@";;
  purge) stop; rm -rf --one-file-system "$ROOT"; rm -f "$DIR"/{.built,known_hosts,init.log,debootstrap.log,apt.log};;
  *) die "unknown mode $MODE";;
esac
