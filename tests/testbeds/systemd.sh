#!/usr/bin/env bash
# systemd.sh - a machine of its own with a real systemd, for tests; as root.
#
#   systemd.sh ROOT build PYTHON   make the tree (mmdebstrap: half a minute), with what the wheel of bpsd depends on
#   systemd.sh ROOT start          boot it (idempotent); prints the pid of its init
#   systemd.sh ROOT exec CMD..     run CMD inside as root
#   systemd.sh ROOT stop           power it off
#
# Debian 12: its systemd 252 also starts where the host has control groups of version 1, newer ones do not. The machine
# has process, mount, IPC and host name spaces of its own and shares the network. PYTHON is one with pip that can
# download (the tree has no way out).
set -euo pipefail
umask 022
[ $# -ge 2 ] || { sed -n '2,11p' "$0"; exit 2; }
root=$(realpath -m "$1")
mode=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
base=$(dirname "$root")
name=$(basename "$root")
pid_file=$base/$name.pid
log=$base/$name.log
say() { echo "[systemd bed] $*" >&2; }
die() { say "$*"; exit 1; }
[ "$(id -u)" = 0 ] || die "run as root"
case "$root" in / | /bin* | /usr* | /etc* | /var | /home | /root) die "refusing to work in $root" ;; esac

# The pid file holds "PID STARTTIME" of systemd-nspawn, so that a pid that was given away again is never taken for it.
start_time() { awk '{ sub(/^.*\) /, ""); if ($1 != "Z") print $20 }' "/proc/$1/stat" 2>/dev/null || true; }
nspawn_pid() {
    local pid time
    [ -s "$pid_file" ] || return 1
    read -r pid time <"$pid_file"
    [ -n "${time:-}" ] && [ "$(start_time "$pid")" = "$time" ] && echo "$pid"
}
init_pid() {
    local pid init
    pid=$(nspawn_pid) || return 1
    init=$(awk '{ print $1 }' "/proc/$pid/task/$pid/children" 2>/dev/null) || return 1
    case "$init" in '' | *[!0-9]*) return 1 ;; esac # an empty one would have nsenter run things on the host
    echo "$init"
}
inside() {
    local init
    init=$(init_pid) || die "not running: $root"
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        nsenter -t "$init" -m -p -u -i -- "$@"
}

needs() { # what the wheel depends on
    "$1" -c 'import sys, tomllib; print(*tomllib.load(sys.stdin.buffer)["project"]["dependencies"], sep="\n")' \
        <"$here/../../pyproject.toml"
}

build() {
    local python=$1 stamp
    stamp=$({ needs "$python"; cat "$here/../../constraints.txt"; declare -f build; } | sha256sum)
    [ "$(cat "$root/.built" 2>/dev/null)" = "$stamp" ] && return 0
    [ -z "$(init_pid || true)" ] || stop
    rm -rf --one-file-system "$root"
    mkdir -p "$base"
    say "building $root"
    mmdebstrap --mode=root --variant=minbase \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --include=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,polkitd,python3,python3-venv \
        bookworm "$root" >"$base/$name.build.log" 2>&1 || { tail -n 10 "$base/$name.build.log" >&2; die "mmdebstrap failed"; }
    mkdir "$root/opt/wheels"
    needs "$python" | xargs "$python" -m pip download -qq --disable-pip-version-check --python-version 3.11 \
        --only-binary :all: --constraint "$here/../../constraints.txt" --dest "$root/opt/wheels"
    chroot "$root" python3 -m venv /opt/bpsd
    chroot "$root" sh -c '/opt/bpsd/bin/pip install -qq --disable-pip-version-check --no-index --no-deps /opt/wheels/*.whl'
    for person in alice bob olga; do chroot "$root" useradd -m -s /bin/bash "$person"; done
    chroot "$root" groupadd operators
    chroot "$root" usermod -aG operators olga
    echo bpsd-bed >"$root/etc/hostname"
    echo "127.0.0.1 localhost bpsd-bed" >"$root/etc/hosts"
    : >"$root/etc/machine-id"
    echo "$stamp" >"$root/.built"
}

start() {
    if [ -z "$(init_pid || true)" ]; then
        [ -s "$root/.built" ] || die "not built: $root"
        setsid systemd-nspawn --quiet --register=no --keep-unit --link-journal=no --resolv-conf=off --timezone=off \
            --console=pipe -D "$root" -b </dev/null >"$log" 2>&1 &
        echo "$! $(start_time $!)" >"$pid_file"
        disown
    fi
    local state
    for _ in $(seq 1 240); do
        nspawn_pid >/dev/null || { tail -n 20 "$log" >&2; die "it died at start"; }
        state=$( (inside systemctl is-system-running) 2>/dev/null || true) # a shell of its own: "inside" may exit
        case "$state" in running | degraded) init_pid; return 0 ;; esac
        sleep 0.25
    done
    tail -n 20 "$log" >&2
    die "it did not come up within a minute (${state:-no answer})"
}

stop() {
    local pid
    pid=$(nspawn_pid) || { rm -f "$pid_file"; return 0; }
    (inside systemctl poweroff) >/dev/null 2>&1 || true
    for _ in $(seq 1 120); do
        nspawn_pid >/dev/null || { rm -f "$pid_file"; return 0; }
        sleep 0.25
    done
    say "it did not power off: ended"
    kill -KILL "$pid"
    rm -f "$pid_file"
}

case "$mode" in
build) build "$1" ;;
start) start ;;
exec) inside "$@" ;;
stop) stop ;;
*) die "unknown mode $mode" ;;
esac
