"""How capacity looks on a screen: bars, counts, and what is wrong in the end, where it is read."""

import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from grange.capacity.facts import ReservationState, SlotState
from grange.cli.text import clean, console, count, duration, moment
from grange.client.capacity_models import (
    CapacityEventView,
    CapacityStatus,
    CostView,
    OrphanView,
    PoolView,
    ReservationView,
    SlotView,
)

BAR_CELLS: Final = 20
COUNT_CELLS: Final = 17  # of what is beside a bar: "$112.08 of $900.00"
SLOT_STYLES: Final = {
    SlotState.EMPTY: "dim",
    SlotState.LAUNCHING: "cyan",
    SlotState.UNKNOWN: "bold yellow",
    SlotState.BOOTING: "cyan",
    SlotState.BINDING: "cyan",
    SlotState.READY: "green",
    SlotState.DRAINING: "yellow",
    SlotState.TERMINATING: "magenta",
    SlotState.COOLING: "bold red",
}
RESERVATION_STYLES: Final = {
    ReservationState.PENDING: "yellow",
    ReservationState.READY: "green",
    ReservationState.RELEASED: "dim",
    ReservationState.EXPIRED: "magenta",
    ReservationState.FAILED: "bold red",
    ReservationState.CANCELLED: "dim",
    ReservationState.LOST: "bold red",
}
# What a bar of slots is made of, in this order; without colours the signs must do.
_PARTS: Final = (
    ("█", "ready", (SlotState.READY,)),
    ("▒", "starting", (SlotState.LAUNCHING, SlotState.BOOTING, SlotState.BINDING)),
    ("-", "leaving", (SlotState.DRAINING, SlotState.TERMINATING)),
    ("!", "in doubt or failing", (SlotState.UNKNOWN, SlotState.COOLING)),
)
_VACANT: Final = "·"


# --- Status -------------------------------------------------------------------------------------


def print_status(status: CapacityStatus, url: str) -> None:
    screen = console()
    head = Table.grid(padding=(0, 2))
    head.add_column(style="dim")
    head.add_column(overflow="fold")
    head.add_row("capacity", f"{url}, Grange {status.version}")
    head.add_row("reservations", _reservations_line(status))
    screen.print(head)
    for pool in status.pools:
        screen.print()
        for each in _pool_lines(pool):
            screen.print(each)
    if not status.pools:
        screen.print("There are no pools: [pools.NAME] in the file, docs/operating/capacity.md.")
    elif any(pool.slots.keys() - {SlotState.EMPTY} for pool in status.pools):
        signs = [f"{sign} {word}" for sign, word, _ in _PARTS]
        screen.print()
        screen.print(Text("  ".join([*signs, f"{_VACANT} empty"]), "dim"))
    screen.print()
    said = [*wrong(status), *worth_knowing(status)]
    for line in said:
        screen.print(line, soft_wrap=True)
    if not said:
        screen.print(Text("Nothing is wrong.", "green"))


def wrong(status: CapacityStatus) -> list[Text]:
    """What somebody must see to."""
    lines = [Text(f"! {clean(each)}", "bold red") for each in status.troubles]
    told = " ".join(status.troubles)
    for pool in status.pools:
        if pool.breaker and pool.breaker not in told:
            lines.append(Text(f"! pool {pool.name}: {clean(pool.breaker)}", "bold red"))
        elif _is_failing(pool):
            lines.append(Text(f"! pool {pool.name}: {clean(pool.limit)}", "bold red"))
    return lines


def _is_failing(pool: PoolView) -> bool:
    """Nothing more is launched because instances did not become ready."""
    return bool(pool.failures and pool.limit)


def worth_knowing(status: CapacityStatus) -> Iterator[Text]:
    """What keeps it from doing all that is asked, and was meant so."""
    if status.paused is not None:
        yield Text(
            f"~ paused: nothing is launched, {clean(status.paused)}; grange capacity resume",
            "bold yellow",
        )
    for pool in status.pools:
        if pool.paused is not None:
            yield Text(f"~ pool {pool.name} is paused: {clean(pool.paused)}", "bold yellow")
        is_told = pool.paused is not None or _is_failing(pool) or pool.limit == pool.breaker
        if pool.limit and not is_told:
            yield Text(f"~ pool {pool.name}: {clean(pool.limit)}", "yellow")
        if pool.is_gone:
            yield Text(f"~ pool {pool.name} is configured no longer, and ends", "yellow")
    if status.orphans:
        yield Text(
            f"~ {count(status.orphans, 'instance')} without a slot: grange capacity orphans",
            "yellow",
        )


def _reservations_line(status: CapacityStatus) -> Text:
    parts = [
        Text(f"{number:,} {state}", RESERVATION_STYLES[state])
        for state, number in status.reservations.items()
    ]
    return Text(", ").join(parts) if parts else Text("none", "dim")


def _pool_lines(pool: PoolView) -> Iterator[Text | Table]:
    offers = ", ".join([*pool.systems, *pool.features])
    yield Text.assemble((pool.name, "bold"), "  ", (offers, "dim"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(no_wrap=True, min_width=BAR_CELLS)
    grid.add_column(no_wrap=True, min_width=COUNT_CELLS)
    grid.add_column(overflow="fold")
    taken = sum(number for state, number in pool.slots.items() if state is not SlotState.EMPTY)
    grid.add_row("  slots", _slots_bar(pool), f"{taken} of {pool.max}", _states_line(pool.slots))
    wanted = Text(f"{pool.demand} wanted", "yellow" if pool.demand > pool.places else "")
    used = _bar(pool.used, pool.places, "yellow")
    grid.add_row("  places", used, f"{pool.used} of {pool.places}", wanted)
    limit = "" if pool.hourly_budget is None else f" of {dollars(pool.hourly_budget)}"
    budget = "" if pool.monthly_budget is None else f" of {dollars(pool.monthly_budget)}"
    grid.add_row(
        "  money",
        _bar(pool.spent, pool.monthly_budget or 0.0, "bold red"),
        f"{dollars(pool.spent)}{budget}",
        f"{dollars(pool.hourly)}{limit} an hour",
    )
    yield grid


def _states_line(slots: dict[SlotState, int]) -> Text:
    parts = [
        Text(f"{slots[state]} {state}", style)
        for state, style in SLOT_STYLES.items()
        if state is not SlotState.EMPTY and slots.get(state)
    ]
    return Text(", ").join(parts) if parts else Text("all empty", "dim")


def _slots_bar(pool: PoolView) -> Text:
    """A cell for each slot, or for a share of them: never none for what there is."""
    total = max(pool.max, sum(pool.slots.values()), 1)
    cells = min(BAR_CELLS, total)
    bar = Text()
    counts = [sum(pool.slots.get(state, 0) for state in states) for _, _, states in _PARTS]
    for index, (sign, _, states) in enumerate(_PARTS):
        others = sum(1 for number in counts[index + 1 :] if number)
        room = cells - len(bar) - others
        width = min(room, max(round(counts[index] * cells / total), 1)) if counts[index] else 0
        bar.append(sign * width, SLOT_STYLES[states[0]])
    return bar.append(_VACANT * (cells - len(bar)), "dim")


def _bar(part: float, whole: float, full_style: str) -> Text:
    if whole <= 0:
        return Text()
    full = min(BAR_CELLS, round(part * BAR_CELLS / whole))
    style = full_style if part >= whole else "green"
    return Text.assemble(("█" * full, style), (_VACANT * (BAR_CELLS - full), "dim"))


def dollars(amount: float) -> str:
    """``$0.143``, ``$0.50``, ``$12.40``, ``$1,204``: as many digits as matter."""
    if amount >= 1000:
        return f"${amount:,.0f}"
    cents = f"${amount:.2f}"
    return cents if amount >= 1 or abs(float(cents[1:]) - amount) < 0.0005 else f"${amount:.3f}"


# --- Lists --------------------------------------------------------------------------------------

SLOT_COLUMNS: Final = ("slot", "state", "for", "places", "busy", "an hour", "instance", "")


def print_slots(slots: Iterable[SlotView]) -> None:
    """A line each, and what is odd about it beneath."""
    _print_lines(SLOT_COLUMNS, [(_slot_row(slot), [*notes(slot)]) for slot in slots])


def _slot_row(slot: SlotView) -> tuple[str | Text, ...]:
    is_taken = slot.instance is not None
    return (
        slot.id,
        Text(str(slot.state), SLOT_STYLES[slot.state]),
        duration(slot.since_s),
        f"{slot.used} of {slot.places}" if is_taken else "",
        str(max(slot.sessions, slot.builds)) if is_taken else "",
        dollars(slot.price_hour) if slot.price_hour else "",
        slot.instance or "",
        Text(" ".join(filter(None, (slot.type, slot.zone, slot.market, slot.address))), "dim"),
    )


def print_slot(slot: SlotView) -> None:
    """One, at length."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    state = Text.assemble((str(slot.state), SLOT_STYLES[slot.state]))
    grid.add_row(slot.id, state.append(f" for {duration(slot.since_s)}", ""))
    if slot.instance is not None:
        where = " ".join(filter(None, (slot.type, slot.zone, slot.market)))
        grid.add_row("instance", f"{slot.instance}, {where}")
        grid.add_row("address", slot.address or "none yet")
        grid.add_row("price", f"{dollars(slot.price_hour)} an hour")
        grid.add_row("places", f"{slot.used} of {slot.places} reserved")
        builds = f", {count(slot.builds, 'build')} by its own word" if slot.builds else ""
        grid.add_row("sessions", f"{slot.sessions}{builds}")
        if slot.server:
            health = (
                "" if slot.is_healthy is None else f", {'' if slot.is_healthy else 'not '}healthy"
            )
            grid.add_row("server", f"{slot.server}{health}")
    for one in slot.reservations:
        grid.add_row("reserved by", one)
    for note in notes(slot):
        grid.add_row("", Text(note, "yellow"))
    console().print(grid)


def notes(slot: SlotView) -> Iterator[str]:
    """What is odd about it."""
    if slot.is_quarantined:
        yield "in quarantine"
    if slot.drain_cause and slot.state in (SlotState.DRAINING, SlotState.TERMINATING):
        is_left = slot.drain_s is not None and slot.state is SlotState.DRAINING
        left = f", ended in {duration(slot.drain_s)} at the latest" if is_left else ""
        yield f"because of {slot.drain_cause}{left}"
    if slot.state is SlotState.READY and slot.is_healthy is False:
        yield f"fails the balancer's checks, and takes no work ({slot.server or 'no server'})"
    elif slot.state is SlotState.READY and not slot.is_usable and not slot.is_quarantined:
        yield "takes no work just now"
    if slot.idle_s is not None and slot.state is SlotState.READY:
        yield f"idle for {duration(slot.idle_s)}"
    if slot.failures:
        yield f"{count(slot.failures, 'failure')} in a row"


RESERVATION_COLUMNS: Final = ("id", "state", "slot", "places", "asks for", "project", "by")


def print_reservations(reservations: Iterable[ReservationView]) -> None:
    _print_lines(
        RESERVATION_COLUMNS,
        [
            (_reservation_row(one), [*filter(None, (one.at_risk, one.reason))])
            for one in reservations
        ],
    )


def _reservation_row(one: ReservationView) -> tuple[str | Text, ...]:
    on_demand = ["on demand"] if one.is_on_demand else []
    return (
        one.id[:8],
        Text(str(one.state), RESERVATION_STYLES[one.state]),
        one.slot or "",
        str(one.size),
        " ".join([one.system, *one.features, *on_demand]),
        one.project,
        Text(one.by, "dim"),
    )


def _print_lines(
    columns: Sequence[str], rows: Sequence[tuple[Sequence[str | Text], Sequence[str]]]
) -> None:
    """In columns, with notes beneath a row. The last column gives way where a line is too long."""
    screen = console()
    cells = [[Text(each, "dim") for each in columns]]
    cells += [[each if isinstance(each, Text) else Text(each) for each in row] for row, _ in rows]
    widths = [max(each.cell_len for each in column) for column in zip(*cells, strict=True)]
    for row, (_, notes_) in zip(cells, [((), ()), *rows], strict=True):
        for cell, width in zip(row[:-1], widths, strict=False):
            cell.pad_right(width - cell.cell_len)
        screen.print(Text("  ").join(row), no_wrap=True, overflow="ellipsis", crop=True)
        if notes_:
            screen.print(Text(f"  {clean('; '.join(notes_))}", "yellow"), soft_wrap=True)


EVENT_COLUMNS: Final = ("when", "of", "what")


def event_row(event: CapacityEventView) -> tuple[str | Text, ...]:
    of = event.slot or event.pool or ""
    if event.reservation is not None:
        of = f"{of} reservation {event.reservation[:8]}".strip()
    return moment(event.time), of, clean(event.text)


ORPHAN_COLUMNS: Final = ("instance", "pool", "slot by its tag", "type", "launched", "seen for")


def orphan_row(orphan: OrphanView) -> tuple[str | Text, ...]:
    return (
        orphan.instance,
        orphan.pool or "",
        orphan.slot or "",
        " ".join(filter(None, (orphan.type, orphan.zone))),
        "" if orphan.launched is None else f"{duration(time.time() - orphan.launched)} ago",
        f"{duration(orphan.since_s)}, {count(orphan.sightings, 'time')}",
    )


COST_COLUMNS: Final = (
    "pool",
    "month",
    "spent",
    "budget",
    "an hour",
    "of it idle",
    "an hour's budget",
)


def cost_rows(costs: Sequence[CostView]) -> Iterable[tuple[str | Text, ...]]:
    for one in costs:
        is_over = one.monthly_budget is not None and one.spent >= one.monthly_budget
        yield (
            one.pool,
            one.month,
            Text(dollars(one.spent), "bold red" if is_over else ""),
            "" if one.monthly_budget is None else dollars(one.monthly_budget),
            dollars(one.hourly),
            dollars(one.hourly_idle),
            "" if one.hourly_budget is None else dollars(one.hourly_budget),
        )
    if len(costs) > 1:
        spent = dollars(sum(one.spent for one in costs))
        hourly = dollars(sum(one.hourly for one in costs))
        idle = dollars(sum(one.hourly_idle for one in costs))
        yield Text("together", "bold"), "", Text(spent, "bold"), "", hourly, idle, ""


# --- One thing, at length -----------------------------------------------------------------------


def print_explanation(text: str) -> None:
    """A sentence a line: the planner puts semicolons between."""
    screen = console()
    for number, part in enumerate(clean(text).split("; ")):
        lines = textwrap.wrap(part, max(screen.width - 4, 40)) or [""]
        screen.print(Text("\n    ".join(lines) if number == 0 else "  " + "\n    ".join(lines)))
