"""What must be true once all builds have ended, whatever was done to the farm meanwhile.

Each function returns one sentence for each thing that is wrong.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Final

from grange.client.api import GrangeClient
from grange.client.models import AttemptView, BuildView, StepState, StepView
from grange.errors import PeerError
from grange.scheduler.facts import Outcome
from tests.crash.graph import EXIT_CODE, Graph, contents
from tests.integration.farm import NIX_CONFIG

# How long after a blow the farm may still act on it: a lease and some beats of a busy machine.
AFTERMATH_S: Final = 12.0

_OTHERS_FAULT: Final = (
    Outcome.AGENT_LOST,
    Outcome.RETURNED,
    Outcome.INPUTS_MISSING,
    Outcome.CANCELLED,
)

# An attempt that ended so does not count against the step's having been tried once.
_SPOILT: Final = frozenset(
    outcome for outcome in Outcome if outcome.is_infrastructure or outcome in _OTHERS_FAULT
)


@dataclass(frozen=True, slots=True)
class Struck:
    """A blow as it fell, by the wall clock."""

    agent: str  # "" where it hit a coordinator or the database, and so all of them
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the farm remembers of a run; all by the numbers of nodes."""

    graph: Graph
    drvs: Sequence[str]
    outputs: Sequence[str]
    steps: Mapping[int, StepView]  # those a farm was given
    attempts: Mapping[int, Sequence[AttemptView]]

    @classmethod
    def read(
        cls, client: GrangeClient, graph: Graph, drvs: Sequence[str], outputs: Sequence[str]
    ) -> "Ledger":
        steps = {}
        for number, drv in enumerate(drvs):
            try:
                steps[number] = client.step_of(drv)
            except PeerError:  # never sent: the step is missed in `ends`
                continue
        attempts = {number: client.attempts(step.id) for number, step in steps.items()}
        return cls(graph, drvs, outputs, steps, attempts)

    @property
    def attempts_count(self) -> int:
        return sum(map(len, self.attempts.values()))


def ends(ledger: Ledger, builds: Mapping[str, BuildView]) -> Iterator[str]:
    """Every build ended as its graph says, and blames who is to blame."""
    graph = ledger.graph
    wanted = [root for root in graph.roots if not graph.culprits[root]]
    for root in graph.roots:
        build, culprits = builds[ledger.drvs[root]], graph.culprits[root]
        name = graph.nodes[root].name
        if not culprits:
            if build.outcome not in (Outcome.SUCCEEDED, Outcome.CACHED):
                yield f"build of {name} should succeed, but is: {build.outcome} {build.cause}"
            continue
        is_itself = graph.nodes[root].is_failing and len(culprits) == 1
        may = [Outcome.BUILD_FAILED] if is_itself else [Outcome.DEPENDENCY_FAILED]
        if build.outcome not in may:
            yield f"build of {name} should end with {may}, but is: {build.outcome} {build.cause}"
        blamed = {ledger.drvs[each] for each in culprits}
        cause = build.cause
        if cause is None or cause.outcome != Outcome.BUILD_FAILED or cause.drv_path not in blamed:
            yield f"build of {name} should blame one of {sorted(blamed)}, but blames {cause}"
        elif f"exit code {EXIT_CODE}" not in cause.message:
            yield f"build of {name} does not say how its culprit ended: {cause}"
    for number in sorted(graph.below(wanted)):
        step = ledger.steps.get(number)
        if step is None or step.state is not StepState.DONE:
            yield f"{graph.nodes[number].name} should be done, but is: {step}"
    for number, step in ledger.steps.items():
        if graph.culprits[number] and step.state is StepState.DONE:
            yield f"{step.name} cannot have been built, and yet is done"
        if step.outcome == Outcome.BUILD_FAILED and not graph.nodes[number].is_failing:
            yield f"{step.name} is said to have failed, but cannot: {step.message}"


def attempts(ledger: Ledger, blows: Sequence[Struck], runs: Path) -> Iterator[str]:
    """Nothing was built after it was finished, or twice without a blow that explains it."""
    for number, found in ledger.attempts.items():
        name = ledger.graph.nodes[number].name
        finals = [a for a in found if a.outcome not in _SPOILT]
        if len(finals) > 1:
            yield f"{name} was finished more than once: {finals}"
        for attempt in found:
            if attempt.ended is None:
                yield f"{name}: attempt {attempt.id} never ended: {attempt}"
        for final in finals:
            late = [a.id for a in found if final.ended is not None and a.started > final.ended]
            if late:
                yield f"{name} was finished by attempt {final.id}, and {late} began after it"
        ordered = sorted(found, key=lambda attempt: attempt.started)
        for earlier, later in pairwise(ordered):
            if not _is_explained(earlier, later, blows):
                yield f"{name}: no blow explains why {later} began after or beside {earlier}"
        twice = [
            (one.id, other.id)
            for one, other in combinations(ordered, 2)
            if one.agent == other.agent and other.started < (one.ended or other.started)
        ]
        if twice:
            yield f"{name}: one agent had it twice at once: attempts {twice}"
        file = runs / name
        begun = file.read_bytes().count(b"\n") if file.exists() else 0
        if begun > len(found):
            yield f"{name}: its builder ran {begun} times for {len(found)} attempts"


def _is_explained(earlier: AttemptView, later: AttemptView, blows: Sequence[Struck]) -> bool:
    return any(
        blow.agent in ("", earlier.agent_name)
        and blow.began <= later.started
        and blow.ended + AFTERMATH_S >= earlier.started
        for blow in blows
    )


def store(root: Path, urls: Sequence[str], keys: Sequence[str], ledger: Ledger) -> Iterator[str]:
    """Stock Nix fetches every output that must exist, believes it, and finds it sound and right."""
    made = contents(ledger.graph, ledger.outputs)
    wanted = [root for root in ledger.graph.roots if not ledger.graph.culprits[root]]
    expected = sorted(ledger.graph.below(wanted))
    target = root / "fetched"
    options = ["--option", "trusted-public-keys", " ".join(keys), "--option", "require-sigs"]
    paths = [ledger.outputs[number] for number in expected]
    fetch = ["nix", "copy", "--from", urls[0], "--to", str(target), *options, "true", *paths]
    check = ["nix-store", "--store", str(target), "--verify", "--check-contents"]
    for command in (fetch, check):
        home = str(root / "nix-home")
        environment = {"PATH": os.environ["PATH"], "HOME": home, "NIX_CONFIG": NIX_CONFIG}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            yield f"{command[0]} {command[1]} ended with {done.returncode}: {done.stderr[-2000:]}"
            return
    for number in expected:
        found = (target / ledger.outputs[number].lstrip("/")).read_bytes()
        if found != made[number]:
            yield f"{ledger.graph.nodes[number].name} should hold {made[number]!r}, not {found!r}"
