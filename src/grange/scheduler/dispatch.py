"""Which ready step goes to which agent, and in what order."""

import heapq

from grange.scheduler import attempts, lasting
from grange.scheduler.matching import choose, choose_by, is_avoiding_all
from grange.scheduler.memory import Memory
from grange.scheduler.ready import Rank, ReadyQueue, local_head
from grange.scheduler.shares import Accounts
from grange.scheduler.state import Agent, Step

Lane = tuple[Rank, int, str, ReadyQueue | Agent]  # best step's rank, number, project, source


def dispatch(memory: Memory) -> None:
    """Give ready steps to agents with room, best step first."""
    if memory.pause is not None:
        return
    for agent in memory.agents.values():
        agent.free = agent.room(memory.now)
    if memory.last_tries:
        _serve_last_tries(memory)
    lanes, accounts = _lanes(memory), memory.accounts
    roomy = {  # the agents each queue may choose from: few, on a busy farm of many
        lane: [agent for agent in source.agents if agent.free > 0]
        for _, lane, _, source in lanes
        if isinstance(source, ReadyQueue)
    }
    held_back: list[tuple[Step, ReadyQueue]] = []
    while lanes:
        _, lane, project, source = heapq.heappop(lanes)
        if isinstance(source, Agent):
            if source.free <= 0:
                continue
            if accounts[source.local[0][3].project].is_full:
                _push_agent(lanes, lane, source, accounts)  # another lane began the last of it
                continue
            step = heapq.heappop(source.local)[3]
            if not lasting.is_kept_from(memory, step, source):  # else it waits for its inputs
                attempts.start(memory, step, source)
            _push_agent(lanes, lane, source, accounts)
            continue
        if accounts[project].is_full:
            _push_queue(lanes, lane, source, accounts)
            continue
        step = source.pop(project)
        if lasting.must_last(memory, step):
            held_back.append((step, source))  # there is no place for it: it would have it by now
            _push_queue(lanes, lane, source, accounts)
            continue
        chosen = _choose(memory, step, roomy[lane])
        if chosen is None and step.avoid and is_avoiding_all(step, source.agents, memory.now):
            step.avoid = ()
            chosen = _choose(memory, step, roomy[lane])
        if chosen is not None:
            attempts.start(memory, step, chosen)
            if chosen.free <= 0:
                roomy[lane].remove(chosen)
        else:
            held_back.append((step, source))
        if not any(agent.free > 0 for agent in roomy[lane]):
            continue
        _push_queue(lanes, lane, source, accounts)
    for step, queue in held_back:
        queue.push(step)


def _serve_last_tries(memory: Memory) -> None:
    """Begin those for which an agent that lasts has room; one that may be such waits for word."""
    for step in lasting.waiting(memory):
        if memory.accounts[step.project].is_full:
            continue
        agents = lasting.able(memory, step)
        roomy = [agent for agent in agents if agent.free > 0]
        chosen = _choose(memory, step, roomy)
        if chosen is None and roomy and is_avoiding_all(step, agents, memory.now):
            step.avoid = ()
            chosen = _choose(memory, step, roomy)
        if chosen is not None:
            attempts.start(memory, step, chosen)
        elif (agent := lasting.unjudged(memory, step)) is not None:
            agent.free = 0


def _choose(memory: Memory, step: Step, agents: list[Agent]) -> Agent | None:
    order = memory.policy.agent_order
    return choose(step, agents) if order is None else choose_by(order, step, agents)


def _push_agent(lanes: list[Lane], lane: int, agent: Agent, accounts: Accounts) -> None:
    rank = local_head(agent, accounts)
    if rank is not None:
        heapq.heappush(lanes, (rank, lane, "", agent))


def _push_queue(lanes: list[Lane], lane: int, queue: ReadyQueue, accounts: Accounts) -> None:
    head = queue.head(accounts)
    if head is not None:
        heapq.heappush(lanes, (head[0], lane, head[1], queue))


def _lanes(memory: Memory) -> list[Lane]:
    """Where ready steps wait that some agent has room for: a heap of queues and agents."""
    lanes: list[Lane] = []
    for agent in memory.agents.values():
        if agent.local and agent.free > 0:
            rank = local_head(agent, memory.accounts)
            if rank is not None:
                lanes.append((rank, len(lanes), "", agent))
    for queue in memory.queues.values():
        if queue.projects and any(agent.free > 0 for agent in queue.agents):
            head = queue.head(memory.accounts)
            if head is not None:
                lanes.append((head[0], len(lanes), head[1], queue))
    heapq.heapify(lanes)
    return lanes
