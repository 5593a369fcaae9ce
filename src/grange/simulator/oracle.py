"""What no fleet can go below: a lower bound on cost for given builds and given waits.

Given for each build j when it was ready r_j, how long it holds a place at the least d_j, and how
long it may be delayed w_j at the most, no schedule that keeps these delays costs less, whatever it
knows of the future, however it packs, and however many instances it may have.

Why. Let N(t) be the number of instances that serve at time t, each of at most c places, and b the
shortest boot. An instance that serves for s seconds is billed for b + s at the least (the floor of
60 s only adds to that), so the bill, in seconds, is at least the integral of N plus b for every
launch, and there is a launch wherever N rises: B >= ∫N + b·(sum of all rises of N).

1. *Must run.* j begins in [r_j, r_j + w_j] and holds on for d_j, so it surely runs in
   [r_j + w_j, r_j + d_j), if that is not empty. With M(t) such builds at t, N(t) >= K(t), where
   K = ceil(M / c). Cut N into levels, the k-th being where N >= k: the integral of N is the sum of
   the levels' lengths, a rise of N by n begins n levels, and N >= K says that level k covers
   where K >= k. So the least bill is the sum over levels of the cheapest cover of its pieces by
   itself: their lengths, b for the first, and for each gap either its length (stay) or b (end, and
   launch again), whichever is less. This is exact for M, and M leaves out only work.
2. *Work.* c·N(t) is at least what runs at t, so ∫N >= Σ d_j / c, and there is one launch.

The bound is the greater of the two, times the lowest price at which anything is sold. Any two sets
of builds that no pool can serve both of are bounded apart, and added.

A policy is held against the bound for its own delays: nothing that serves every build as early as
the policy did is cheaper than that. With all delays infinite only (2) is left.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from grange.capacity.facts import Market, Pool
from grange.capacity.matching import Kind, objection
from grange.simulator.cloud import HOUR_S

ROUNDING_S: Final = 1e-6  # what sums of floats may be off by


@dataclass(frozen=True, slots=True)
class Task:
    """A build, as the bound sees it."""

    kind: Kind
    ready_at: float
    hold_s: float
    delay_s: float  # at most; may be infinite


def bound(tasks: Iterable[Task], pools: Sequence[Pool], boot_min_s: float) -> float:
    """Dollars."""
    shares: dict[int, list[Task]] = {}
    groups = _groups(pools)
    of_kind: dict[Kind, int | None] = {}
    for task in tasks:
        if task.kind not in of_kind:
            fit = (i for i, group in enumerate(groups) if _serves(group, task.kind))
            of_kind[task.kind] = next(fit, None)
        if (index := of_kind[task.kind]) is not None:
            shares.setdefault(index, []).append(task)
    dollars = 0.0
    for index, share in shares.items():
        places = max(pool.capacity for pool in groups[index])
        price = min(_price(pool) for pool in groups[index])
        dollars += price * bill_s(share, places, boot_min_s) / HOUR_S
    return dollars


def bill_s(tasks: Sequence[Task], places: int, boot_min_s: float) -> float:
    """Seconds that are billed at the least, of instances with so many places."""
    if not tasks:
        return 0.0
    work_s = sum(task.hold_s for task in tasks) / places + boot_min_s
    return max(work_s, _must_run_s(tasks, places, boot_min_s), 0.0)


def _must_run_s(tasks: Iterable[Task], places: int, boot_min_s: float) -> float:
    turns: list[tuple[float, int]] = []
    for task in tasks:
        if task.delay_s + ROUNDING_S < task.hold_s:
            turns.append((task.ready_at + task.delay_s, 1))
            turns.append((task.ready_at + task.hold_s, -1))
    turns.sort()  # at one time ends come first
    billed_s, running = 0.0, 0
    opened: list[float] = []  # of each level that is needed now: since when
    closed: list[float] = []  # of each level above them: until when it was needed; lowest last
    for at, change in turns:
        running += change
        level = math.ceil(running / places)
        while len(opened) > level:
            billed_s += at - opened.pop()
            closed.append(at)
        while len(opened) < level:
            gap_s = at - closed.pop() if closed else math.inf
            billed_s += min(gap_s, boot_min_s)
            opened.append(at)
    return billed_s


def _groups(pools: Sequence[Pool]) -> list[list[Pool]]:
    """Pools that share no work are apart: those of other systems."""
    groups: list[list[Pool]] = []
    for pool in pools:
        joined = [pool]
        apart = []
        for group in groups:
            if any(set(pool.systems) & set(other.systems) for other in group):
                joined += group
            else:
                apart.append(group)
        groups = [*apart, joined]
    return groups


def _serves(group: Sequence[Pool], kind: Kind) -> bool:
    return any(not objection(pool, kind) for pool in group)


def _price(pool: Pool) -> float:
    """The lowest, on whatever market: what a policy may not buy only lowers the bound."""
    return min((each.price(market) for each in pool.offerings for market in Market), default=0.0)
