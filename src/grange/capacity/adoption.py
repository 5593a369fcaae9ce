"""Instances that no slot is known to own: given their slots by tag, or ended."""

from collections.abc import Mapping
from typing import Final, assert_never

from grange.capacity import effects as do
from grange.capacity import launching
from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    PoolName,
    ReadyBy,
    ServerMode,
    Timeouts,
)
from grange.capacity.memory import Memory
from grange.capacity.sight import Look
from grange.capacity.state import IN_FLIGHT, VACANT, Orphan

ORPHAN_LOOKS: Final = 2
ORPHAN_S: Final = 300.0  # a launch of another life may yet be claimed
QUIET_LOOKS: Final = 2


def adopt(memory: Memory, listed: Mapping[InstanceId, Instance], look: Look) -> None:
    """Give instances their slots by tag; end those that nobody owns."""
    for id_ in look.addresses:  # of the dead too: a device outlives its instance
        if id_ in listed and listed[id_].state is InstanceState.TERMINATED:
            memory.act(do.ForgetDevice(id_))
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
            _reap(memory, each, look)
    for pool in memory.pools.values():
        pool.orphans, pool.is_seen = 0, True
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


def _reap(memory: Memory, instance: Instance, look: Look) -> None:
    """End it when nobody can own it any more and nothing is done on it; after a drain's term
    whatever is done."""
    orphan = memory.orphans.get(instance.id)
    if orphan is None:
        price, vcpus = instance.offering.price(instance.market), instance.offering.vcpus
        orphan = Orphan(0, memory.now, _pool_of(memory, instance), price, vcpus)
        memory.orphans[instance.id] = orphan
        memory.tell("no slot owns this instance", instance=instance.id, pool=orphan.pool)
    orphan.sightings += 1
    orphan.pool = _pool_of(memory, instance)  # which may have come back
    orphan.quiet_looks = orphan.quiet_looks + 1 if _is_quiet(memory, instance, look) else 0
    age_s = memory.now - orphan.first_at
    is_over = orphan.sightings >= ORPHAN_LOOKS and age_s > _wait_s(memory, instance, look)
    if (is_over and orphan.quiet_looks >= QUIET_LOOKS) or age_s > _drain_s(memory, orphan):
        memory.act(do.Terminate(None, instance.id))
        memory.act(do.ForgetDevice(instance.id))


def _pool_of(memory: Memory, instance: Instance) -> PoolName | None:
    """By the name of its slot, which may be none of the pool's any more."""
    name = PoolName((instance.slot or "").rpartition("-")[0])
    return name if name in memory.pools else None


def _wait_s(memory: Memory, instance: Instance, look: Look) -> float:
    """Of a slot that is forgotten nobody knows whether it served: its sessions may live on unseen
    in a balancer that was reloaded."""
    is_known = instance.slot in memory.seats or instance.id in look.builders
    if is_known or memory.rules.ready_by is not ReadyBy.SERVER:
        return ORPHAN_S
    return max(ORPHAN_S, memory.rules.reload_s)


def _drain_s(memory: Memory, orphan: Orphan) -> float:
    pool = memory.pools[orphan.pool].pool if orphan.pool in memory.pools else None
    return (pool.timeouts if pool else Timeouts()).drain_s


def _is_quiet(memory: Memory, instance: Instance, look: Look) -> bool:
    """Nothing is done on it, as far as is known, and new work is kept from it."""
    if look.builders.get(instance.id):
        return False
    match memory.rules.ready_by:
        case ReadyBy.SERVER:
            return look.servers is not None and _is_quiet_server(memory, instance, look)
        case ReadyBy.AGENT:
            return look.presences is not None and _is_quiet_agent(memory, instance, look)
        case _:
            assert_never(memory.rules.ready_by)


def _is_quiet_server(memory: Memory, instance: Instance, look: Look) -> bool:
    here = {instance.address, look.addresses.get(instance.id, "")} - {""}
    servers = [each for each in (look.servers or {}).values() if each.address in here]
    is_shut = True
    for each in servers:
        if each.mode is ServerMode.READY and each.slot not in memory.seats:
            memory.act(do.SetServer(each.slot, ServerMode.DRAIN, each.address))
            is_shut = False
    return is_shut and not any(each.sessions for each in servers)


def _is_quiet_agent(memory: Memory, instance: Instance, look: Look) -> bool:
    is_quiet = True
    for each in (look.presences or {}).values():
        is_forgotten = each.slot == instance.slot and each.slot not in memory.seats
        if each.instance == instance.id or (each.instance is None and is_forgotten):
            if not each.is_draining:
                memory.act(do.SetAgent(each.slot, instance.id, is_draining=True))
            is_quiet &= each.is_draining and not each.running
    return is_quiet
