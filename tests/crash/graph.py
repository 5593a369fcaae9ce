"""A random graph of real derivations, and how each of them must end.

A builder leaves a line in /runs when it begins, and its output holds a digest of its inputs: so an
output that is right was made from inputs that were right, and every run of a builder is counted.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

NEAR: Final = 40  # how far back an input may be: a graph some twenty steps deep for 300
INPUTS_MAX: Final = 3
BUILD_MS_MAX: Final = 200
FAILING: Final = 0.08  # of the last third: early ones would doom everything
EXIT_CODE: Final = 3


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    inputs: tuple[int, ...]  # numbers of earlier nodes, ascending
    build_ms: int
    is_failing: bool  # by itself, once its inputs are there


@dataclass(frozen=True, slots=True)
class Graph:
    nodes: tuple[Node, ...]
    culprits: tuple[frozenset[int], ...]  # by node: who fails at or below it
    roots: tuple[int, ...]  # those nobody needs

    def below(self, roots: Sequence[int]) -> set[int]:
        """These nodes and all they need."""
        seen: set[int] = set()
        left = list(roots)
        while left:
            number = left.pop()
            if number not in seen:
                seen.add(number)
                left += self.nodes[number].inputs
        return seen


def draw(random: Random, count: int) -> Graph:
    """At least two fail: a root, and one that others need."""
    inputs = [
        tuple(sorted(random.sample(range(max(0, number - NEAR), number), random.randint(1, most))))
        if (most := min(INPUTS_MAX, number))
        else ()
        for number in range(count)
    ]
    needed = {each for some in inputs for each in some}
    roots = tuple(number for number in range(count) if number not in needed)
    failing = {n for n in range(2 * count // 3, count) if random.random() < FAILING}
    failing |= {roots[-1], max(needed)}
    culprits: list[frozenset[int]] = []
    for number in range(count):
        own = {number} if number in failing else set()
        culprits.append(frozenset(own.union(*(culprits[each] for each in inputs[number]))))
    nodes = tuple(
        Node(f"n{number}", inputs[number], random.randint(0, BUILD_MS_MAX), number in failing)
        for number in range(count)
    )
    return Graph(nodes, tuple(culprits), roots)


def expression(graph: Graph, salt: str) -> str:
    """A list of all derivations, in Nix, given `step name attributes script`; $b is busybox."""
    lines = ["let"]
    for node in graph.nodes:
        names = " ".join(graph.nodes[each].name for each in node.inputs)
        lines.append(f'{node.name} = step "{node.name}" {{ inherit {names}; salt = "{salt}"; }} ')
        lines.append(f"''{_script(graph, node)}'';")
    lines.append("in [ " + " ".join(node.name for node in graph.nodes) + " ]")
    return "\n".join(lines)


def _script(graph: Graph, node: Node) -> str:
    inputs = " ".join(f"${graph.nodes[each].name}" for each in node.inputs)
    run = f"echo begun >> /runs/{node.name}; echo {node.name} runs; "
    run += f"$b sleep {node.build_ms / 1000}; "
    if node.is_failing:
        return f"{run} echo as it must; exit {EXIT_CODE}"
    digest = f"$b cat {inputs} /dev/null | $b sha256sum"
    return f"{run} {{ echo {node.name} {inputs}; {digest}; }} > $out"


def contents(graph: Graph, outputs: Sequence[str]) -> Mapping[int, bytes]:
    """What must be in the outputs (store paths, by node) of all nodes that can be built."""
    made: dict[int, bytes] = {}
    for number, node in enumerate(graph.nodes):
        if graph.culprits[number]:
            continue
        digest = hashlib.sha256(b"".join(made[each] for each in node.inputs)).hexdigest()
        words = " ".join([node.name, *(outputs[each] for each in node.inputs)])
        made[number] = f"{words}\n{digest}  -\n".encode()
    return made
