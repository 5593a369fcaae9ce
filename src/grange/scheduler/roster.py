"""The agents: who is here, whose lease lives, and what becomes of what they hold."""

from dataclasses import replace
from typing import Final

from grange.scheduler import attempts, steps, telling, watchdog
from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.facts import (
    NO_AGENT_RULE,
    AgentId,
    AgentSpec,
    EventKind,
    Outcome,
    Phase,
    Room,
    Usage,
)
from grange.scheduler.matching import misfit, refusal
from grange.scheduler.memory import Memory, Timer
from grange.scheduler.state import Agent, Attempt, State, Step

LATE_S: Final = 0.5  # a lease whose end is noticed later than this ended while nobody listened
HELD_UP_S: Final = 2.0  # woken later than this, the farm itself was held up: no lease is current
PRESSURE_PLACES: Final = 4  # times its places: pressure says nothing new before a heartbeat
RECONNECT_S: Final = 2.0  # an agent cut off for longer may have its steps tried elsewhere as well


def join(memory: Memory, spec: AgentSpec) -> None:
    """Let it in, unless its identity is taken by a session that may live."""
    agent = memory.agents.get(spec.id)
    if agent is not None and agent.spec.session != spec.session:
        is_heir = spec.previous_session == agent.spec.session and not agent.is_connected
        if not is_heir and agent.lease_until > memory.now:
            reason = (
                f"agent {spec.id} is already here in another session, whose lease ends in "
                f"{agent.lease_until - memory.now:.0f} s; if two machines share one state "
                "directory, give one of them its own"
            )
            memory.out.append(do.RefuseAgent(spec.id, spec.session, reason))
            return
        _forget(memory, agent, "another session of it took its place")
        agent = None
    is_new = agent is None
    if agent is None:
        agent = _admit(memory, spec, 0.0)
    elif agent.said != spec:
        heed(memory, agent, spec)
    agent.is_connected = True
    for attempt in agent.attempts.values():
        attempt.order = 0  # of a tunnel that is no more: the first heartbeat tells its fate
    _renew(memory, agent)
    _unsuspect(memory, agent)
    memory.out.append(do.SaveAgent(spec, memory.now))
    if is_new:
        telling.agent(memory, EventKind.AGENT_JOINED, spec.id, "")
    memory.out.append(do.AcceptAgent(spec.id, spec.session))


def expect(memory: Memory, event: on.AgentAwaited) -> None:
    """Take its attempts over as they were committed; it will say how they stand."""
    agent = _admit(memory, event.spec, memory.now)
    _renew(memory, agent)
    for id_, step_id in event.attempts:
        step = memory.steps.get(step_id)
        if step is None or step.state >= State.PUBLISHING:
            memory.out.append(
                do.SaveAttemptEnded(
                    id_, step_id, Outcome.CANCELLED, steps.SUPERSEDED, Usage(), memory.now
                )
            )
            continue
        attempts.adopt(memory, id_, step, agent)
    for attempt in list(agent.attempts.values()):
        for needed in attempt.step.inputs:
            _infer_built(needed, attempt)


def _infer_built(step: Step, dependant: Attempt) -> None:
    """The dependant was sent after it to the same agent, and it is not done: it was built there.

    Where the dependant was sent before, the step was done then, and is built again after a loss.
    """
    agent = dependant.agent
    if step.state is not State.ACTIVE or step.home is not None:
        return
    for attempt in step.attempts:
        is_before = attempt.agent is agent and attempt.id < dependant.id
        if is_before and attempt.phase < Phase.BUILT:
            attempt.phase = Phase.BUILT
            agent.occupied -= 1
            agent.delivering += 1
            steps.settle_home(step, agent)


def heard(memory: Memory, event: on.AgentHeard) -> None:
    """Renew its lease, and make what it lists and what it should list agree."""
    agent = _agent(memory, event.agent, event.session)
    if agent is None:
        reason = "nothing was heard of it for a whole lease; it may join again at once"
        memory.out.append(do.RefuseAgent(event.agent, event.session, reason))
        return
    if not agent.is_connected:
        # The end of its older tunnel was told only after the join on this one.
        agent.is_connected = True
        _unsuspect(memory, agent)
    agent.heard = memory.now
    agent.orders = max(agent.orders, event.orders_seen)  # it may have seen an earlier core's
    _renew(memory, agent)
    agent.is_draining = event.is_draining
    agent.measurements = event.measurements
    agent.refusal = refusal(agent.spec, event.measurements, memory.policy.room)
    watchdog.note(memory, event.progress)
    listed = dict(event.attempts)
    for id_, phase in sorted(event.attempts):  # inputs first, as they were sent
        attempt = attempts.of_agent(memory, event.agent, id_, phase)
        if attempt is not None:
            attempts.advance(memory, attempt, phase)
    for attempt in list(agent.attempts.values()):
        if attempt.id in listed or attempt.phase is Phase.STORED:
            continue
        if attempt.id not in memory.attempts:
            continue  # ended by the loss of one before it
        is_overdue = memory.now - max(attempt.sent, memory.held_up) > 2 * memory.policy.lease_s
        if attempt.order <= event.orders_seen or is_overdue:
            _unlisted(memory, attempt)
    watchdog.check(memory, agent)
    if agent.is_draining:
        _let_go(memory, agent)


def _let_go(memory: Memory, agent: Agent) -> None:
    """What it has delivered may wait for a step that it alone can build once it is back."""
    held = agent.attempts.values()
    if all(attempt.phase is Phase.STORED for attempt in held):
        memory.out += [do.SettleAttempt(agent.spec.id, attempt.id, True) for attempt in held]


def _unlisted(memory: Memory, attempt: Attempt) -> None:
    """The agent does not know an attempt it should: the order never arrived, or it forgot."""
    if attempt.phase > Phase.SENT:
        attempts.lose(memory, attempt)
        return
    step = attempt.step
    steps.end_attempt(memory, attempt, Outcome.RETURNED, "the order never reached the agent")
    steps.requeue(memory, step)


def cut(memory: Memory, event: on.AgentCut) -> None:
    agent = _agent(memory, event.agent, event.session)
    if agent is not None and agent.is_connected:
        agent.is_connected = False
        agent.cut_since = memory.now
        memory.set_timer(memory.now + RECONNECT_S, Timer.CUT, agent)


def left(memory: Memory, event: on.AgentLeft) -> None:
    agent = _agent(memory, event.agent, event.session)
    if agent is not None:
        _forget(memory, agent, "it said goodbye", is_goodbye=True)


def _agent(memory: Memory, id_: AgentId, session: str) -> Agent | None:
    agent = memory.agents.get(id_)
    return agent if agent is not None and agent.spec.session == session else None


def _admit(memory: Memory, said: AgentSpec, lease_until: float) -> Agent:
    agent = memory.agents[said.id] = Agent(said, lease_until)
    heed(memory, agent, said)
    _enlist(memory, agent)
    return agent


def heed(memory: Memory, agent: Agent, said: AgentSpec) -> None:
    """Let hold what the agent says of itself and what operators say of it."""
    rule = memory.agent_rules.get(said.id, NO_AGENT_RULE)
    agent.said = said
    policy = memory.policy
    agent.order = policy.step_order
    factor = PRESSURE_PLACES if policy.room is Room.PRESSURE else 1
    agent.places = said.max_jobs * factor
    agent.pause = rule.reason if rule.is_paused else None
    tags = tuple(sorted({*said.tags, *rule.tags})) if rule.tags else said.tags
    spec = replace(said, tags=tags)
    if agent.spec != spec:
        agent.spec = spec
        _enlist(memory, agent)


def _enlist(memory: Memory, agent: Agent) -> None:
    for queue in memory.queues.values():
        if agent in queue.agents:
            queue.agents.remove(agent)
        if not misfit(agent.spec, queue.key):
            queue.agents.append(agent)


def _renew(memory: Memory, agent: Agent) -> None:
    agent.lease_until = memory.now + memory.policy.lease_s
    if not agent.is_timed:
        agent.is_timed = True
        memory.set_timer(agent.lease_until, Timer.LEASE, agent)


def excuse(memory: Memory, late_s: float) -> None:
    """The farm was woken late, held up by its journal or its machine.

    What agents said meanwhile may wait to be read. After a long hold-up nobody could have renewed;
    after a short one only leases that ended in it get a fresh term, each for its own lateness, so
    that a farm which is often a little late still notices who is gone.
    """
    is_long = late_s > HELD_UP_S
    if is_long:
        memory.held_up = memory.now
    for agent in memory.agents.values():
        if is_long or memory.now - agent.lease_until > LATE_S:
            _renew(memory, agent)


def watch(memory: Memory, kind: Timer, agent: Agent) -> None:
    """A timer of it went off: has its lease ended, or is it cut off for long?"""
    if agent.lease_until <= memory.now:
        _forget(memory, agent, "nothing was heard of it for a whole lease")
    elif kind is Timer.LEASE:
        memory.set_timer(agent.lease_until, Timer.LEASE, agent)
    elif (
        kind is Timer.CUT and not agent.is_connected and memory.now - agent.cut_since >= RECONNECT_S
    ):
        _suspect(memory, agent)


def _suspect(memory: Memory, agent: Agent) -> None:
    """Cut off for a while: let others try what it holds, without taking it away."""
    agent.is_suspect = True
    for attempt in list(agent.attempts.values()):
        if attempt.phase is not Phase.STORED:
            steps.requeue(memory, attempt.step)


def _unsuspect(memory: Memory, agent: Agent) -> None:
    if not agent.is_suspect:
        return
    agent.is_suspect = False
    for attempt in agent.attempts.values():
        if attempt.step.state < State.ACTIVE:
            attempt.step.state = State.ACTIVE
            steps.show(memory, attempt.step, attempt)


def _forget(memory: Memory, agent: Agent, reason: str, *, is_goodbye: bool = False) -> None:
    """It holds no attempt any more; after a goodbye those it never received cost nothing."""
    telling.agent(memory, EventKind.AGENT_LOST, agent.spec.id, reason)
    agent.is_connected = False
    agent.is_suspect = True
    del memory.agents[agent.spec.id]
    for queue in memory.queues.values():
        if agent in queue.agents:
            queue.agents.remove(agent)
    for attempt in list(agent.attempts.values()):
        if attempt.id not in memory.attempts or attempt.phase is Phase.STORED:
            continue
        if is_goodbye:
            _unlisted(memory, attempt)
        else:
            attempts.lose(memory, attempt)
    agent.local = []
