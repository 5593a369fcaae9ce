"""One run: a farm, a plan of blows, a graph to build, and a verdict."""

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final
from uuid import uuid4

from grange.client.models import SubmitRequest
from grange.errors import GrangeError
from tests.crash import audit
from tests.crash.farm import CrashFarm, Database, crash_farm
from tests.crash.graph import Graph, draw, expression
from tests.crash.person import Person
from tests.crash.plan import Blow
from tests.crash.plan import draw as draw_blows

BLOWS_PER_NODE_S: Final = 0.08  # the work is spread over so long, and blows fall meanwhile
BLOWS_S_MIN: Final = 6.0
PORTIONS: Final = 6  # builds come in so many calls, since a farm must take work in when hurt, too
# After the last blow: an agent gives up a daemon or a download that hangs only after 150 s.
HANG_S: Final = 240.0
LOOK_S: Final = 0.25  # between two looks at who has ended by itself
REVIVED_MAX: Final = 20  # a process that ends so often by itself will not stay up
LOG_TAIL: Final = 4_000  # characters of each log in a dump

# The line that ends one names the error; a chained one ends with the last of its errors.
_TRACEBACK: Final = re.compile(
    r"^Traceback \(most recent call last\):\n(?:[ |+].*\n)+(\S.*)$", re.MULTILINE
)


@dataclass(slots=True)
class Verdict:
    seed: int
    database: Database
    blows: list[str] = field(default_factory=list)  # those that fell
    problems: list[str] = field(default_factory=list)
    dump: str = ""  # of a run that hung or found problems
    figures: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        head = f"seed {self.seed} on {self.database}: "
        head += f"{len(self.problems)} problems" if self.problems else "all as it should be"
        figures = ", ".join(f"{name} {figure:g}" for name, figure in self.figures.items())
        lines = [f"{head} ({figures})", *self.blows, *(f"PROBLEM {each}" for each in self.problems)]
        return "\n".join([*lines, self.dump] if self.dump else lines)


def run(root: Path, database: Database, seed: int, derivations: int) -> Verdict:
    """Never raises for what the farm did; `root` is empty and is left for whoever wants to look."""
    verdict = Verdict(seed, database)
    random = Random(f"{seed} {derivations}")
    graph = draw(random, derivations)
    blows_s = max(BLOWS_S_MIN, BLOWS_PER_NODE_S * derivations)
    with crash_farm(root, database) as farm:
        made = farm.instantiate(expression(graph, str(seed)))
        drvs = [drv for drv, _ in made]
        plan = draw_blows(random, farm.victims, blows_s)
        roots = list(graph.roots)
        random.shuffle(roots)
        portion = -(-len(roots) // PORTIONS)
        began = time.monotonic()
        person = Person(farm, [drvs[n] for n in roots], blows_s / (PORTIONS + 1), portion)
        try:
            fallen = _Conductor(farm, plan, verdict).conduct(person)
            verdict.figures["seconds"] = round(time.monotonic() - began, 1)
            verdict.figures["retries of the client"] = person.retries
            if not person.over.is_set():
                verdict.problems.append(f"not over {HANG_S:g} s after the last blow, or not up")
            elif person.problem:
                verdict.problems.append(f"the client: {person.problem}")
            else:
                made_of = _Made(graph, drvs, [output for _, output in made])
                verdict.problems += _audit(farm, made_of, person, fallen, verdict)
        finally:
            person.give_up()
        verdict.problems += _complaints(farm)
        if verdict.problems:
            verdict.dump = _dump(farm, person)
    return verdict


class _Conductor:
    """Lets the blows of a plan fall, each at its time, until the work is over."""

    def __init__(self, farm: CrashFarm, plan: Sequence[Blow], verdict: Verdict) -> None:
        self._farm = farm
        self._plan = list(plan)
        self._verdict = verdict
        self._healing: list[tuple[float, Blow, float]] = []  # when, what, since (wall clock)
        self._fallen: list[audit.Struck] = []
        self._revived = 0

    def conduct(self, person: Person) -> Sequence[audit.Struck]:
        """Return when the person is through, all processes up again; or when it hangs."""
        began = time.monotonic()
        calm_since = began
        while not person.over.wait(self._until_next(began)):
            now_s = time.monotonic() - began
            self._revive(now_s)
            for when, blow, since in [each for each in self._healing if each[0] <= now_s]:
                self._heal(when, blow, since)
            while self._plan and self._plan[0].at_s <= now_s:
                self._strike(self._plan.pop(0), now_s)
            if self._plan or self._healing:
                calm_since = time.monotonic()
            elif time.monotonic() - calm_since > HANG_S or self._revived > REVIVED_MAX:
                break
        for each in list(self._healing):
            self._heal(*each)
        return self._fallen

    def _until_next(self, began: float) -> float:
        due = [when for when, _, _ in self._healing] + [blow.at_s for blow in self._plan[:1]]
        next_s = min(due, default=LOOK_S + time.monotonic() - began)
        return min(LOOK_S, max(0.0, began + next_s - time.monotonic()))

    def _strike(self, blow: Blow, now_s: float) -> None:
        # On a busy machine the last blow may have fallen late: who is hit is up before.
        for each in [each for each in self._healing if each[1].target == blow.target]:
            self._heal(*each)
        self._farm.strike(blow.target, blow.kind)
        self._verdict.blows.append(str(blow))
        self._healing.append((now_s + blow.lasts_s, blow, time.time()))

    def _heal(self, when: float, blow: Blow, since: float) -> None:
        self._healing.remove((when, blow, since))
        self._farm.heal(blow.target, blow.kind)
        agent = blow.target if self._farm.is_agent(blow.target) else ""
        self._fallen.append(audit.Struck(agent, since, time.time()))

    def _revive(self, now_s: float) -> None:
        for name, words in self._farm.revive().items():
            self._revived += 1
            self._verdict.blows.append(f"{now_s:5.1f} s  {name} ended by itself: {words}")
            # A coordinator may give up where its database is gone: it is started again by whoever
            # watches over it. Nothing else explains an end.
            if self._farm.is_agent(name) or not self._is_database_hurt():
                self._verdict.problems.append(
                    f"{name} ended by itself after {now_s:.1f} s: {words}"
                )

    def _is_database_hurt(self) -> bool:
        return self._verdict.database == "postgres" and any(
            "database" in line for line in self._verdict.blows
        )


@dataclass(frozen=True, slots=True)
class _Made:
    """A graph and what Nix made of it, by node."""

    graph: Graph
    drvs: Sequence[str]
    outputs: Sequence[str]

    def ledger(self, person: Person) -> audit.Ledger:
        return person.ask(
            lambda client: audit.Ledger.read(client, self.graph, self.drvs, self.outputs)
        )


def _audit(
    farm: CrashFarm,
    made: _Made,
    person: Person,
    fallen: Sequence[audit.Struck],
    verdict: Verdict,
) -> list[str]:
    ledger = made.ledger(person)
    keys = person.ask(lambda client: client.status().public_keys)
    verdict.figures["attempts"] = ledger.attempts_count
    verdict.figures["steps"] = len(ledger.steps)
    problems = list(audit.ends(ledger, person.builds()))
    problems += audit.attempts(ledger, fallen, farm.runs)
    problems += audit.store(farm.root, farm.urls, keys, ledger)
    return problems or _again(made, person)


def _again(made: _Made, person: Person) -> list[str]:
    """Submitted once more, what was built is at hand: nobody runs anything."""
    before = made.ledger(person).attempts_count
    graph = made.graph
    wanted = [made.drvs[root] for root in graph.roots if not graph.culprits[root]]
    request = SubmitRequest(drv_paths=wanted, ids=[str(uuid4()) for _ in wanted])
    answer = person.ask(lambda client: client.submit(request))
    outcomes = {build.outcome for build in answer.builds}
    problems = []
    if outcomes != {"cached"} or answer.steps:
        problems.append(f"submitted again, all should be cached: {outcomes}, {answer.steps} steps")
    if (after := made.ledger(person).attempts_count) != before:
        problems.append(f"submitted again, what was done led to {after - before} attempts")
    return problems


def _complaints(farm: CrashFarm) -> list[str]:
    """What no blow excuses in a log: an error that does not say whose fault it is."""
    return [
        f"{name} has a traceback in its log: {error}"
        for name, text in farm.logs()
        for error in dict.fromkeys(_TRACEBACK.findall(text))
        if not error.startswith("grange.errors.")
    ]


def _dump(farm: CrashFarm, person: Person) -> str:
    """What a person would look at first."""
    pieces = [_grange(farm, "list")]
    for id_ in list(person.ids.values()):
        try:
            with farm.client(farm.urls[0]) as client:
                if client.build(id_).outcome is None:
                    pieces.append(_grange(farm, "why", id_))
                    break
        except GrangeError as error:
            pieces.append(str(error))
            break
    for name, text in farm.logs():
        at = text.find("Traceback (most recent call last)")
        if at >= 0:
            pieces.append(f"--- first traceback of {name}\n{text[at - 500 : at + LOG_TAIL]}")
        pieces.append(f"--- end of the log of {name}\n{text[-LOG_TAIL:]}")
    return "\n".join(pieces)


def _grange(farm: CrashFarm, *arguments: str) -> str:
    try:
        return f"--- grange {' '.join(arguments)}\n{farm.grange(*arguments)}"
    except subprocess.TimeoutExpired:
        return f"--- grange {' '.join(arguments)} does not answer"
