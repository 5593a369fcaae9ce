"""The derivations of a run: what there is to build, as the world knows it."""

from dataclasses import dataclass
from random import Random
from typing import Final

from grange.ports import NewDerivation, PublishedOutput
from grange.scheduler.facts import AttemptId, QueueKey, StepId
from grange.store.hash import BASE32_CHARS, Hash
from grange.store.narinfo import NarInfo, PathInfo
from grange.store.path import StorePath
from tests.simulation.faults import Rates

SYSTEMS: Final = ("x86_64-linux", "aarch64-linux")
FOREIGN: Final = "riscv64-linux"  # that no agent offers from the start
FLAKY_P: Final = 0.5  # of a build of what is flaky: it fails


@dataclass(frozen=True, slots=True)
class Node:
    """One derivation, numbered from inputs to dependants; its step's id is its number."""

    step: StepId
    inputs: tuple[StepId, ...]
    outputs: tuple[StorePath, ...]
    system: str
    build_s: float
    upload_s: float  # of each output
    is_doomed: bool  # every build of it fails
    is_fickle: bool = False  # no two builds of it make the same
    is_flaky: bool = False  # some builds of it fail

    @property
    def drv_path(self) -> StorePath:
        return path(f"s{self.step}.drv")

    def made_by(self, attempt: AttemptId) -> tuple[PublishedOutput, ...]:
        """What this attempt made: no two attempts make the same bytes."""
        return tuple(
            PublishedOutput(f"out{i}" if i else "out", self._narinfo(each, attempt, i), "")
            for i, each in enumerate(self.outputs)
        )

    def _narinfo(self, output: StorePath, attempt: AttemptId, index: int) -> NarInfo:
        content = Hash("sha256", attempt.to_bytes(32, "big"))
        info = PathInfo(output, content, 100, (), self.drv_path, None, ())
        url = f"nar/{attempt}-{index}"
        return NarInfo(info, url, "zstd", Hash.of("sha256", url.encode()), len(url))


def nar_file(narinfo: NarInfo) -> bytes:
    """What lies at its URL."""
    return narinfo.url.encode()


class Graph:
    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = {node.step: node for node in nodes}

    def closure(self, root: StepId) -> list[Node]:
        """The build closure, itself included."""
        seen = {root: self.nodes[root]}
        todo = [root]
        while todo:
            for needed in self.nodes[todo.pop()].inputs:
                if needed not in seen:
                    seen[needed] = self.nodes[needed]
                    todo.append(needed)
        return [*seen.values()]

    def derivations(self) -> list[NewDerivation]:
        """For the journal, which numbers steps in the order they come."""
        return [
            NewDerivation(
                path=node.drv_path,
                aterm=b"",
                outputs=tuple(
                    (f"out{i}" if i else "out", each) for i, each in enumerate(node.outputs)
                ),
                inputs=tuple(self.nodes[i].drv_path for i in node.inputs),
                direct_inputs=tuple(o for i in node.inputs for o in self.nodes[i].outputs),
                basic=b"",
                modulo="",
                queue=QueueKey(node.system),
                name=f"s{node.step}",
            )
            for node in self.nodes.values()
        ]


def path(name: str) -> StorePath:
    """A path whose hash part follows from `name`."""
    digest = Hash.of("sha256", name.encode()).digest
    return StorePath("".join(BASE32_CHARS[byte % 32] for byte in digest) + "-" + name)


def node(
    number: int,
    *inputs: int,
    build_s: float = 10.0,
    upload_s: float = 2.0,
    outputs: int = 1,
    system: str = SYSTEMS[0],
    is_doomed: bool = False,
    is_fickle: bool = False,
    is_flaky: bool = False,
) -> Node:
    return Node(
        StepId(number),
        tuple(map(StepId, inputs)),
        tuple(path(f"s{number}-{i}") for i in range(outputs)),
        system,
        build_s,
        upload_s,
        is_doomed,
        is_fickle,
        is_flaky,
    )


def draw_graph(random: Random, rates: Rates, steps_max: int) -> Graph:
    """A random acyclic graph with a deep chain and a wide fan in it."""
    size = random.randint(1, steps_max)
    chain = random.randint(0, size // 2)
    fan = random.randint(0, size // 3)
    slowest_s = random.choice((1.0, 10.0, 60.0))
    nodes: list[Node] = []
    for number in range(1, size + 1):
        earlier = range(1, number)
        if 1 < number <= chain:
            inputs = {number - 1}
        elif chain < number <= chain + fan:
            inputs = {max(1, chain)} if chain else set()
        else:
            inputs = set(random.sample(earlier, min(len(earlier), random.randint(0, 4))))
        nodes.append(
            node(
                number,
                *sorted(inputs),
                build_s=random.uniform(0.5, slowest_s),
                upload_s=random.uniform(0.1, random.choice((1.0, 20.0))),
                outputs=random.choice((1, 1, 2)),
                system=FOREIGN
                if random.random() < rates.foreign_p
                else random.choice((SYSTEMS[0], SYSTEMS[0], SYSTEMS[1])),
                is_doomed=random.random() < rates.doomed_p,
                is_fickle=random.random() < rates.fickle_p,
                is_flaky=random.random() < rates.flaky_p,
            )
        )
    return Graph(nodes)
