"""Instances that no slot is known to own: given their slots by tag, or ended."""

from collections.abc import Mapping
from typing import Final

from grange.capacity import effects as do
from grange.capacity import launching
from grange.capacity.facts import Instance, InstanceId, InstanceState
from grange.capacity.memory import Memory
from grange.capacity.state import IN_FLIGHT, VACANT, Orphan

ORPHAN_LOOKS: Final = 2
ORPHAN_S: Final = 300.0  # a launch of another life may yet be claimed


def adopt(memory: Memory, listed: Mapping[InstanceId, Instance]) -> None:
    """Give instances their slots by tag; end those that nobody owns."""
    strays = [
        each
        for each in listed.values()
        if each.id not in memory.by_instance and each.state is not InstanceState.TERMINATED
    ]
    strays.sort(key=lambda each: (-(each.generation or 0), each.id))
    for gone in memory.orphans.keys() - {each.id for each in strays}:
        del memory.orphans[gone]
    for each in strays:
        if not _claimed(memory, each):
            _reap(memory, each)
    for pool in memory.pools.values():
        pool.orphans = 0
    for orphan in memory.orphans.values():
        if orphan.pool in memory.pools:
            memory.pools[orphan.pool].orphans += 1


def _claimed(memory: Memory, instance: Instance) -> bool:
    seat = memory.seats.get(instance.slot) if instance.slot is not None else None
    if seat is None or instance.state is InstanceState.STOPPING:
        return False
    is_asked = seat.slot.state in IN_FLIGHT and instance.token == seat.slot.token
    is_forgotten = seat.is_blank and seat.slot.state in VACANT
    if not is_asked and not is_forgotten:
        return False
    if is_forgotten:
        seat.blurred_until = memory.now + memory.rules.reload_s  # what it held is not known
    seat.is_blank = False
    how = "found by its launch's token" if is_asked else "found by its tag"
    launching.settle_in(
        memory, memory.pools[seat.slot.pool], seat, instance, f"{instance.id}: {how}"
    )
    return True


def _reap(memory: Memory, instance: Instance) -> None:
    orphan = memory.orphans.get(instance.id)
    if orphan is None:
        seat = memory.seats.get(instance.slot) if instance.slot is not None else None
        orphan = Orphan(0, memory.now, seat.slot.pool if seat else None)
        memory.orphans[instance.id] = orphan
        memory.tell("no slot owns this instance", instance=instance.id, pool=orphan.pool)
    orphan.sightings += 1
    if orphan.sightings >= ORPHAN_LOOKS and memory.now - orphan.first_at > ORPHAN_S:
        memory.act(do.Terminate(None, instance.id))
        memory.act(do.ForgetDevice(instance.id))
