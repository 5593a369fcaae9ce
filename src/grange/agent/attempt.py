"""One attempt, and what waits for delivery."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from grange.agent.build import Made
from grange.agent.log import AttemptLog
from grange.scheduler.facts import AttemptId, Phase
from grange.store.path import StorePath
from grange.wire.messages import BuildOrder, Built

UNDELIVERED_MAX: Final = 256  # attempts whose outputs wait for delivery


@dataclass(slots=True, eq=False)
class Attempt:
    order: BuildOrder
    log: AttemptLog
    phase: Phase = Phase.QUEUED
    task: asyncio.Task[None] | None = None
    fetch_s: float | None = None
    moved: int = 0  # how far its inputs and outputs have travelled
    made: Made | None = None  # until delivered
    roots: tuple[str, ...] = ()  # that keep it, once it has waited for a while
    built: Built | None = None
    undelivered_bytes: int = 0

    @property
    def id(self) -> AttemptId:
        return self.order.attempt

    @property
    def outputs(self) -> tuple[StorePath, ...]:
        return tuple(output.path for output in self.order.derivation.outputs.values())

    @property
    def needs(self) -> tuple[StorePath, ...]:
        """What must be in the store: for a check also what it is to be compared with."""
        inputs = self.order.derivation.input_srcs
        return (*inputs, *self.outputs) if self.order.is_check else inputs

    @property
    def progress(self) -> int:
        return self.moved + self.log.bytes


@dataclass(slots=True)
class Undelivered:
    """Outputs on this disk that the farm does not have yet."""

    bytes_max: int
    bytes: int = 0
    count: int = 0
    has_room: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, count: int, nar_bytes: int) -> None:
        self.count += count
        self.bytes += nar_bytes
        if self.is_full:
            self.has_room.clear()
        else:
            self.has_room.set()

    @property
    def is_full(self) -> bool:
        return self.count >= UNDELIVERED_MAX or self.bytes >= self.bytes_max
