"""`grange capacity drain` and what else an operator says."""

import click

from grange.cli import options
from grange.cli.app import complain, exit_code
from grange.cli.capacity_options import URL, me, span
from grange.cli.text import print_json
from grange.client.capacity import CapacityClient
from grange.client.capacity_models import (
    Done,
    PoolVerbRequest,
    PrewarmRequest,
    SlotVerb,
    SlotVerbRequest,
)
from grange.errors import PeerError

REASON = click.option("--reason", default="", help="Why, for those who ask later.")
POOL = click.argument("pool", required=False)


def _of_slots(verb: SlotVerb, what: str) -> click.Command:
    """A command that says `verb` of each slot that it is given."""

    def say(*, slots: tuple[str, ...], reason: str, as_json: bool, url: str) -> None:
        done: list[Done] = []
        worst = 0
        with CapacityClient(url) as client:
            for slot in slots:
                try:
                    done.append(client.say_of_slot(slot, verb, _words(reason)))
                except PeerError as error:  # the others are to be told all the same
                    complain(str(error))
                    worst = exit_code(error)
        _tell(done, as_json=as_json)
        if worst:
            click.get_current_context().exit(worst)

    slots = click.argument("slots", nargs=-1, required=True, metavar="SLOT...")
    for add in (URL, options.JSON, REASON, slots):
        say = add(say)
    return click.command(verb.value, help=what)(say)


drain = _of_slots(
    SlotVerb.DRAIN,
    "Let the slots SLOT... take no new work, and end their instances once what runs has ended.",
)
undrain = _of_slots(SlotVerb.UNDRAIN, "End the drain or the quarantine of slots SLOT...")
terminate = _of_slots(
    SlotVerb.TERMINATE,
    "End the instances of slots SLOT... at once, with all that runs on them.",
)
quarantine = _of_slots(
    SlotVerb.QUARANTINE,
    "Give slots SLOT... no new work, and keep their instances for a look; undrain ends it.",
)


@click.command()
@click.argument("pool")
@click.argument("slots", type=click.IntRange(0, 10_000))
@click.option("--for", "for_s", metavar="TIME", default="15m", callback=span, show_default=True)
@options.JSON
@URL
def prewarm(*, pool: str, slots: int, for_s: float, as_json: bool, url: str) -> None:
    """Have SLOTS slots of POOL ready for a while, asked for or not. Zero ends it."""
    request = PrewarmRequest(pool=pool, slots=slots, for_s=for_s, by=me())
    with CapacityClient(url) as client:
        _tell([client.prewarm(request)], as_json=as_json)


@click.command()
@POOL
@REASON
@options.JSON
@URL
def pause(*, pool: str | None, reason: str, as_json: bool, url: str) -> None:
    """Launch nothing more for POOL, or at all, and end nothing for being idle."""
    with CapacityClient(url) as client:
        done = client.pause(PoolVerbRequest(pool=pool, reason=reason, by=me()))
    _tell([done], as_json=as_json)


@click.command()
@POOL
@options.JSON
@URL
def resume(*, pool: str | None, as_json: bool, url: str) -> None:
    """End the pause of POOL, or that of all, and try anew what failures had held back."""
    with CapacityClient(url) as client:
        done = client.resume(PoolVerbRequest(pool=pool, by=me()))
    _tell([done], as_json=as_json)


@click.command("reconcile-now")
@options.JSON
@URL
def reconcile_now(*, as_json: bool, url: str) -> None:
    """Look at everything, plan, and act, at once; ends when all of it was tried."""
    with CapacityClient(url) as client:
        _tell([client.reconcile_now()], as_json=as_json)


def _words(reason: str) -> SlotVerbRequest:
    return SlotVerbRequest(reason=reason, by=me())


def _tell(done: list[Done], *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    for each in done:
        click.echo(f"{each.said}.")
