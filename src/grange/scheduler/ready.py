"""The queues of ready steps and their order (DESIGN, "Schedule").

Order: global priority, then the project that uses least of its share, then the longest expected
path to the end, then age. Entries are never removed when a step changes: they are recognised as
stale when they come to the head.
"""

import heapq

from grange.scheduler.facts import QueueKey
from grange.scheduler.shares import Accounts
from grange.scheduler.state import PRIORITY_NONE, Agent, State, Step
from grange.scheduler.strategy import StepOrder

Entry = tuple[float, float, int, Step]
Rank = tuple[float, float, float, int]  # lower goes first


def entry(step: Step, order: StepOrder | None) -> Entry:
    if order is None:
        return (-step.priority, -step.path_s, step.seq, step)
    return (*order(step), step.seq, step)


def _is_stale(item: Entry) -> bool:
    """In the default order."""
    step = item[3]
    return (
        step.state is not State.READY
        or step.missing > 0
        or item[0] != -step.priority
        or item[1] != -step.path_s
    )


def _is_over(item: Entry) -> bool:
    """In any order: nothing of it is to be begun."""
    step = item[3]
    return step.state is not State.READY or step.missing > 0 or step.priority == PRIORITY_NONE


def _bring_up(heap: list[Entry], order: StepOrder) -> None:
    """Let the first be where it belongs by now, though nobody said that its rank had changed.

    Each entry is looked at once, whatever the order says of it.
    """
    fresh: Entry | None = None
    while heap and heap[0] is not fresh and not _is_over(heap[0]):
        now = entry(heap[0][3], order)
        if now[:2] == heap[0][:2]:
            return
        fresh = now
        heapq.heapreplace(heap, now)


class ReadyQueue:
    """Ready steps that are alike in what they ask of an agent, a heap for each project."""

    __slots__ = ("agents", "hopeless_since", "key", "order", "projects")

    def __init__(self, key: QueueKey, order: StepOrder | None = None) -> None:
        self.key = key
        self.order = order  # None: the default
        self.projects: dict[str, list[Entry]] = {}
        self.agents: list[Agent] = []  # those that fit, in order of joining
        self.hopeless_since: float | None = None  # steps wait, and no agent fits or could appear

    def push(self, step: Step) -> None:
        """Let a ready step wait here, with the rank it has now; not while it is held back."""
        if step.priority != PRIORITY_NONE:
            heap = self.projects.setdefault(step.project, [])
            heapq.heappush(heap, entry(step, self.order))

    def head(self, accounts: Accounts) -> tuple[Rank, str] | None:
        """Rank of the best step and the project it is of; None where nothing may be begun."""
        best: tuple[Rank, str] | None = None
        for project, heap in list(self.projects.items()):
            first: Entry | None = heap[0] if heap else None
            # Looked at here first, because most are what they were and a call costs as much again.
            if (
                first is None
                or self.order is not None
                or _is_stale(first)
                or first[3].project != project
            ):
                first = self._first(project)
                if first is None:
                    continue
            account = accounts[project]
            if account.running >= account.running_max:
                continue
            if account.since != accounts.now:
                account.settle(accounts.now, accounts.mean_s)
            rank = (first[0], account.use, first[1], first[2])
            if best is None or rank < best[0]:
                best = (rank, project)
        return best

    def _first(self, project: str) -> Entry | None:
        """The project's best ready step; where it has none, its heap is gone."""
        heap = self.projects[project]
        is_stale = _is_stale
        if self.order is not None:
            _bring_up(heap, self.order)
            is_stale = _is_over
        while heap:
            first = heap[0]
            if not is_stale(first) and first[3].project == project:
                return first
            heapq.heappop(heap)
        del self.projects[project]
        return None

    def waiting(self) -> str | None:
        """A project that has a ready step, whether or not it may be begun now; None for none."""
        for project in list(self.projects):
            if self._first(project) is not None:
                return project
        return None

    def pop(self, project: str) -> Step:
        """The step that `head` or `waiting` spoke of."""
        return heapq.heappop(self.projects[project])[3]


def local_head(agent: Agent, accounts: Accounts) -> Rank | None:
    """As `ReadyQueue.head`, of the steps whose inputs are only on this agent so far.

    One whose project has all it may run is left to wait for its inputs' publication.
    """
    heap = agent.local
    while heap:
        first = heap[0]
        step = first[3]
        is_fresh = agent.order is not None or (
            first[0] == -step.priority and first[1] == -step.path_s
        )
        if is_fresh and is_ready_at(step, agent):
            account = accounts.settled(step.project)
            if account.running < account.running_max:
                return (first[0], account.use, first[1], first[2])
        heapq.heappop(heap)
    return None


def is_ready_at(step: Step, agent: Agent) -> bool:
    """Whether `step` waits only for publication of outputs that `agent` already has."""
    if step.state is not State.WAITING or step.missing == 0 or step.unbuilt:
        return False
    if step.priority == PRIORITY_NONE:
        return False
    for needed in step.inputs:  # one of the hottest loops: a generator would cost as much again
        if needed.home is not agent and needed.state is not State.DONE:
            return False
    return True
