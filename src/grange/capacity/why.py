"""Why things stand as they do, in words for people."""

from collections import Counter

from grange.capacity import launching
from grange.capacity.facts import PoolName, ReservationId, ReservationState, SlotState
from grange.capacity.matching import Kind, objection
from grange.capacity.memory import Memory
from grange.capacity.state import STARTING, PoolState


def reservation(memory: Memory, id_: ReservationId) -> str:
    held = memory.held.get(id_)
    if held is None:
        return f"there is no reservation {id_}: it ended long ago, or never was"
    told = held.reservation
    if told.state is ReservationState.READY:
        risk = f"; {told.at_risk}" if told.at_risk else ""
        return f"ready: it has {told.claim.size} places of slot {told.slot}{risk}"
    if told.state is not ReservationState.PENDING:
        return f"{told.state}: {told.reason}" if told.reason else str(told.state)
    waited_s = memory.now - held.asked_at
    kind = Kind.of_claim(told.claim)
    match = memory.matches.of(kind)
    said = [f"pending for {waited_s:.0f} s, of project {told.claim.project}"]
    said += [f"pool {name}: {_pool(memory, memory.pools[name])}" for name in match.own]
    said += [
        f"pool {name}: only what is free there already, for it offers more than is asked"
        for name in match.others
    ]
    said += [
        f"pool {each.pool.name}: {objection(each.pool, kind)}"
        for name, each in memory.pools.items()
        if name not in match.all and not each.is_gone
    ]
    return "; ".join(said)


def pool(memory: Memory, name: PoolName) -> str:
    found = memory.pools.get(name)
    if found is None:
        known = ", ".join(memory.pools) or "none"
        return f"there is no pool {name}; there are {known}"
    configured = found.pool
    budget = configured.monthly_budget
    money = f" of ${budget:.2f}" if budget is not None else ""
    return (
        f"min {configured.min}, warm {configured.warm}, max {configured.max}, "
        f"{configured.capacity} places a slot; {_pool(memory, found)}; "
        f"spent ${found.spent:.2f}{money} in {found.month or 'no month yet'}"
    )


def _pool(memory: Memory, state: PoolState) -> str:
    """Looks at all slots; thousands who ask at once, between two decisions, are told the same."""
    name = state.pool.name
    if name not in memory.words:
        memory.words[name] = _look(memory, state)
    return memory.words[name]


def _look(memory: Memory, state: PoolState) -> str:
    counts = Counter(str(seat.slot.state) for seat in state.seats)
    shown = ", ".join(f"{n} {what}" for what, n in sorted(counts.items())) or "no slots"
    said = [shown, f"{state.demand} places wanted"]
    starting = sum(seat.slot.state in STARTING for seat in state.seats)
    if starting and not state.limit:
        said.append(f"{starting} slots are on their way")
    if limit := launching.closed(memory, state) or state.limit:
        said.append(limit)
    elif state.short_since is not None and not starting:
        said.append("demand is gathered before slots are launched for it")
    unwell = [
        seat.slot.id
        for seat in state.seats
        if seat.slot.state is SlotState.READY and not seat.is_usable
    ]
    if unwell:
        said.append(f"takes no work just now: {', '.join(unwell[:5])}")
    return "; ".join(said)
