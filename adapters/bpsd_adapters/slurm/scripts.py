"""What runs on the submit host and on the nodes: POSIX shell, nothing else is needed there.

A run's folder in the work folder::

    wrapper.sh             what Slurm runs for each job
    chunks/N.jobs          the jobs of chunk N, an entry for each index (`bpsd_adapters.slurm.commands`)
    chunks/N.try           somebody has begun to submit it, or called it off: a folder, since making one has one winner
    chunks/N.id            what sbatch printed
    claim/NODE.ATTEMPT     which Slurm job runs this attempt of a job: linked, so made once and whole; or "void"
    exits/N/INDEX          how it ended (`bpsd_adapters.slurm.parsing.ExitRecord`), renamed into place
    out/NAME.ATTEMPT.out   what it printed, and .err
    slurm/N_INDEX.log      what Slurm had to say about it; gone if that was nothing
    work/                  where jobs start unless they say otherwise
"""

from __future__ import annotations

__all__ = [
    "ALL",
    "CALLED_OFF",
    "CALL_OFF",
    "COLLECT",
    "FULL",
    "MAKE_RUN",
    "NOT_CLAIMED",
    "NOT_SEEN",
    "NOT_WRITTEN",
    "PROBE",
    "PROGRAMS",
    "SQUEUE",
    "SUBMIT",
    "SUBMIT_ALL",
    "VOID",
    "WRAPPER",
]

ALL = "all"
"""The chunk of all jobs of a run that is handed to Slurm whole."""

CALLED_OFF = 73
"""Exit code of `SUBMIT`: the chunk was tried or called off before."""

NOT_WRITTEN = 74
"""Exit code of `SUBMIT`: the chunk's files could not be written, and nothing was submitted."""

FULL = 75
"""Exit code of `SUBMIT`: Slurm takes no more jobs for now, and sbatch, which was waiting for that, was ended."""

NOT_SEEN = 78
"""Exit code of `WRAPPER`: the node does not see what the job is to do."""

NOT_CLAIMED = 79
"""Exit code of `WRAPPER`: another job has the claim, or none can be made. Nothing was run, so never 0."""

WRAPPER = rf"""#!/bin/sh
# Written by bpsd. Slurm runs this for each job: wrapper.sh RUN CHUNK [INDEX]
run=$1 chunk=$2 index=${{3:-$SLURM_ARRAY_TASK_ID}}
entry=$(sed -n "/^@$index\$/,/^@/s/^ //p" "$run/chunks/$chunk.jobs")
if [ -z "$entry" ]; then
  echo "bpsd: $run/chunks/$chunk.jobs has no job $index: is the work folder seen here?" >&2
  exit {NOT_SEEN}
fi
eval "$entry"

# One Slurm job runs this attempt of a job: who finds another's claim ends. A requeued one has its own.
mine=$run/claim/.$node.$attempt.$SLURM_JOB_ID
echo "$SLURM_JOB_ID" >"$mine" && ln "$mine" "$run/claim/$node.$attempt" 2>/dev/null
rm -f "$mine"
read -r owner <"$run/claim/$node.$attempt"
if [ "$owner" != "$SLURM_JOB_ID" ]; then
  echo "bpsd: ${{owner:-nobody}} has the claim on $node.$attempt, not this job: it ends without running" >&2
  exit {NOT_CLAIMED}
fi
# Somebody requeued what had succeeded: it is not done again.
if read -r _ _ _ _ before _ 2>/dev/null <"$run/exits/$chunk/$index" && [ "$before" = 0 ]; then exit 0; fi

out=$run/out/$base.out err=$run/out/$base.err code=- note= start=$(date +%s)
umask 022
if ! ( bpsd_env ) 2>>"$err"; then note="its environment cannot be made: see its stderr"
elif bpsd_env; ! cd "$folder" 2>>"$err"; then note="there is no folder $folder on $(uname -n)"
elif [ -n "$pre" ] && ! /bin/sh -c "$pre" </dev/null >>"$out" 2>>"$err"; then note="pre_cmdline failed"
else
  ( bpsd_job ) </dev/null >>"$out" 2>>"$err"
  code=$?
  if [ -n "$post" ]; then /bin/sh -c "$post" </dev/null >>"$out" 2>>"$err" || note="post_cmdline ended with $?"; fi
fi
printf '%s %s %s %s %s %s %s %s %s.\n' "$node" "$attempt" "$SLURM_JOB_ID" "${{SLURM_RESTART_COUNT:-0}}" \
  "$code" "$start" "$(date +%s)" "$(uname -n | tr -d ' ')" "$note" >"$run/exits/$chunk/.$index.$SLURM_JOB_ID" &&
  mv -f "$run/exits/$chunk/.$index.$SLURM_JOB_ID" "$run/exits/$chunk/$index"
log=$run/slurm/${{chunk}}_$index.log
[ -s "$log" ] || rm -f "$log"
[ "$code" = - ] && exit 1
exit "$code"
"""

MAKE_RUN = r"""set -eu; umask 022
mkdir -p "$1"; cd "$1"
mkdir -p chunks claim exits out slurm work
chmod 700 chunks # a job's environment may be nobody else's business
cat >wrapper.part; [ "$(wc -c <wrapper.part)" -eq "$2" ]; chmod 755 wrapper.part; mv -f wrapper.part wrapper.sh
"""
"""Arguments: the run's folder, the size of the input. Input: `WRAPPER`."""

SUBMIT = rf"""
run=$1 n=$2 size=$3; shift 3
cd "$run" && mkdir -p "exits/$n" && cat >"chunks/$n.part" || exit {NOT_WRITTEN}
if [ "$(wc -c <"chunks/$n.part")" -ne "$size" ]; then
  echo "of $size bytes $(wc -c <"chunks/$n.part") came: the connection broke" >&2; exit {NOT_WRITTEN}
fi
mv -f "chunks/$n.part" "chunks/$n.jobs" || exit {NOT_WRITTEN}
mkdir "chunks/$n.try" 2>/dev/null || exit {CALLED_OFF}
sbatch "$@" >"chunks/$n.said" 2>"chunks/$n.err" &
pid=$!
( while sleep 1; do grep -q 'sleeping and retrying' "chunks/$n.err" && kill $pid; done ) >/dev/null 2>&1 & watch=$!
wait $pid; code=$?
kill $watch
cat "chunks/$n.err" >&2
[ $code = 0 ] && mv -f "chunks/$n.said" "chunks/$n.id" && cat "chunks/$n.id"
if [ $code -gt 128 ] && grep -q 'sleeping and retrying' "chunks/$n.err"; then exit {FULL}; fi
exit $code
"""
"""Arguments: the run's folder, the chunk, the size of the input, those of sbatch. Input: the chunk's jobs. Prints what
sbatch prints. Who sends the input may be killed in the middle of it: of a part nothing is submitted.
"""

SUBMIT_ALL = rf"""
run=$1
cd "$run" || exit {NOT_WRITTEN}
mkdir -p exits/{ALL}
while IFS= read -r line; do
  eval "set -- $line"
  n=$1 index=$2 parents=$3; shift 3
  if [ -s "chunks/$n.id" ]; then echo "$n $(cat "chunks/$n.id")"; continue; fi
  mkdir "chunks/$n.try" 2>/dev/null || exit {CALLED_OFF}
  after=
  for p in $parents; do
    id=$(cat "chunks/$p.id") || {{ rmdir "chunks/$n.try"; exit 1; }}
    after=$after:${{id%%;*}}
  done
  # In the script, since an argument has at most 128 KiB.
  printf '#!/bin/sh\n%s\nexec /bin/sh "$@"\n' "${{after:+#SBATCH --dependency=afterok$after}}" >"chunks/$n.sh"
  sbatch "$@" "chunks/$n.sh" "$run/wrapper.sh" "$run" {ALL} "$index" >"chunks/$n.said" 2>"chunks/$n.err"
  code=$?
  if [ $code != 0 ]; then
    # Nobody knows what Slurm has if sbatch lost its connection, or was ended by a signal.
    [ $code -gt 128 ] || grep -Eqi 'timed out|contact|connect|socket|communication' "chunks/$n.err" ||
      rmdir "chunks/$n.try"
    cat "chunks/$n.err" >&2
    exit 1
  fi
  mv -f "chunks/$n.said" "chunks/$n.id"; rm -f "chunks/$n.sh" "chunks/$n.err"
  echo "$n $(cat "chunks/$n.id")"
done
"""
"""Hands-off: arguments: the run's folder. Input: a line for each job, parents before children: its chunk, its index in
``chunks/all.jobs``, the chunks of its parents, and the options of sbatch, quoted for the shell. Prints a chunk and its
id for each that is submitted, now or before: it may be broken off and run again."""

CALL_OFF = r"""
run=$1; shift
cd "$run" || exit 1
for n; do
  if [ -s "chunks/$n.id" ]; then echo "$n id $(cat "chunks/$n.id")"
  elif mkdir "chunks/$n.try" 2>/dev/null; then echo "$n off"
  elif [ -d "chunks/$n.try" ]; then echo "$n tried"
  else echo "$n error"; fi
done
"""
"""Arguments: the run's folder, chunks. Prints of each its id, that it was called off before sbatch was begun (and will
not be begun), or that it was tried: then only Slurm knows."""

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

SQUEUE = 'SLURM_BITSTR_LEN=0 SLURM_TIME_FORMAT=%s exec squeue -h --me -t all -o "$1"'
"""Arguments: the format. Indices are not cut, times are epochs."""

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
