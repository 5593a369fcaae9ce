"""Closures and orders of graphs whose edges are references.

Iterative, because chains of a hundred thousand references are real; and independent of the order
in which nodes and edges are given, because sets have none.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol, TypeVar

from grange.errors import PeerError

_SHOWN_MAX: Final = 20  # nodes of a cycle in its error


class _Node(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...

    def __hash__(self) -> int: ...


NodeT = TypeVar("NodeT", bound=_Node)


def closure(roots: Iterable[NodeT], edges: Callable[[NodeT], Iterable[NodeT]]) -> list[NodeT]:
    """All nodes reachable from `roots`, these included, sorted."""
    reached = set(roots)
    waiting = list(reached)
    while waiting:
        for reference in edges(waiting.pop()):
            if reference not in reached:
                reached.add(reference)
                waiting.append(reference)
    return sorted(reached)


def topological(nodes: Iterable[NodeT], edges: Callable[[NodeT], Iterable[NodeT]]) -> list[NodeT]:
    """`nodes`, each once, references before what refers to them.

    References to a node itself or to what is not among `nodes` do not count. Raises PeerError
    naming a cycle if there is one.
    """
    wanted = set(nodes)
    entered: dict[NodeT, None] = {}  # the way down to the node at hand, in order
    left: dict[NodeT, None] = {}

    def inner(node: NodeT) -> Iterator[NodeT]:
        return iter(sorted({each for each in edges(node) if each in wanted and each != node}))

    for root in sorted(wanted):
        if root in left:
            continue
        entered[root] = None
        stack = [(root, inner(root))]
        while stack:
            node, references = stack[-1]
            reference = next((each for each in references if each not in left), None)
            if reference is None:
                stack.pop()
                del entered[node]
                left[node] = None
            elif reference in entered:
                raise _cycle([*entered], reference)
            else:
                entered[reference] = None
                stack.append((reference, inner(reference)))
    return list(left)


def _cycle(way: list[NodeT], start: NodeT) -> PeerError:
    cycle = [str(node) for node in way[way.index(start) :]]
    shown = " -> ".join([*cycle[:_SHOWN_MAX], *["..."] * (len(cycle) > _SHOWN_MAX), cycle[0]])
    return PeerError(f"these references form a cycle of {len(cycle)}: {shown}")
