"""What runs on the submit host as one piece: shell scripts that submit and restart once, whatever breaks in between.

Each takes the lock of the run's folder, writes its intent before the effect and the id after it. A second call finds
the id; if it finds only the intent it says so (`IN_DOUBT`), and the pool must be asked by token. The intent goes again
only if condor_submit did not run, or said on stderr why nothing was submitted.
"""

from __future__ import annotations

__all__ = ["IN_DOUBT", "NOTHING_TO_RESTART", "RESTART", "SUBMIT", "UNPACK"]

IN_DOUBT = 75
NOTHING_TO_RESTART = 66

_ONCE = r"""
set -eu
cd "$1"
token=$2; dag=$3; again=$4
exec 9>>.bpsd.lock
flock -w 20 9
if [ -s ".bpsd.$token.id" ]; then cat ".bpsd.$token.id"; exit 0; fi
if [ -e ".bpsd.$token.intent" ] && [ "$again" != again ]; then exit 75; fi
submit() {
  : >".bpsd.$token.intent"
  code=0
  condor_submit -terse -append "My.bps_attempt_token = \"$token\"" "$dag.condor.sub" 9>&- >".bpsd.$token.said" \
    2>".bpsd.$token.err" || code=$?
  cat ".bpsd.$token.err" >&2
  if [ "$code" -ne 0 ]; then
    case "$code" in
      126 | 127) rm -f ".bpsd.$token.intent" ;; # it did not run
      *) if [ "$code" -lt 126 ] && grep '^ERROR: ' ".bpsd.$token.err" | grep -qv 'Failed to commit'; then
        rm -f ".bpsd.$token.intent"
      fi ;;
    esac
    exit "$code"
  fi
  sed -n 's/^\([0-9]*\)\.0 - .*/\1/p' ".bpsd.$token.said" >".bpsd.$token.id.part"
  sync ".bpsd.$token.id.part" 2>/dev/null || true
  mv ".bpsd.$token.id.part" ".bpsd.$token.id"
  cat ".bpsd.$token.id"
}
"""

SUBMIT = (
    _ONCE
    + r"""
[ -e "$dag.condor.sub" ] || condor_submit_dag -no_submit -f -AutoRescue 1 -batch-name "$5" "$dag" 9>&- >&2
submit
"""
)
"""Arguments: folder, attempt token, DAG file, ``once`` or ``again``, batch name. Prints the cluster id."""

RESTART = (
    _ONCE
    + r"""
newest=$(ls -1 "$dag".rescue[0-9][0-9][0-9] 2>/dev/null | sort | tail -n 1)
[ -n "$newest" ] || exit 66
for status in subdags/*/*.status.txt; do
  [ -e "$status" ] || continue
  if [ "$(cat "$status")" != 0 ]; then
    node=$(basename "$(dirname "$status")")
    sed -i "/^DONE $node\$/d" "$newest"
  fi
done
if ! [ -e ".bpsd.$token.intent" ]; then
  number=1
  while [ -e "$(printf 'backups/%03d' "$number")" ]; do number=$((number + 1)); done
  backup=$(printf 'backups/%03d' "$number")
  mkdir -p "$backup"
  for file in *.info.* *.dag.metrics *.dag.nodes.log *.node_status *.jobstate.log wms_*.dag.post.out \
      wms_*.status.txt subdags/*/*.dag.nodes.log subdags/*/*.status.txt subdags/*/*.dag.metrics; do
    if [ -e "$file" ]; then
      mkdir -p "$backup/$(dirname "$file")"
      mv "$file" "$backup/$file"
    fi
  done
fi
submit
"""
)
"""Arguments: folder, attempt token, DAG file, ``once`` or ``again``. Prints the cluster id."""

UNPACK = r"""
set -eu
root=$1; name=$2
[ -e "$root/$name/run.dag" ] && exit 0
mkdir -p "$root"
half=$(mktemp -d "$root/.$name.XXXXXX")
trap 'rm -rf "$half"' EXIT
chmod 755 "$half"
tar -xf - -C "$half"
[ -e "$half/run.dag" ] || { echo "the connection broke: the files of the run came in part" >&2; exit 1; }
mv -T "$half" "$root/$name" 2>/dev/null || [ -e "$root/$name/run.dag" ]
"""
"""Arguments: root, the run's folder in it; a tar archive on stdin, of which the DAG is the last. The folder is whole or
is not there: an archive that breaks off between two files is one to tar.
"""
