"""What runs on the submit host and on the nodes: POSIX shell, nothing else is needed there.

A run's folder in the work folder::

    wrapper.sh             what Slurm runs for each job
    chunks/N.jobs          the jobs of chunk N, an entry for each index (`bpsd_adapters.slurm.commands`)
    chunks/N.try           somebody has begun to submit it, or called it off: a folder, since making one has one winner
    chunks/N.said          what sbatch printed, and N.err on its stderr
    chunks/N.id            the job id in that, if sbatch succeeded
    claim/NODE.ATTEMPT     which Slurm job runs this attempt of a job: linked, so made once and whole; or "void"
    exits/N/INDEX          how it ended (`bpsd_adapters.slurm.parsing.ExitRecord`), renamed into place
    out/NAME.ATTEMPT.out   what it printed, and .err
    slurm/N_INDEX.log      what Slurm had to say about it; gone if that was nothing
    work/                  where jobs start unless they say otherwise
"""

from __future__ import annotations

__all__ = [
    "ALL",
    "ASSOCIATION",
    "CALL_OFF",
    "CANCEL",
    "COLLECT",
    "CONTROL",
    "DISCARD",
    "MAKE_RUN",
    "NOT_CLAIMED",
    "NOT_SEEN",
    "NO_WORK_DIR",
    "PING",
    "PROBE",
    "PROGRAMS",
    "SQUEUE",
    "SUBMIT",
    "SUBMIT_ALL",
    "TOOL",
    "VOID",
    "WRAPPER",
    "clean",
]

from collections.abc import Iterable

ALL = "all"
"""The chunk of all jobs of a run that is handed to Slurm whole."""

NOT_SEEN = 78
"""Exit code of `WRAPPER`: the node does not see what the job is to do."""

NOT_CLAIMED = 79
"""Exit code of `WRAPPER`: another job has the claim, or none can be made. Nothing was run, so never 0."""

KEPT_VARIABLES = (
    "SBATCH_ACCOUNT",
    "SBATCH_CONSTRAINT",
    "SBATCH_PARTITION",
    "SBATCH_QOS",
    "SBATCH_RESERVATION",
    "SBATCH_TIMELIMIT",
    "SBATCH_WCKEY",
    "SLURM_CONF",
    "SLURM_CONF_SERVER",
    "SLURM_JWT",
    "SLURM_SACK_JWKS",
    "SLURM_SACK_KEY",
)
"""Variables of Slurm's tools that say where the cluster is, who asks, or what a job gets that names nothing."""

_CLEAN = r"""
for _v in $(env | sed -n 's/^\([A-Za-z0-9_]*\)=.*/\1/p' |
  grep -E '^(SBATCH|SQUEUE|SACCT|SACCTMGR|SCANCEL|SCONTROL|SINFO|SLURM)_')
do case " $_keep " in *" $_v "*) ;; *) unset "$_v" ;; esac; done
unset _v _keep
"""


def clean(kept: Iterable[str] = ()) -> str:
    """Return shell that unsets the variables which change what Slurm's tools do or print (``SBATCH_WAIT``).

    `KEPT_VARIABLES` stay, and ``kept``: what the backend's settings give the tools on purpose.
    """
    return f"_keep='{' '.join((*KEPT_VARIABLES, *kept))}'{_CLEAN}"


WRAPPER = rf"""#!/bin/sh
# Written by bpsd. Slurm runs this for each job: wrapper.sh RUN CHUNK [INDEX]
# Names that begin with _bpsd_ are its own. The variables of the job exist in subshells, around its commands alone.
_bpsd_run=$1 _bpsd_chunk=$2 _bpsd_index=${{3:-$SLURM_ARRAY_TASK_ID}}
_bpsd_given=$(umask)
umask 022
_bpsd_entry=$(sed -n "/^@$_bpsd_index\$/,/^@/s/^ //p" "$_bpsd_run/chunks/$_bpsd_chunk.jobs")
if [ -z "$_bpsd_entry" ]; then
  echo "bpsd: $_bpsd_run/chunks/$_bpsd_chunk.jobs has no job $_bpsd_index: is the work folder seen here?" >&2
  exit {NOT_SEEN}
fi
eval "$_bpsd_entry"
_bpsd_claim=$_bpsd_run/claim/$_bpsd_node.$_bpsd_attempt
_bpsd_exit=$_bpsd_run/exits/$_bpsd_chunk/$_bpsd_index

# One Slurm job runs this attempt of a job: who finds another's claim ends. A requeued one has its own.
_bpsd_mine=$_bpsd_run/claim/.$_bpsd_node.$_bpsd_attempt.$SLURM_JOB_ID
echo "$SLURM_JOB_ID" >"$_bpsd_mine" && ln "$_bpsd_mine" "$_bpsd_claim" 2>/dev/null
rm -f "$_bpsd_mine"
read -r _bpsd_owner <"$_bpsd_claim"
if [ "$_bpsd_owner" != "$SLURM_JOB_ID" ]; then
  echo "bpsd: ${{_bpsd_owner:-nobody}} has the claim on $_bpsd_node.$_bpsd_attempt, not this job: it does not run" >&2
  exit {NOT_CLAIMED}
fi
# Somebody requeued what had succeeded: it is not done again.
if read -r _ _ _ _ _bpsd_before _ 2>/dev/null <"$_bpsd_exit" && [ "$_bpsd_before" = 0 ]; then exit 0; fi

_bpsd_out=$_bpsd_run/out/$_bpsd_base.out _bpsd_err=$_bpsd_run/out/$_bpsd_base.err
_bpsd_code=- _bpsd_note= _bpsd_start=$(date +%s)
_bpsd_open() {{ umask "${{_bpsd_umask:-$_bpsd_given}}"; exec </dev/null >>"$_bpsd_out" 2>>"$_bpsd_err"; }}
_bpsd_here() {{ _bpsd_open; cd "$_bpsd_folder" || exit 1; _bpsd_env; }}
if ! ( _bpsd_open; _bpsd_env ); then _bpsd_note="its environment cannot be made: see its stderr"
elif ! ( _bpsd_open; cd "$_bpsd_folder" ); then _bpsd_note="there is no folder $_bpsd_folder on $(uname -n)"
elif [ -n "$_bpsd_pre" ] && ! ( _bpsd_here; _bpsd_step /bin/sh -c "$_bpsd_pre" ); then _bpsd_note="pre_cmdline failed"
else
  ( _bpsd_here; _bpsd_job )
  _bpsd_code=$?
  if [ -n "$_bpsd_post" ]; then
    ( _bpsd_here; _bpsd_step /bin/sh -c "$_bpsd_post" ) || _bpsd_note="post_cmdline ended with $?"
  fi
fi
printf '%s %s %s %s %s %s %s %s %s.\n' "$_bpsd_node" "$_bpsd_attempt" "$SLURM_JOB_ID" "${{SLURM_RESTART_COUNT:-0}}" \
  "$_bpsd_code" "$_bpsd_start" "$(date +%s)" "$(uname -n | tr -d ' ')" "$_bpsd_note" \
  >"$_bpsd_run/exits/$_bpsd_chunk/.$_bpsd_index.$SLURM_JOB_ID" &&
  mv -f "$_bpsd_run/exits/$_bpsd_chunk/.$_bpsd_index.$SLURM_JOB_ID" "$_bpsd_exit"
_bpsd_log=$_bpsd_run/slurm/${{_bpsd_chunk}}_$_bpsd_index.log
[ -s "$_bpsd_log" ] || rm -f "$_bpsd_log"
[ "$_bpsd_code" = - ] && exit 1
exit "$_bpsd_code"
"""

MAKE_RUN = r"""set -eu; given=$(umask); umask 022
mkdir -p "$1"; cd "$1"
mkdir -p chunks claim exits slurm
( umask "${3:-$given}"; mkdir -p out work )
chmod 700 chunks # a job's environment may be nobody else's business
cat >wrapper.part; [ "$(wc -c <wrapper.part)" -eq "$2" ]; chmod 755 wrapper.part; mv -f wrapper.part wrapper.sh
"""
"""Arguments: the run's folder, the size of the input, the umask of the run (empty: that of the account). Input:
`WRAPPER`."""

_JOB_ID = r"sed -n 's/^[[:space:]]*\([0-9][0-9]*\)\(;[^[:space:]]*\)\{0,1\}[[:space:]]*$/\1/p'"
"""Prints the lines that are a job id, as sbatch prints it; `answers.job_id_in` reads the same."""

SUBMIT = rf"""
run=$1 n=$2 size=$3; shift 3
cd "$run" && mkdir -p "exits/$n" && cat >"chunks/$n.part" || {{ echo not-written; exit 0; }}
if [ "$(wc -c <"chunks/$n.part")" -ne "$size" ]; then
  echo "of $size bytes $(wc -c <"chunks/$n.part") came: the connection broke" >&2; echo not-written; exit 0
fi
mv -f "chunks/$n.part" "chunks/$n.jobs" || {{ echo not-written; exit 0; }}
mkdir "chunks/$n.try" 2>/dev/null || {{ echo tried; exit 0; }}
sbatch "$@" >"chunks/$n.said" 2>"chunks/$n.err" &
pid=$!
( while sleep 1; do grep -q 'sleeping and retrying' "chunks/$n.err" && kill $pid; done ) >/dev/null 2>&1 & watch=$!
wait $pid; code=$?
kill $watch
if [ $code = 0 ]; then
  {_JOB_ID} "chunks/$n.said" | tail -n 1 >"chunks/$n.id.part" && mv -f "chunks/$n.id.part" "chunks/$n.id"
fi
echo "ended $code"
cat "chunks/$n.said"
cat "chunks/$n.err" >&2
exit 0
"""
"""Arguments: the run's folder, the chunk, the size of the input, those of sbatch. Input: the chunk's jobs.

Prints a word: ``not-written`` (nothing was submitted), ``tried`` (the chunk was tried or called off before) or
``ended`` with the exit code of sbatch, and then what sbatch printed. Who sends the input may be killed in the middle of
it: of a part nothing is submitted.
"""

SUBMIT_ALL = rf"""
run=$1
cd "$run" && mkdir -p exits/{ALL} || {{ echo not-written; exit 0; }}
while IFS= read -r line; do
  eval "set -- $line"
  n=$1 index=$2 parents=$3; shift 3
  if [ -s "chunks/$n.id" ]; then echo "$n id $(cat "chunks/$n.id")"; continue; fi
  after=
  for p in $parents; do
    id=$(cat "chunks/$p.id") && [ -n "$id" ] || {{ echo "$n no-parent"; exit 0; }}
    after=$after:$id
  done
  mkdir "chunks/$n.try" 2>/dev/null || {{ echo "$n tried"; exit 0; }}
  # In the script, since an argument has at most 128 KiB.
  printf '#!/bin/sh\n%s\nexec /bin/sh "$@"\n' "${{after:+#SBATCH --dependency=afterok$after}}" >"chunks/$n.sh"
  sbatch "$@" "chunks/$n.sh" "$run/wrapper.sh" "$run" {ALL} "$index" >"chunks/$n.said" 2>"chunks/$n.err"
  code=$?
  id=$({_JOB_ID} "chunks/$n.said" | tail -n 1)
  if [ $code != 0 ] || [ -z "$id" ]; then
    echo "$n ended $code"
    cat "chunks/$n.said"
    cat "chunks/$n.err" >&2
    exit 0
  fi
  echo "$id" >"chunks/$n.id.part" && mv -f "chunks/$n.id.part" "chunks/$n.id"
  rm -f "chunks/$n.sh" "chunks/$n.err" "chunks/$n.said"
  echo "$n id $id"
done
echo done
"""
"""Hands-off: arguments: the run's folder. Input: a line for each job, parents before children: its chunk, its index in
``chunks/all.jobs``, the chunks of its parents, and the options of sbatch, quoted for the shell. Prints a chunk and its
id for each that is submitted, now or before, and at last ``done``: it may be broken off and run again. If one is not
submitted it prints why (as `SUBMIT`, behind the chunk) and ends."""

CALL_OFF = rf"""
run=$1; shift
cd "$run" || exit 1
for n; do
  id=
  [ -s "chunks/$n.id" ] && id=$({_JOB_ID} "chunks/$n.id" | tail -n 1)
  if [ -n "$id" ]; then echo "$n id $id"
  elif mkdir "chunks/$n.try" 2>/dev/null; then echo "$n off"
  elif [ -d "chunks/$n.try" ]; then echo "$n tried"
  else echo "$n error"; fi
done
"""
"""Arguments: the run's folder, chunks. Prints of each its id, that it was called off before sbatch was begun (and will
not be begun), or that it was tried: then only Slurm knows."""

DISCARD = r"""
cd "$1" || exit 1
while read -r n; do
  case $n in
    *[!0-9]*) ;;
    ?*) rm -rf "exits/$n"; for part in try jobs id said err sh; do rm -rf "chunks/$n.$part"; done ;;
  esac
done
"""
"""Arguments: the run's folder. Input: chunks that are over or were refused, one a line: their files are not needed any
more."""

_STILL_OURS = r"""
nl='
'
wanted=$(cat)
[ -n "$wanted" ] || exit 0
rows=$(squeue -h --me -t all -o '%F|%j') || exit 1
rows=$nl$(printf '%s\n' "$rows" | sort -u)$nl
ids=
while IFS='|' read -r id name; do
  case $rows in *"$nl${id%%_*}|$name$nl"*) ids="$ids$id$separator" ;; esac
done <<EOF
$wanted
EOF
[ -n "$ids" ] || exit 0
"""
"""Input: a line ``ID|NAME`` for each array, or task of one (``ID_INDEX|NAME``). Keeps those that the queue shows under
that name: an id that bears another name now is another job, since Slurm gives ids again."""

CANCEL = f"separator=' '{_STILL_OURS}exec scancel $ids\n"
"""Ends the arrays of the input that are still ours."""

CONTROL = f'verb=$1 separator=,{_STILL_OURS}exec scontrol "$verb" "${{ids%,}}"\n'
"""Arguments: a verb of scontrol, for the arrays and tasks of the input that are still ours."""

ASSOCIATION = 'exec sacctmgr -n -P show assoc where user="$(id -un)" cluster="$1" format=MaxSubmitJobs,GrpSubmitJobs'
"""Arguments: the cluster. Prints how many jobs our associations in it may have submitted."""

TOOL = 'exec "$@"'
"""Arguments: one of Slurm's tools with its arguments."""

VOID = r"""
cd "$1/claim" || exit 1
echo void >.void.$$ || exit 1
while read -r claim; do
  ln .void.$$ "$claim" 2>/dev/null
  read -r owner <"$claim" && echo "$claim $owner"
done
rm -f .void.$$
"""
"""Arguments: the run's folder. Input: claims, one a line. Takes those that nobody has, so that no job begins under
them any more; prints each with its owner, which is ``void`` or a Slurm job."""

COLLECT = r"""
cd "$1" || exit 1
export LC_ALL=C
paths=$(cat)
printf '%s\n' "$paths" | sed 's|/[^/]*$||' | sort -u | xargs ls -f >/dev/null 2>&1
printf '%s\n' "$paths" | xargs grep "" /dev/null 2>/dev/null
echo "@end"
"""
"""Arguments: the work folder. Input: files below it, one a line. Prints their lines as PATH:LINE.

Folders are opened before: only then does NFS ask its server, else it remembers for a minute that a file was not there.
"""

SQUEUE = 'SLURM_BITSTR_LEN=0 SLURM_TIME_FORMAT=%s squeue -h --me -t all -o "$1" && echo @end'
"""Arguments: the format. Indices are not cut, times are epochs; ``@end`` says that the answer is whole."""

NO_WORK_DIR = 80
"""Exit code of `PING`: the work folder cannot be used."""

PING = rf"""
mkdir -p "$1" && cd "$1" || exit {NO_WORK_DIR}
: >.ping.$$ && rm -f .ping.$$ || exit {NO_WORK_DIR}
exec scontrol ping
"""
"""Arguments: the work folder, which is used as every other call uses it."""

PROBE = r"""set -eu; umask 022
mkdir -p "$1"; cd "$1"
echo bpsd >.probe.$$; ln .probe.$$ .probe2.$$; rm -f .probe.$$ .probe2.$$
for tool in sbatch squeue scancel scontrol; do
  command -v $tool >/dev/null || { echo "$tool is not in PATH ($PATH)" >&2; exit 1; }
done
"""
"""Arguments: the work folder."""

PROGRAMS = r"""
while IFS= read -r program; do
  case $program in
    */*) [ -f "$program" ] && [ -x "$program" ] ;;
    *) command -v "$program" >/dev/null ;;
  esac || printf '%s\n' "$program"
done
"""
"""Input: programs, one a line. Prints those that are not there."""
