"""Bugs planted on purpose: each must be caught by some oracle, or the oracles are too weak."""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from grange.coordinator import checks, loop, recovery, submit
from grange.coordinator.loop import WriterLoop
from grange.scheduler import (
    attempts,
    core,
    mending,
    roster,
    steps,
    submission,
    unsupported,
    watchdog,
)
from grange.scheduler.state import Agent


@dataclass(frozen=True, slots=True)
class Mutant:
    """One function whose source has `old` replaced by `new`."""

    name: str
    owner: type[Any] | ModuleType
    function: str
    old: str
    new: str = "pass"
    seed: int = 0  # tried first: it showed there once, and most come so late that it takes seconds


MUTANTS = (
    Mutant("leases never renewed", roster, "heard", "_renew(memory, agent)"),
    Mutant(
        "leases never end",
        roster,
        "watch",
        '_forget(memory, agent, "nothing was heard of it for a whole lease")',
    ),
    Mutant("suspicion never ends", roster, "join", "_unsuspect(memory, agent)"),
    Mutant("published before inputs", attempts, "stored", "if step.missing == 0:", "if True:"),
    Mutant("failures not counted", attempts, "count_failure", "step.failures += 1", seed=153),
    Mutant("outputs outlive their agent", steps, "end_attempt", "_lose_home(memory, attempt.step)"),
    Mutant("wishes never withdrawn", steps, "unwant", "step.wanted -= 1"),
    Mutant("shared steps die with one build", steps, "unwant", "step.wanted > 0", "False"),
    Mutant(
        "deliveries never settled",
        steps,
        "_finish",
        "memory.out.append(do.SettleAttempt(attempt.agent.spec.id, attempt.id, True))",
    ),
    Mutant(
        "orders under way thought lost",
        roster,
        "heard",
        "attempt.order <= event.orders_seen or is_overdue",
        "True",
        seed=48,
    ),
    Mutant(
        "lost orders thought under way",
        roster,
        "heard",
        "attempt.order <= event.orders_seen or is_overdue",
        "False",
        seed=21,
    ),
    Mutant(
        "order numbers start over",
        roster,
        "heard",
        "agent.orders = max(agent.orders, event.orders_seen)",
        "agent.orders = 0",
        seed=51,
    ),
    Mutant(
        "heirs inherit nothing",
        roster,
        "join",
        '_forget(memory, agent, "another session of it took its place")',
    ),
    Mutant("back-off never ends", core, "_wake", "steps.make_ready(memory, subject)"),
    Mutant(
        "failures forgotten",
        steps,
        "fail",
        "memory.out.append(do.SaveStepF",
        "id(do.SaveStepF",
        seed=69,
    ),
    Mutant("dependants outlive a failure", steps, "sink", "todo += failed.dependants"),
    Mutant("places not counted", Agent, "room", "- self.occupied", ""),
    Mutant("stalls cost leases", roster, "excuse", "_renew(memory, agent)", seed=287),
    Mutant("deaf agents not told", roster, "heard", "memory.out.append(do.Ref", "id(do.Ref"),
    Mutant("late cuts believed", roster, "heard", "agent.is_connected = True", "return", seed=31),
    Mutant(
        "early cancellations lost",
        submission,
        "cancel",
        "steps.finish_build(memory, event.build, Outcome.CANCELLED, cause)",
    ),
    Mutant(
        "ended builds revived",
        steps,
        "finish_build",
        "memory.ended_builds.finish(build, outcome)",
        seed=262,
    ),
    Mutant(
        "late results not recorded",
        attempts,
        "_take_back",
        "memory.out.append(do.SaveAttemptRevived(id_))",
    ),
    Mutant(
        "the smallest limit is final",
        attempts,
        "_blame_build",
        "is_final(cause, step.limits)",
        "True",
        seed=109,
    ),
    Mutant(
        "what overran a limit overruns any",
        submission,
        "doomed_steps",
        "is_final(cause, spec.limits.strictest(wanted))",
        "True",
        seed=177,
    ),
    Mutant(
        "tries not counted",
        attempts,
        "_blame_build",
        "tries=step.past.tries + 1",
        "tries=0",
        seed=17,
    ),
    Mutant(
        "the first try is the last",
        attempts,
        "_blame_build",
        "step.past.tries < memory.policy.build_tries",
        "False",
    ),
    Mutant("no agent waited for", unsupported, "watch", "queue.agents or", "", seed=191),
    Mutant("waiting in vain for ever", unsupported, "watch", "_give_up(memory, queue)"),
    Mutant(
        "waits in vain added up",
        unsupported,
        "watch",
        "queue.hopeless_since = None\n            continue",
        "continue",
        seed=86,
    ),
    Mutant("lost inputs not waited for", mending, "_rebuild", "step.missing += 1", seed=22),
    Mutant("what stands still is not stopped", watchdog, "check", "verdict is None", "True"),
    Mutant(
        "set aside for ever",
        Agent,
        "takes_work",
        "now >= self.aside_until",
        "not self.aside_until",
        seed=666,
    ),
    Mutant("checks not asked for", checks, "check_steps", "if build.is_check", "if False"),
    Mutant(
        "action before the commit",
        WriterLoop,
        "run",
        "await self._commit(effects)",
        "actor.act(effects); await self._commit(effects)",
    ),
    Mutant("answer before the commit", WriterLoop, "settle", "await done"),
    Mutant(
        "a refused commit forgotten", WriterLoop, "_commit", "await asyncio.sleep(wait_s)", "return"
    ),
    Mutant(
        "a doubtful commit believed", WriterLoop, "run", "self._doubt(batch, error)", "continue"
    ),
    Mutant(
        "a fenced leader acts",
        WriterLoop,
        "run",
        "self._doubt(batch, error)\n            raise",
        "self._doubt(batch, error)",
    ),
    Mutant(
        "recovered narinfos not put", recovery, "recover", "await publish(entry.outputs)", seed=27
    ),
    Mutant(
        "attempts forgotten in a crash",
        recovery,
        "recover",
        "AgentAwaited(agent.spec, agent.attempts) for agent in past.agents",
        "",
    ),
)


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The mutant lives in this process until the context ends."""
    original = getattr(mutant.owner, mutant.function)
    source = textwrap.dedent(inspect.getsource(original))
    assert mutant.old in source, f"{mutant.name}: {mutant.old!r} is not in {mutant.function}"
    names: dict[str, Any] = {}
    exec(source.replace(mutant.old, mutant.new), original.__globals__, names)
    places = [mutant.owner]
    if mutant.owner is checks:
        places += [recovery, submit]
    if mutant.owner is recovery:
        places.append(loop)  # where its functions are used by their own names
    for place in places:
        setattr(place, mutant.function, names[mutant.function])
    try:
        yield
    finally:
        for place in places:
            setattr(place, mutant.function, original)
