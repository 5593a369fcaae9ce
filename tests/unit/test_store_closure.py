"""Closures and topological order, on graphs of every shape."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.store.closure import closure, topological

Graph = dict[int, list[int]]
GRAPHS = st.dictionaries(st.integers(0, 12), st.lists(st.integers(0, 12), max_size=4), max_size=12)


def has_cycle(graph: Graph) -> bool:
    """Whether leaves can no longer be taken away before all are gone."""
    left = {node: {e for e in edges if e in graph and e != node} for node, edges in graph.items()}
    while leaves := {node for node, edges in left.items() if not edges}:
        left = {node: edges - leaves for node, edges in left.items() if node not in leaves}
    return bool(left)


@given(GRAPHS)
def test_references_come_first(graph: Graph) -> None:
    if has_cycle(graph):
        with pytest.raises(PeerError, match="form a cycle of"):
            topological(graph, graph.__getitem__)
        return
    order = topological(graph, graph.__getitem__)
    assert sorted(order) == sorted(graph)
    at = {node: index for index, node in enumerate(order)}
    for node, edges in graph.items():
        assert all(at[edge] < at[node] for edge in edges if edge in graph and edge != node)


@given(GRAPHS)
@example({0: [1, 2], 1: [], 2: []})
def test_the_order_of_nodes_and_edges_does_not_matter(graph: Graph) -> None:
    # Multiples of 1024 share a place in small sets, which then keep the order of insertion.
    graph = {node << 10: [edge << 10 for edge in edges] for node, edges in graph.items()}
    backwards = {node: graph[node][::-1] for node in reversed(graph)}
    assert closure(graph, lambda n: graph.get(n, [])) == closure(
        backwards, lambda n: backwards.get(n, [])
    )
    if not has_cycle(graph):
        assert topological(graph, graph.__getitem__) == topological(
            backwards, backwards.__getitem__
        )


@given(GRAPHS, st.sets(st.integers(0, 12)))
def test_a_closure_is_the_smallest_closed_set(graph: Graph, roots: set[int]) -> None:
    found = closure(roots, lambda node: graph.get(node, []))
    reached = set(roots)
    for _ in range(13):
        reached |= {edge for node in reached for edge in graph.get(node, [])}
    assert found == sorted(reached)


def test_a_cycle_is_named_without_the_way_to_it() -> None:
    graph = {"a": ["b"], "b": ["c"], "c": ["d"], "d": ["b"]}
    with pytest.raises(PeerError, match=r"a cycle of 3: b -> c -> d -> b$"):
        topological(graph, graph.__getitem__)


def test_a_long_cycle_is_shortened() -> None:
    with pytest.raises(PeerError, match=r"a cycle of 1000: 0 -> .*19 -> \.\.\. -> 0$"):
        topological(range(1000), lambda node: [(node + 1) % 1000])


def test_a_long_chain_needs_no_recursion() -> None:
    length = 50_000
    chain = topological(range(length), lambda node: [node + 1])
    assert chain == list(reversed(range(length)))
    assert closure([0], lambda node: [node + 1] if node < length else []) == [*range(length + 1)]
