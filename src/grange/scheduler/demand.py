"""What work there is of each kind: for whoever decides how many agents there should be."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from grange.scheduler.facts import Phase, QueueKey
from grange.scheduler.ready import ReadyQueue
from grange.scheduler.shares import NO_BOUND, Account
from grange.scheduler.state import PRIORITY_NONE, Attempt, State, Step

COUNTED_MAX: Final = 20_000  # ready steps of a queue and project: more than there are places


@dataclass(frozen=True, slots=True)
class Demand:
    queue: QueueKey
    project: str
    waiting: int  # steps that may be begun, and have no place
    running: int  # attempts that hold or await a place
    is_lasting: bool = False  # of agents that no cloud takes away: last tries


def demand(
    queues: Iterable[ReadyQueue],
    attempts: Iterable[Attempt],
    accounts: Mapping[str, Account],
    must_last: Callable[[Step], bool],
) -> list[Demand]:
    """Work that agents do and could do at once; not what is paused, or beyond a project's quota.

    `must_last`: this step's next try is for an agent that is not taken away.
    """
    running: dict[tuple[QueueKey, str], int] = {}
    for attempt in attempts:
        if attempt.phase < Phase.BUILT:
            kind = attempt.step.queue, attempt.step.project
            running[kind] = running.get(kind, 0) + 1
    found = []
    room: dict[str, int] = {}  # of each project's quota
    for queue in queues:
        for project in queue.projects:
            if project not in room:
                account = accounts.get(project)
                free = NO_BOUND if account is None else account.running_max - account.running
                room[project] = max(0, free)
            ready, ready_last = _ready(queue, project, must_last)
            waiting_last = min(room[project], ready_last)
            room[project] -= waiting_last
            waiting = min(room[project], ready)
            room[project] -= waiting
            if waiting_last:
                found.append(Demand(queue.key, project, waiting_last, 0, is_lasting=True))
            held = running.pop((queue.key, project), 0)
            if waiting or held:
                found.append(Demand(queue.key, project, waiting, held))
    found += [Demand(queue, project, 0, n) for (queue, project), n in running.items()]
    return found


def _ready(queue: ReadyQueue, project: str, must_last: Callable[[Step], bool]) -> tuple[int, int]:
    """Steps in a heap, each once: those that have changed since are there more than once.

    Last tries, for agents that are not taken away, are counted apart.
    """
    seen = set()
    last = 0
    for entry in queue.projects[project]:
        step = entry[3]
        if (
            step.state is State.READY
            and step.missing == 0
            and step.priority != PRIORITY_NONE
            and step.project == project
            and step.seq not in seen
        ):
            seen.add(step.seq)
            last += (step.losses > 0 or bool(step.attempts)) and must_last(step)
            if len(seen) >= COUNTED_MAX:
                break
    return len(seen) - last, last
