"""`grange capacity reserve`, which holds places while a command runs, and `release`."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final
from uuid import uuid4

import click

from grange.capacity.facts import ReservationState
from grange.cli import options
from grange.cli.app import EXIT_FAILED, complain
from grange.cli.capacity_look import find_reservation_id
from grange.cli.capacity_options import URL, me, span
from grange.cli.text import clean, count, print_json
from grange.client.capacity import CapacityClient
from grange.client.capacity_models import WAIT_MAX_S, ReservationView, ReserveRequest
from grange.errors import GrangeError, OutsideError, PeerError

RENEWALS: Final = 3  # heartbeats within one lease
AGAIN_S: Final = 2.0  # after a daemon that cannot be reached
EXIT_NO_COMMAND: Final = 127  # as a shell has it


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("system")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--feature", "features", multiple=True, help="That the slot must offer; repeatable.")
@click.option("--size", default=1, show_default=True, type=click.IntRange(min=1), help="Places.")
@click.option("--project", default="default", show_default=True, help="Whose share it counts to.")
@click.option("--priority", default=0, show_default=True, type=int)
@click.option("--wait", "wait_s", callback=span, metavar="TIME", help="Give up after so long.")
@click.option("--on-demand", "is_on_demand", is_flag=True, help="Never on spot.")
@click.option("--key", help="Asking twice with the same key is asking once [default: a new one].")
@click.option("--no-wait", "is_only_asked", is_flag=True, help="Ask, print it, and hold nothing.")
@options.JSON
@URL
@click.pass_context
def reserve(
    ctx: click.Context,
    *,
    system: str,
    command: tuple[str, ...],
    features: tuple[str, ...],
    size: int,
    project: str,
    priority: int,
    wait_s: float | None,
    is_on_demand: bool,
    key: str | None,
    is_only_asked: bool,
    as_json: bool,
    url: str,
) -> None:
    """Reserve places of one slot for SYSTEM, and hold them while COMMAND runs.

    COMMAND finds GRANGE_RESERVATION, GRANGE_SLOT and GRANGE_SLOT_ADDRESS in its environment; its
    exit code is that of this one. Without COMMAND the places are held until Ctrl-C. With --no-wait
    nothing is held: the reservation ends unless someone renews its lease by the API.

    Exits with 1 where there was no slot to be had.
    """
    if command and (is_only_asked or as_json):
        raise PeerError("--no-wait and --json hold nothing: leave out the command")
    request = ReserveRequest(
        key=key or f"cli {uuid4()}",
        system=system,
        features=[*features],
        project=project,
        priority=priority,
        size=size,
        deadline_s=wait_s,
        is_on_demand=is_on_demand,
        by=me(),
    )
    with CapacityClient(url) as client:
        one = client.reserve(request)
        if is_only_asked or as_json:
            _tell(one, as_json=as_json)
            ctx.exit(0 if one.is_open else EXIT_FAILED)
        stop = _Stop()
        if threading.current_thread() is threading.main_thread():  # signals are nobody else's
            signal.signal(signal.SIGTERM, stop)
        with _released(client, one):
            one = _awaited(client, one)
            if one.state is not ReservationState.READY:
                complain(f"no slot was had: {one.state}: {one.reason or 'no reason is known'}")
                ctx.exit(EXIT_FAILED)
            click.echo(f"{count(one.size, 'place')} of slot {one.slot}.", err=True)
            ctx.exit(_hold(client, one, command, stop))


@click.command()
@click.argument("reservations", nargs=-1, required=True, metavar="RESERVATION...")
@options.JSON
@URL
def release(*, reservations: tuple[str, ...], as_json: bool, url: str) -> None:
    """Give reservations back, by id, how that begins, or key. Harmless for those that ended."""
    with CapacityClient(url) as client:
        ids = [find_reservation_id(client, each) for each in reservations]
        answers = [client.release(each) for each in ids]
    if as_json:
        print_json(answers)
        return
    for each in answers:
        click.echo(f"{each.id} is {each.state}{f': {each.reason}' if each.reason else ''}.")


def _tell(one: ReservationView, *, as_json: bool) -> None:
    if as_json:
        print_json(one)
    else:
        click.echo(f"{one.id} is {one.state}: {clean(one.why)}")


@contextmanager
def _released(client: CapacityClient, one: ReservationView) -> Iterator[None]:
    """In the end it is given back, whatever happens meanwhile."""
    try:
        yield
    finally:
        try:
            client.release(one.id)
        except GrangeError as error:
            complain(f"{one.id} could not be released, and ends with its lease: {error}")


def _awaited(client: CapacityClient, one: ReservationView) -> ReservationView:
    """Once it is pending no more; its lease is renewed meanwhile."""
    if one.state is ReservationState.PENDING:
        click.echo(f"Waits for a slot: {clean(one.why)}", err=True)
    while one.state is ReservationState.PENDING:
        try:
            one = client.wait(one.id, one.version, min(one.lease_s / RENEWALS, WAIT_MAX_S))
            if one.state is ReservationState.PENDING:
                one = client.renew(one.id)
        except OutsideError as error:
            complain(f"{error}; asked again")
            time.sleep(AGAIN_S)
    return one


class _Stop:
    """SIGTERM, with which CI systems stop what they run: the command is to end, and then we; an
    exit that gives the places back where none was begun."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_starting = False
        self._is_wanted = False

    def __call__(self, number: int, _: object) -> None:
        self._is_wanted = True
        if self._process is not None:
            self._process.terminate()
        elif not self._is_starting:
            sys.exit(128 + number)

    def start(self, command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Raises OSError. No signal comes between a command and us, or nobody would end it."""
        self._is_starting = True
        try:
            self._process = subprocess.Popen(command, env=env)
        finally:
            self._is_starting = False
        if self._is_wanted:
            self._process.terminate()
        return self._process


def _hold(client: CapacityClient, one: ReservationView, command: Sequence[str], stop: _Stop) -> int:
    """Until the command has ended; its exit code. Without one until Ctrl-C, or its loss."""
    if not command:
        click.echo(f"Held as {one.id} until Ctrl-C.", err=True)
        while one.is_open:
            time.sleep(one.lease_s / RENEWALS)
            one = _renewed(client, one)
        return EXIT_FAILED
    told = {
        "GRANGE_RESERVATION": one.id,
        "GRANGE_SLOT": one.slot or "",
        "GRANGE_SLOT_ADDRESS": one.address,
    }
    try:
        process = stop.start(command, os.environ | told)
    except OSError as error:
        complain(f"{command[0]} cannot be run: {error.strerror}")
        return EXIT_NO_COMMAND
    while True:
        try:
            code = process.wait(one.lease_s / RENEWALS)
        except subprocess.TimeoutExpired:
            one = _renewed(client, one)
        except KeyboardInterrupt:
            pass  # the command got it as well, and ends as it likes
        else:
            return code if code >= 0 else 128 - code


def _renewed(client: CapacityClient, one: ReservationView) -> ReservationView:
    """As it stands now; what changed is told."""
    if not one.is_open:
        return one  # told already: the command goes on at its own risk
    try:
        now = client.renew(one.id)
    except GrangeError as error:
        complain(f"its lease could not be renewed, and is tried again: {error}")
        return one
    if now.at_risk and now.at_risk != one.at_risk:
        complain(f"slot {now.slot}: {now.at_risk}")
    if not now.is_open:
        complain(f"the reservation is {now.state}: {now.reason}")
    return now
