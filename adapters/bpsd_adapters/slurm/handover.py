"""A run that Slurm keeps the order of: every job with what it waits for, parents first. Pure."""

from __future__ import annotations

__all__ = ["handed_over", "parents_first"]

from collections.abc import Callable, Mapping, Sequence
from graphlib import TopologicalSorter

from bpsd.workflow import Job
from bpsd_adapters.slurm.chunks import Chunk
from bpsd_adapters.slurm.commands import RunFacts, entry
from bpsd_adapters.slurm.options import Defaults, job_options, options_of
from bpsd_adapters.slurm.scripts import ALL


def handed_over(
    jobs: Mapping[int, Job],
    whole: Mapping[int, Chunk],
    facts: RunFacts,
    defaults: Defaults,
    *,
    wanted: Callable[[Chunk], bool],
) -> tuple[bytes, list[list[str]]]:
    """What `Cluster.submit_all` needs.

    Parameters
    ----------
    jobs : `~collections.abc.Mapping`
        All jobs but the final one, by number.
    whole : `~collections.abc.Mapping`
        The chunks of those that are in Slurm, or are to be.
    facts : `RunFacts`
        What they have in common.
    defaults : `Defaults`
        What every job gets.
    wanted : `~collections.abc.Callable`
        Whether a chunk is still to be submitted.

    Returns
    -------
    entries : `bytes`
        The entries of all in ``whole``.
    lines : `list`
        For each that is wanted, parents first: chunk, index, chunks of its parents, options.
    """
    text = [entry(facts, jobs[n], n, c.open[0].ref.attempt, n, jobs[n].request_memory) for n, c in whole.items()]
    names = {job.name: n for n, job in jobs.items()}
    parents_of = {n: [names[p] for p in job.parents] for n, job in jobs.items()}
    lines = []
    for node in parents_first(parents_of):
        chunk = whole.get(node)
        if chunk is not None and wanted(chunk):
            job, after = jobs[node], _waited_for(node, jobs, whole, parents_of)
            lines.append([
                str(chunk.number), str(node), " ".join(str(whole[p].number) for p in sorted(after)),
                "--parsable", "--array=0", "--kill-on-invalid-dep=yes",
                *job_options(facts.folder, chunk.name, job.label, f"{ALL}_{node}"),
                *options_of(job, defaults),
            ])  # fmt: skip
    return "".join(text).encode(), lines


def parents_first(parents: Mapping[int, Sequence[int]]) -> list[int]:
    """Jobs in an order in which each comes after its parents."""
    return list(TopologicalSorter(parents).static_order())


def _waited_for(
    node: int, jobs: Mapping[int, Job], whole: Mapping[int, Chunk], parents_of: Mapping[int, Sequence[int]]
) -> set[int]:
    """The jobs in Slurm that a job waits for: through noop jobs, and not for what is over."""
    found: set[int] = set()
    todo = list(parents_of[node])
    seen = set(todo)
    while todo:
        parent = todo.pop()
        if parent in whole:
            found.add(parent)
        elif jobs[parent].kind == "noop":
            todo += [p for p in parents_of[parent] if p not in seen]
            seen.update(parents_of[parent])
    return found
