"""Operators: they pause, drain and end things, change the pools, and at last put all right."""

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from grange.capacity import events as on
from grange.capacity.events import Verb
from grange.capacity.facts import InstanceId, Need, Notice, Pool, PoolName
from tests.simulation.capacity.cloud import Rates

if TYPE_CHECKING:
    from tests.simulation.capacity.world import World

PREWARMED_S = 300.0
HINTED_S = 200.0


class Hand:
    """`most` is what each pool was ever allowed to have."""

    def __init__(self, world: "World", seed: int) -> None:
        self._world = world
        self._rng = random.Random(f"{seed} hand")
        self._is_mending = False
        self._numbers = 0
        self.condemned: set[InstanceId] = set()  # told to end, whatever is on them
        self.most = {pool.name: pool.max for pool in world.pools}
        self.said: list[Verb] = []

    def mend(self) -> None:
        """From now on nothing is meddled with, and what was is undone."""
        self._is_mending = True

    def step(self, rates: Rates, step_s: float) -> None:
        if self._world.core is None:
            return
        if self._is_mending:
            self._undo()
            return
        for chance, act in (
            (rates.said, self._say),
            (rates.changed, self._change),
            (rates.hinted, self._hint),
        ):
            if chance and self._rng.random() < chance * step_s:
                act()

    def _say(self) -> None:
        core, rng = self._world.core, self._rng
        assert core is not None
        verb = rng.choice(list(Verb))
        taken = [s for s, seat in core.seats.items() if seat.slot.instance is not None]
        slots = taken if taken and rng.random() < 0.7 else list(core.seats)
        slot = rng.choice(slots) if slots else None
        pool = rng.choice([None, *core.pools])
        if verb is Verb.TERMINATE and slot is not None:
            instance = core.seats[slot].slot.instance
            if instance is not None:
                self.condemned.add(instance)
        if rng.random() < 0.2 and slot is not None and core.seats[slot].slot.instance:
            self._recommend(core.seats[slot].slot.instance)
            return
        self.said.append(verb)
        said = on.OperatorSaid(verb, slot, pool, rng.randint(1, 3), PREWARMED_S, "ann", "drawn")
        self._world.tell([said])

    def _recommend(self, instance: InstanceId | None) -> None:
        """The cloud's word that it would be better to move."""
        if instance is not None:
            self._world.tell([on.NoticeCame(Notice(instance, None, "drawn"))])

    def _change(self) -> None:
        world, rng = self._world, self._rng
        pools = [self._changed(pool) for pool in world.pools if rng.random() < 0.8]
        self._set(tuple(pools))

    def _changed(self, pool: Pool) -> Pool:
        rng = self._rng
        most = max(pool.min, pool.max + rng.choice([-1, 0, 1]))
        return replace(
            pool,
            max=most,
            config_hash=rng.choice(["", "", "new"]),
            offerings=pool.offerings[: rng.choice([2, 3])],
        )

    def _set(self, pools: tuple[Pool, ...]) -> None:
        self._world.configured = pools
        for pool in pools:
            self.most[pool.name] = max(self.most[pool.name], pool.max)
        self._world.tell([on.PoolsChanged(pools)])

    def _hint(self) -> None:
        self._numbers += 1
        features = self._rng.choice([(), ("kvm",)])
        need = Need(
            self._world.pools[0].systems[0],
            features,
            waiting=self._rng.randint(1, 4),
            is_hint=True,
        )
        self._world.tell([on.HintCame(f"eval {self._numbers}", need, HINTED_S)])

    def _undo(self) -> None:
        """As operators would in the end, and give more money."""
        world, core = self._world, self._world.core
        assert core is not None
        right = tuple(replace(pool, monthly_budget=None) for pool in world.pools)
        if world.configured != right:
            self._set(right)
        names: list[PoolName | None] = [n for n, p in core.pools.items() if p.pause is not None]
        names += [None] if core.pause is not None else []
        for name in names:
            if world.core is not None:
                world.tell([on.OperatorSaid(Verb.RESUME, pool=name)])
        for slot in [s for s, seat in core.seats.items() if seat.slot.is_quarantined]:
            if world.core is not None:
                world.tell([on.OperatorSaid(Verb.UNDRAIN, slot)])
