"""Order and cycles, against definitions that are slow and plain."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bpsd import topology
from bpsd.workflow import Group, Job

GRAPHS = st.integers(0, 9).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, max(0, size - 1)), max_size=3, unique=True), min_size=size, max_size=size
    )
)


def _ancestors(graph: list[list[int]]) -> list[set[int]]:
    reached = [set(above) for above in graph]
    for _ in graph:
        for node, above in enumerate(reached):
            reached[node] = above.union(*(reached[parent] for parent in above))
    return reached


@given(GRAPHS)
def test_order_has_every_node_that_waits_for_no_cycle_after_its_parents(graph: list[list[int]]) -> None:
    ancestors = _ancestors(graph)
    stuck = {node for node in range(len(graph)) if any(a in ancestors[a] for a in {node, *ancestors[node]})}

    order = topology.order(graph)

    assert sorted(order) == sorted(set(range(len(graph))) - stuck)
    position = {node: index for index, node in enumerate(order)}
    assert all(position[parent] < position[node] for node in order for parent in graph[node])


@given(GRAPHS)
def test_order_goes_by_rounds(graph: list[list[int]]) -> None:
    order = topology.order(graph)
    rounds: dict[int, int] = {}
    for node in order:
        rounds[node] = 1 + max((rounds[parent] for parent in graph[node]), default=0)

    assert order == sorted(order, key=lambda node: (rounds[node], node))


@given(GRAPHS)
def test_one_shortest_cycle_of_each_knot(graph: list[list[int]]) -> None:
    ancestors = _ancestors(graph)
    knots = {
        frozenset({node} | {other for other in ancestors[node] if node in ancestors[other]})
        for node in range(len(graph))
        if node in ancestors[node]
    }

    cycles = topology.cycles(graph, range(len(graph)))

    assert [cycle[0] for cycle in cycles] == sorted(min(knot) for knot in knots)
    for cycle in cycles:
        assert cycle[0] == cycle[-1]
        assert len(set(cycle)) == len(cycle) - 1
        assert all(parent in graph[child] for parent, child in pairwise(cycle))
        assert len(cycle) - 1 == _shortest(graph, cycle[0])


def _shortest(graph: list[list[int]], start: int) -> int:
    level, length = {start}, 0
    while True:
        level, length = {parent for node in level for parent in graph[node]}, length + 1
        if start in level:
            return length


def test_long_chain_and_long_cycle_need_no_recursion() -> None:
    size = 50_000
    chain = [[node - 1] if node else [] for node in range(size)]
    assert topology.order(chain) == list(range(size))

    chain[0] = [size - 1]
    assert topology.order(chain) == []
    (cycle,) = topology.cycles(chain, range(size))
    assert cycle == [*range(size), 0]


def test_group_begins_after_its_parents_and_ends_after_its_members() -> None:
    jobs = [
        Job(name="a"),
        Job(name="b", group="g"),
        Job(name="c", group="g", parents=["b"]),
        Job(name="d", parents=["g"]),
    ]
    begin, end = 4, 5

    graph = topology.graph_of(jobs, [Group(name="g", parents=["a"])])

    assert graph == [[], [begin], [1, begin], [end], [0], [begin, 1, 2]]
    assert topology.order(graph) == [0, begin, 1, 2, end, 3]


def test_what_names_nothing_itself_or_its_own_group_is_no_edge() -> None:
    jobs = [Job(name="a", parents=["a", "nobody"]), Job(name="b", group="g", parents=["g"]), Job(name="c", group="h")]

    graph = topology.graph_of(jobs, [Group(name="g", parents=["g", "nobody"])])

    assert graph == [[], [3], [], [], [3, 1]]
