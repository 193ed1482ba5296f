"""Order and cycles of a workflow: pure, iterative, in time linear in its edges.

A graph is the list of the parents of each of its numbered nodes. Of a workflow with J jobs, the jobs are the nodes 0 to
J - 1 in the order of the document, and group G is the two nodes J + 2G (its begin) and J + 2G + 1 (its end); the final
job is none of them.
"""

from __future__ import annotations

__all__ = ["cycles", "graph_of", "order"]

from collections import deque
from collections.abc import Collection, Iterator, Sequence

from bpsd.workflow import Group, Job


def graph_of(jobs: Sequence[Job], groups: Sequence[Group]) -> list[list[int]]:
    """Each node's parents. What names nothing, its own node or its own group is left out, and of two of one name the
    first one is meant (the validator reports all that).
    """
    node_of: dict[str, int] = {}
    begin_of: dict[str, int] = {}
    for index, group in enumerate(groups):
        begin = begin_of.setdefault(group.name, len(jobs) + 2 * index)
        node_of.setdefault(group.name, begin + 1)
    for node, job in enumerate(jobs):
        node_of.setdefault(job.name, node)
    graph: list[list[int]] = []
    for node, job in enumerate(jobs):
        begin = -2 if job.group is None else begin_of.get(job.group, -2)
        above = [node_of[name] for name in job.parents if name in node_of] if job.parents else []
        above = [parent for parent in above if parent not in (node, begin + 1)]
        graph.append(above if begin < 0 else [*above, begin])
    for index, group in enumerate(groups):
        begin = len(jobs) + 2 * index
        above = [node_of[name] for name in group.parents if name in node_of]
        graph += [[parent for parent in above if parent != begin + 1], [begin]]
    for node, job in enumerate(jobs):
        if job.group in begin_of:
            graph[begin_of[job.group] + 1].append(node)
    return graph


def order(parents: Sequence[Collection[int]]) -> list[int]:
    """The nodes in the order in which they become ready if each round runs all that are; those on cycles, and all that
    wait for one of those, are left out. Nodes of one round keep their order.
    """
    waiting = [len(above) for above in parents]
    children: list[list[int]] = [[] for _ in parents]
    for node, above in enumerate(parents):
        for parent in above:
            children[parent].append(node)
    ready = [node for node, count in enumerate(waiting) if not count]
    done: list[int] = []
    while ready:
        done += ready
        after = []
        for node in ready:
            for child in children[node]:
                waiting[child] -= 1
                if not waiting[child]:
                    after.append(child)
        after.sort()
        ready = after
    return done


def cycles(parents: Sequence[Collection[int]], nodes: Collection[int]) -> list[list[int]]:
    """One shortest cycle of each knot of ``nodes`` that wait for one another, from parent to child, the first node
    repeated at the end.

    A cycle begins at the lowest node of its knot, and the cycles come in the order of these.
    """
    among = set(nodes)
    above = {node: [parent for parent in parents[node] if parent in among] for node in among}
    found = []
    for knot in _knots(above):
        start = min(knot)
        if len(knot) > 1 or start in above[start]:
            found.append(_shortest_cycle(above, knot, start))
    return sorted(found)


def _shortest_cycle(above: dict[int, list[int]], knot: set[int], start: int) -> list[int]:
    """Walk from child to parent, breadth first, until ``start`` is met again."""
    child_of: dict[int, int] = {}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        for parent in above[node]:
            if parent == start:
                path = [start, node]
                while path[-1] != start:
                    path.append(child_of[path[-1]])
                return path
            if parent in knot and parent not in child_of:
                child_of[parent] = node
                queue.append(parent)
    raise AssertionError("a strongly connected component has a cycle through each of its nodes")


def _knots(above: dict[int, list[int]]) -> Iterator[set[int]]:
    """The strongly connected components (Tarjan 1972, with a stack of our own instead of recursion)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    for root, parents in above.items():
        if root in number:
            continue
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        work = [(root, iter(parents))]
        while work:
            node, rest = work[-1]
            parent = next(rest, None)
            if parent is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    knot: set[int] = set()
                    while node not in knot:
                        knot.add(stack.pop())
                    on_stack -= knot
                    yield knot
            elif parent not in number:
                number[parent] = low[parent] = len(number)
                stack.append(parent)
                on_stack.add(parent)
                work.append((parent, iter(above[parent])))
            elif parent in on_stack:
                low[node] = min(low[node], number[parent])
