#!/usr/bin/env bash
# prometheus.sh - a real Prometheus, its promtool and a node_exporter, for tests.
#
#   prometheus.sh ROOT build   fetch Debian's packages and unpack their programs into ROOT (20 MB to fetch)
#
# Unpacked, not installed: the packages would start services of their own, and the pages of the server's web interface
# would bring thirty more. Needs no root.
set -euo pipefail
[ $# -eq 2 ] && [ "$2" = build ] || { sed -n '2,7p' "$0"; exit 2; }
root=$(realpath -m "$1")
packages=(prometheus prometheus-node-exporter)
programs=(prometheus promtool prometheus-node-exporter)
say() { echo "[prometheus bed] $*" >&2; }

complete() {
    local program
    for program in "${programs[@]}"; do [ -x "$root/$program" ] || return 1; done
}
complete && exit 0

say "building $root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fetch() { apt-get -qq -o APT::Sandbox::User="$(id -un)" download "${packages[@]}"; }
fetch 2>fetch.log || { apt-get -qq update >/dev/null || true; fetch 2>fetch.log; } || { cat fetch.log >&2; say "cannot be fetched"; exit 1; }
for package in *.deb; do dpkg-deb --extract "$package" unpacked; done
mkdir -p "$root"
for program in "${programs[@]}"; do install -m 0755 "unpacked/usr/bin/$program" "$root/$program"; done
