"""`grange capacity status` and what else only looks."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

import click
from pydantic import BaseModel
from rich.text import Text

from grange.capacity.facts import ReservationState, SlotState
from grange.cli import capacity_screens as screens
from grange.cli import options
from grange.cli.app import EXIT_FAILED
from grange.cli.capacity_options import URL
from grange.cli.text import clean, count, print_json, print_table
from grange.client.capacity import CapacityClient
from grange.client.capacity_models import ExplanationView, ReservationView, SlotView
from grange.client.models import UUID_PATTERN
from grange.errors import NotFoundError, PeerError

CONSOLE_LINES: Final = 20
_UUID: Final = re.compile(UUID_PATTERN)
_PREFIX: Final = re.compile(r"[0-9a-f-]{4,36}\Z")

LIMIT = click.option("--limit", default=200, show_default=True, type=click.IntRange(1, 10_000))


@click.command()
@options.JSON
@URL
@click.pass_context
def status(ctx: click.Context, *, as_json: bool, url: str) -> None:
    """Show pools with what is in them, and what is wrong.

    Exits with 1 where something is wrong that somebody must see to.
    """
    with CapacityClient(url) as client:
        answer = client.status()
    if as_json:
        print_json(answer)
    else:
        screens.print_status(answer, url)
    if screens.wrong(answer):
        ctx.exit(EXIT_FAILED)


@click.command()
@click.argument("pool", required=False)
@click.option("--all", "is_all", is_flag=True, help="Empty slots, too.")
@options.JSON
@URL
def slots(*, pool: str | None, is_all: bool, as_json: bool, url: str) -> None:
    """List the slots of POOL, or all: state, age, sessions, price."""
    with CapacityClient(url) as client:
        answer = client.slots(pool)
    if as_json:
        print_json(answer)
        return
    shown = [each for each in answer if is_all or each.state is not SlotState.EMPTY]
    if shown:
        screens.print_slots(shown)
    if empty := len(answer) - len(shown):
        click.echo(f"{count(empty, 'empty slot')}; --all shows them.")


@click.command()
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([each.value for each in ReservationState]),
    help="In this state, or another one's  [default: pending, ready].",
)
@click.option("--all", "is_all", is_flag=True, help="Those that ended lately, too.")
@click.option("--project", help="Of this project.")
@LIMIT
@options.JSON
@URL
def reservations(
    *,
    states: tuple[str, ...],
    is_all: bool,
    project: str | None,
    limit: int,
    as_json: bool,
    url: str,
) -> None:
    """List reservations, the oldest first."""
    open_ = (ReservationState.PENDING.value, ReservationState.READY.value)
    with CapacityClient(url) as client:
        answer = client.reservations(() if is_all else states or open_, project, limit)
    if as_json:
        print_json(answer)
        return
    if answer:
        screens.print_reservations(answer)
    else:
        click.echo("There are no such reservations.")
    if len(answer) == limit:
        click.echo(f"The first {limit}; --limit shows more.")
    if any(each.state is ReservationState.PENDING for each in answer):
        click.echo("grange capacity explain ID says why one waits.")


@click.command()
@click.option("--pool", help="Of this pool.")
@click.option("--slot", help="Of this slot.")
@click.option("--reservation", help="Of this reservation: its id, or how that begins.")
@click.option("--before", type=click.IntRange(min=1), help="Older than the event of this number.")
@LIMIT
@options.JSON
@URL
def events(
    *,
    pool: str | None,
    slot: str | None,
    reservation: str | None,
    before: int | None,
    limit: int,
    as_json: bool,
    url: str,
) -> None:
    """List what happened, the newest first."""
    with CapacityClient(url) as client:
        if reservation is not None:
            reservation = find_reservation_id(client, reservation)
        answer = client.events(
            limit=limit, before=before, pool=pool, slot=slot, reservation=reservation
        )
    if as_json:
        print_json(answer)
        return
    _list(screens.EVENT_COLUMNS, map(screens.event_row, answer), "Nothing of it has happened.")
    if len(answer) == limit:
        click.echo(f"Older ones: --before {answer[-1].id}")


@click.command()
@click.argument("thing", metavar="POOL|SLOT|RESERVATION")
@options.JSON
@URL
def explain(*, thing: str, as_json: bool, url: str) -> None:
    """Say why a pool launches no more, a slot is as it is, or a reservation waits."""
    with CapacityClient(url) as client:
        pools = [each.name for each in client.status().pools]
        slot = None if thing in pools else _slot(client, thing, pools)
        if slot is not None:
            _explain_slot(client, slot, as_json=as_json)
            return
        is_pool = thing in pools
        answer = client.explain_pool(thing) if is_pool else _reservation(client, thing)
    if as_json:
        print_json(answer)
    else:
        screens.print_explanation(answer.text)


def _slot(client: CapacityClient, id_: str, pools: Sequence[str]) -> SlotView | None:
    """Slots are named after their pools: x86-3."""
    pool = id_.rpartition("-")[0]
    if pool not in pools:
        return None
    return next((each for each in client.slots(pool) if each.id == id_), None)


def _reservation(client: CapacityClient, text: str) -> ExplanationView:
    try:
        return client.explain_reservation(find_reservation_id(client, text))
    except NotFoundError as error:
        raise NotFoundError(
            f"no pool, slot or reservation is called {text}: see grange capacity status, slots "
            "and reservations"
        ) from error


def _explain_slot(client: CapacityClient, slot: SlotView, *, as_json: bool) -> None:
    events_ = client.events(limit=10, slot=slot.id)
    console = client.console(slot.id).text
    if as_json:
        told = {"slot": slot, "events": events_, "console": console}
        print_json({name: _plain(value) for name, value in told.items()})
        return
    screens.print_slot(slot)
    _list(screens.EVENT_COLUMNS, map(screens.event_row, events_), "Nothing of it is remembered.")
    if console:
        lines = clean(console).splitlines()[-CONSOLE_LINES:]
        click.echo("The end of what its latest instance that did not become ready had printed:")
        click.echo("\n".join(f"  {line}" for line in lines))


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_plain(each) for each in value] if isinstance(value, list) else value


@click.command()
@options.JSON
@URL
def orphans(*, as_json: bool, url: str) -> None:
    """List instances that bear the farm's tag and that no slot owns.

    They are ended by themselves, once it is sure that nobody's they are.
    """
    with CapacityClient(url) as client:
        answer = client.orphans()
    if as_json:
        print_json(answer)
        return
    rows = (screens.orphan_row(each) for each in answer)
    _list(screens.ORPHAN_COLUMNS, rows, "Every instance has its slot.")


@click.command()
@options.JSON
@URL
def cost(*, as_json: bool, url: str) -> None:
    """Show what pools cost, now and in this month. Estimates: the bill is the cloud's."""
    with CapacityClient(url) as client:
        answer = client.cost()
    if as_json:
        print_json(answer)
        return
    _list(screens.COST_COLUMNS, screens.cost_rows(answer), "There are no pools.")


def find_reservation_id(client: CapacityClient, text: str) -> str:
    """By its id, how that begins, or its key. Raises NotFoundError, or PeerError for several."""
    if _UUID.match(text):
        return text
    known = client.reservations(limit=10_000)
    found = [each for each in known if each.key == text or _begins(each, text)]
    if len(found) > 1:
        raise PeerError(f"{len(found)} reservations begin with {text}; say more of the id")
    if not found:
        raise NotFoundError(f"no reservation is called {text}; see grange capacity reservations")
    return found[0].id


def _begins(one: ReservationView, text: str) -> bool:
    return _PREFIX.match(text) is not None and one.id.startswith(text)


def _list(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], none: str) -> None:
    rows = [*rows]
    if rows:
        print_table(columns, rows)
    else:
        click.echo(none)
