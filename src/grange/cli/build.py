"""`grange build`."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import click

from grange.cli import options
from grange.cli.app import EXIT_INTERRUPTED, Adapters, complain
from grange.cli.instantiate import instantiate
from grange.cli.knobs import DEFER
from grange.cli.progress import Progress
from grange.cli.report import exit_code_of, report
from grange.cli.screen import Screen, open_screen
from grange.cli.text import console, print_json
from grange.client.api import GrangeClient
from grange.client.closure import StorePlace
from grange.client.models import (
    LIMIT_MAX,
    BuildView,
    LimitsView,
    StepState,
    StepView,
    SubmitAnswer,
    SubmitRequest,
    WatchEvent,
)
from grange.client.submit import submit
from grange.errors import OutsideError, PeerError
from grange.scheduler.facts import DEFAULT_PROJECT
from grange.store.path import StoreDir

RECONNECT_S: Final = 120.0  # a farm that restarts is back in seconds
RETRY_S: Final = 1.0
BUILDS_DETAILED_MAX: Final = 20  # of so many builds the farm is asked for all steps at the end


FuncT = TypeVar("FuncT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Shown:
    """How much a person wants to see."""

    as_json: bool
    is_progress_wanted: bool


def _limit(flag: str, name: str, unit: str, text: str) -> Callable[[FuncT], FuncT]:
    """An option for a limit; the project's holds as well."""
    return click.option(
        flag,
        name,
        default=0,
        type=click.IntRange(0, LIMIT_MAX),
        metavar=unit,
        help=f"{text} 0: as its project has it.",
    )


@click.command()
@click.argument("drvs", nargs=-1, metavar="[DRV]...")
@click.option("-f", "--file", metavar="FILE", help="A Nix expression [default: ./default.nix].")
@click.option(
    "-A",
    "--attr",
    "attributes",
    multiple=True,
    metavar="ATTR",
    help="An attribute of it; may be repeated.",
)
@click.option(
    "--argstr",
    "argstrs",
    multiple=True,
    type=(str, str),
    metavar="NAME VALUE",
    help="Pass a string to its function; may be repeated.",
)
@click.option(
    "--store",
    type=click.Path(file_okay=False),
    help="A chroot store that has, or gets, the derivations [default: the system's].",
)
@click.option(
    "--by-path",
    is_flag=True,
    help="Send nothing: the farm fetches DRV from its derivation sources.",
)
@click.option("--detach", is_flag=True, help="Print the build's UUID and do not wait.")
@click.option("--uuid", type=click.UUID, help="Name the build; again is harmless.")
@click.option("--project", default=DEFAULT_PROJECT, show_default=True, help="Who it is for.")
@click.option("--priority", default=0, show_default=True, help="Higher goes first.")
@click.option("--tag", "tags", multiple=True, help="Only agents with this tag; may be repeated.")
@DEFER
@click.option("--check", "is_check", is_flag=True, help="Build again elsewhere, and compare.")
@_limit("--timeout", "build_s", "SECONDS", "Stop it where it runs longer.")
@_limit("--silence", "silent_s", "SECONDS", "Stop it where it logs nothing for so long.")
@_limit("--log-limit", "log_bytes", "BYTES", "Stop it where it logs more.")
@_limit("--output-limit", "output_bytes", "BYTES", "Fail it where an output is larger.")
@click.option("--no-progress", is_flag=True, help="Say nothing before the end.")
@options.JSON
@options.URL
@click.pass_context
def build(
    ctx: click.Context,
    *,
    drvs: tuple[str, ...],
    file: str | None,
    attributes: tuple[str, ...],
    argstrs: tuple[tuple[str, str], ...],
    store: str | None,
    by_path: bool,
    detach: bool,
    uuid: UUID | None,
    project: str,
    priority: int,
    tags: tuple[str, ...],
    not_before: float,
    is_check: bool,
    build_s: int,
    silent_s: int,
    log_bytes: int,
    output_bytes: int,
    no_progress: bool,
    as_json: bool,
    url: str,
) -> None:
    """Build derivations (DRV...) or what a Nix expression (-f, -A) evaluates to.

    Follows the progress until all is built. Exits with 0 if all was built, 1 if something failed,
    2 if the request was wrong, 3 if the farm is at fault. Ctrl-C leaves the build running.
    """
    if not drvs and file is None and not attributes and not os.path.exists("default.nix"):
        raise click.UsageError("name a .drv file, or an expression with -f and -A")
    if by_path and (file is not None or attributes or not drvs):
        raise click.UsageError("--by-path goes with .drv paths, not with an expression")
    adapters: Adapters = ctx.obj
    shown = _Shown(as_json, is_progress_wanted=not no_progress and not as_json)
    with GrangeClient(url) as client:
        place = _place(StoreDir(client.status().store_dir), store)
        paths = [_drv_path(drv, place) for drv in drvs]
        if file is not None or attributes or not drvs:
            paths += instantiate(file, attributes, argstrs, store)
        paths = list(dict.fromkeys(paths))
        request = SubmitRequest(
            drv_paths=paths,
            ids=_ids(paths, uuid),
            project=project,
            priority=priority,
            tags=list(tags),
            limits=LimitsView(
                build_s=build_s, silent_s=silent_s, log_bytes=log_bytes, output_bytes=output_bytes
            ),
            is_check=is_check,
            not_before=not_before,
        )
        tell = _teller(is_wanted=shown.is_progress_wanted)
        try:
            if by_path:
                tell("the farm fetches what it lacks")
                client.fetch_derivations(paths)
                answer = client.submit(request)
            else:
                answer = submit(client, request, place, lambda: adapters.local_store(store), tell)
        except KeyboardInterrupt:
            again = f"; to do it again is harmless, with --uuid {uuid}" if uuid else ""
            complain(f"interrupted before the farm said that it builds{again}")
            ctx.exit(EXIT_INTERRUPTED)
        if detach:
            _print_submitted(answer, as_json)
        else:
            ctx.exit(_follow(client, answer, shown))


def _place(store_dir: StoreDir, store: str | None) -> StorePlace:
    root = os.path.abspath(store).rstrip("/") if store else ""
    return StorePlace(store_dir, root + store_dir.root)


def _drv_path(text: str, place: StorePlace) -> str:
    """The store path meant by an argument: itself, its file in a chroot store, a link to either."""
    store_dir = place.store_dir
    if text.startswith(store_dir.root + "/"):
        path = text
    else:
        real = os.path.realpath(text)
        head, _, base = real.rpartition("/")
        if head not in (store_dir.root, os.path.realpath(place.physical_dir)):
            raise PeerError(f"{text} is not in {place.physical_dir}; name its store with --store")
        path = f"{store_dir.root}/{base}"
    if not path.endswith(".drv"):
        raise PeerError(f"{text} is not a .drv file; hand in the derivation that makes it")
    return store_dir.show(store_dir.parse(path))


def _ids(paths: Sequence[str], uuid: UUID | None) -> list[str]:
    if uuid is None:
        return [str(uuid4()) for _ in paths]
    if len(paths) > 1:
        raise PeerError(f"--uuid names one build, and these are {len(paths)}; choose with -A")
    return [str(uuid)]


def _teller(*, is_wanted: bool) -> Callable[[str], None]:
    stderr = console(stderr=True)

    def tell(text: str) -> None:
        if is_wanted:
            stderr.print(text, style="dim", soft_wrap=True)

    return tell


def _print_submitted(answer: SubmitAnswer, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo("\n".join(build.id for build in answer.builds))


def _follow(client: GrangeClient, answer: SubmitAnswer, shown: _Shown) -> int:
    """Watch the builds until they end, say how they did, and return the exit code."""
    progress = Progress(answer.steps)
    ids = [build.id for build in answer.builds]
    stderr = console(stderr=True)
    try:
        with open_screen(stderr, progress, is_wanted=shown.is_progress_wanted) as screen:
            for event in watch_through(client, ids, screen.say, logs=stderr.is_terminal):
                _show(event, progress, screen)
    except KeyboardInterrupt:
        them = " ".join(ids[:3]) + (" ..." if len(ids) > 3 else "")
        stderr.print(f"The build goes on without you. To follow it: grange log --follow {ids[0]}")
        stderr.print(f"To stop it: grange cancel {them}", soft_wrap=True)
        return EXIT_INTERRUPTED
    builds = [progress.builds[each] for each in ids if each in progress.builds]
    steps = _steps_of(client, builds, progress)
    if shown.as_json:
        print_json({"builds": builds, "steps": steps})
    else:
        report(console(), client, builds, steps)
    return exit_code_of(builds)


def _show(event: WatchEvent, progress: Progress, screen: Screen) -> None:
    ended = progress.apply(event)
    if ended is not None:
        screen.step_ended(ended)
    else:
        screen.changed()


def watch_through(
    client: GrangeClient,
    builds: Sequence[str],
    say: Callable[[str], None],
    *,
    logs: bool,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[WatchEvent]:
    """`GrangeClient.watch`, begun anew where the farm goes away and comes back.

    OutsideError after two minutes without it; the builds go on all the same.
    """
    waited_s = 0.0
    unfinished = set(builds)
    while unfinished:
        try:
            for event in client.watch(builds, logs=logs):
                waited_s = 0.0
                if event.type == "start":
                    unfinished -= {each.id for each in event.builds if each.outcome is not None}
                elif event.type == "build" and event.build.outcome is not None:
                    unfinished.discard(event.build.id)
                yield event
            if not unfinished:
                return
            reason = OutsideError(f"the farm at {client.url} ended the watch early")
        except OutsideError as error:
            reason = error
        if waited_s >= RECONNECT_S:
            raise OutsideError(
                f"{reason}. What it has begun goes on when it is back: grange show {builds[0]}"
            ) from reason
        if waited_s == 0.0:
            say("The farm does not answer; trying again for two minutes.")
        sleep(RETRY_S)
        waited_s += RETRY_S


def _steps_of(
    client: GrangeClient, builds: Sequence[BuildView], progress: Progress
) -> list[StepView]:
    """The steps that these builds waited for, those that ended before the watch began included."""
    steps = dict(progress.steps)
    if len(builds) <= BUILDS_DETAILED_MAX:
        for build in builds:
            for step in client.build_steps(build.id):
                # A failure that is not the step's own is forgotten there, and known here.
                is_known = step.id in steps and step.state is not StepState.DONE
                if not is_known and (step.id in steps or (step.since or 0.0) >= build.created):
                    steps[step.id] = step
    return sorted(steps.values(), key=lambda step: (step.since or 0.0, step.id))
