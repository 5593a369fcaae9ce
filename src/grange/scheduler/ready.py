"""The queues of ready steps and their order (DESIGN, "Schedule").

Order: global priority, then the project that uses least of its share now, then the longest expected
path to the end, then age. Entries are never removed when a step changes: they are recognised as
stale when they come to the head.
"""

import heapq
from collections.abc import Mapping

from grange.scheduler.facts import QueueKey
from grange.scheduler.state import Agent, State, Step

Entry = tuple[int, float, int, Step]
Rank = tuple[int, float, float, int]  # lower goes first


def entry(step: Step) -> Entry:
    return (-step.priority, -step.path_s, step.seq, step)


def _is_stale(item: Entry) -> bool:
    step = item[3]
    return (
        step.state is not State.READY
        or step.missing > 0
        or item[0] != -step.priority
        or item[1] != -step.path_s
    )


class ReadyQueue:
    """Ready steps that are alike in what they ask of an agent, a heap for each project."""

    __slots__ = ("agents", "hopeless_since", "key", "projects")

    def __init__(self, key: QueueKey) -> None:
        self.key = key
        self.projects: dict[str, list[Entry]] = {}
        self.agents: list[Agent] = []  # those that fit, in order of joining
        self.hopeless_since: float | None = None  # steps wait, and no agent fits or could appear

    def push(self, step: Step) -> None:
        heapq.heappush(self.projects.setdefault(step.project, []), entry(step))

    def head(self, used: Mapping[str, int]) -> tuple[Rank, str] | None:
        """Rank of the best step and the project it is of; None where nothing is ready.

        `used` counts the running attempts of each project.
        """
        best: tuple[Rank, str] | None = None
        for project, heap in list(self.projects.items()):
            while heap and _is_stale(heap[0]):
                heapq.heappop(heap)
            if not heap:
                del self.projects[project]
                continue
            first = heap[0]
            rank = (first[0], float(used.get(project, 0)), first[1], first[2])
            if best is None or rank < best[0]:
                best = (rank, project)
        return best

    def pop(self, project: str) -> Step:
        """The step that `head` spoke of."""
        return heapq.heappop(self.projects[project])[3]


def local_head(agent: Agent, used: Mapping[str, int]) -> Rank | None:
    """As `ReadyQueue.head`, of the steps whose inputs are only on this agent so far."""
    heap = agent.local
    while heap and not is_ready_at(heap[0][3], agent):
        heapq.heappop(heap)
    if not heap:
        return None
    first = heap[0]
    return (first[0], float(used.get(first[3].project, 0)), first[1], first[2])


def is_ready_at(step: Step, agent: Agent) -> bool:
    """Whether `step` waits only for publication of outputs that `agent` already has."""
    if step.state is not State.WAITING or step.missing == 0 or step.unbuilt:
        return False
    for needed in step.inputs:  # one of the hottest loops: a generator would cost as much again
        if needed.home is not agent and needed.state is not State.DONE:
            return False
    return True
