"""What will be done to whom, and when: drawn before a run, so that a seed says it all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

Kind = Literal["kill", "freeze"]

BETWEEN_S: Final = 0.8  # between two blows, on average
QUIET_S: Final = 1.0  # for a target that was hit, before it is again


@dataclass(frozen=True, slots=True)
class Victim:
    """How often a process is hit, against others, and for how long it is gone at most."""

    weight: float
    killed_s: float
    frozen_s: float


@dataclass(frozen=True, slots=True)
class Blow:
    at_s: float  # from the start of the run
    target: str
    kind: Kind
    lasts_s: float  # until it is started again, or goes on

    def __str__(self) -> str:
        return f"{self.at_s:5.1f} s  {self.kind:6} {self.target} for {self.lasts_s:.1f} s"


def draw(random: Random, victims: Mapping[str, Victim], until_s: float) -> Sequence[Blow]:
    """Blows in the order of time; none hits who is down."""
    free_at = dict.fromkeys(victims, 0.0)
    blows: list[Blow] = []
    at_s = 0.5
    while at_s < until_s:
        able = [name for name in victims if free_at[name] <= at_s]
        if able:
            target = random.choices(able, [victims[name].weight for name in able])[0]
            kind: Kind = random.choice(("kill", "freeze"))
            victim = victims[target]
            longest_s = victim.killed_s if kind == "kill" else victim.frozen_s
            blow = Blow(at_s, target, kind, random.uniform(0, longest_s))
            blows.append(blow)
            free_at[target] = at_s + blow.lasts_s + QUIET_S
        at_s += random.expovariate(1 / BETWEEN_S)
    return blows
