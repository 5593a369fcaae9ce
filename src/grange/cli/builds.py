"""`grange list`, `show`, `cancel` and `retry`."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grange.cli import options
from grange.cli.ids import find_build
from grange.cli.knobs import DEFER
from grange.cli.progress import ENDED
from grange.cli.text import (
    STYLES,
    clean,
    console,
    count,
    duration,
    moment,
    print_json,
    size,
    step_name,
)
from grange.client.api import GrangeClient
from grange.client.models import BuildView, StepState, StepView
from grange.scheduler.facts import Outcome

STEPS_MAX: Final = 100  # in a table; --json has all

_SUCCESSES: Final = frozenset(each.value for each in Outcome if each.is_success)
# What a person wants to see first.
_INTEREST: Final = {
    state: rank
    for rank, state in enumerate(
        (
            StepState.FAILED,
            StepState.BUILDING,
            StepState.FETCHING,
            StepState.UPLOADING,
            StepState.PUBLISHING,
            StepState.ASSIGNED,
            StepState.BACKING_OFF,
            StepState.READY,
            StepState.WAITING,
            StepState.CANCELLED,
            StepState.DONE,
        )
    )
}


@click.command("list")
@click.option("--unfinished", is_flag=True, help="Only builds that have not ended.")
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many."
)
@options.JSON
@options.URL
def list_builds(*, unfinished: bool, limit: int, as_json: bool, url: str) -> None:
    """List builds, the newest first."""
    with GrangeClient(url) as client:
        builds = client.builds(unfinished=unfinished, limit=limit)
    if as_json:
        print_json(builds)
        return
    if not builds:
        click.echo("No builds yet: grange build -f FILE -A ATTR, or grange build DRV.")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("build", "of", "project", "submitted", "took", "outcome"):
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    for build in builds:
        table.add_row(
            build.id[:8],
            step_name(build.drv_path),
            build.project,
            moment(build.created),
            duration((build.finished or time.time()) - build.created),
            _outcome(build),
        )
    console().print(table)


@click.command()
@click.argument("build")
@options.JSON
@options.URL
def show(*, build: str, as_json: bool, url: str) -> None:
    """Show a build (UUID, its beginning, or .drv path) and its steps."""
    with GrangeClient(url) as client:
        found = find_build(client, build)
        steps = client.build_steps(found.id)
    if as_json:
        print_json({"build": found, "steps": steps})
        return
    screen = console()
    _print_build(screen, found)
    if steps:
        counts = Counter(step.state for step in steps)
        parts = (f"{number:,} {state.value}" for state, number in counts.most_common())
        screen.print(f"{count(len(steps), 'step')}: {', '.join(parts)}")
        screen.print(_steps_table(steps))
        if len(steps) > STEPS_MAX:
            more = count(len(steps) - STEPS_MAX, "more step")
            screen.print(f"… and {more}; --json has all", style="dim")


def _print_build(screen: Console, build: BuildView) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("build", build.id)
    grid.add_row("of", build.drv_path)
    for name, path in build.outputs.items():
        grid.add_row(f"output {name}", path)
    grid.add_row("project", f"{build.project}, priority {build.priority}")
    if build.is_check:
        grid.add_row("check", "built again, and compared with what is published")
    if limits := _limits(build):
        grid.add_row("limits", limits)
    if build.tags:
        grid.add_row("tags", ", ".join(build.tags))
    grid.add_row("submitted", f"{moment(build.created)} by {build.submitted_by or 'unknown'}")
    if build.finished is None and build.not_before > time.time():
        grid.add_row("deferred", f"nothing is begun for it before {moment(build.not_before)}")
    if build.finished is not None:
        took = duration(build.finished - build.created)
        grid.add_row("finished", f"{moment(build.finished)}, after {took}")
    grid.add_row("outcome", _outcome(build))
    if build.cause and build.cause.words:
        grid.add_row("that is", f"{build.cause.words} (at fault: {build.cause.fault})")
    if build.cause and build.cause.message:
        grid.add_row("because", clean(build.cause.message))
    if build.cause and build.cause.advice:
        grid.add_row("what to do", build.cause.advice)
    for support in build.nix_support.values():
        if support.release_name:
            grid.add_row("release", support.release_name)
        for product in support.products:
            size_text = f", {size(product.file_bytes)}" if product.is_regular else ""
            kind = f"{product.type} {product.subtype}".strip()
            grid.add_row("product", f"{product.name or product.output} ({kind}{size_text})")
        for name, metric in support.metrics.items():
            grid.add_row("metric", f"{name} = {metric.value:g} {metric.unit or ''}".rstrip())
    screen.print(grid)


def _limits(build: BuildView) -> str:
    """Those that its project or it itself sets; its derivations may set stricter ones."""
    limits = build.limits
    parts = (
        ("runs", duration(limits.build_s), limits.build_s),
        ("silence", duration(limits.silent_s), limits.silent_s),
        ("log", size(limits.log_bytes), limits.log_bytes),
        ("outputs", size(limits.output_bytes), limits.output_bytes),
    )
    return ", ".join(f"{name} {text}" for name, text, is_set in parts if is_set)


def _steps_table(steps: Sequence[StepView]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("step", "name", "state", "agent"):
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    table.add_column("took", no_wrap=True, justify="right")
    table.add_column("", no_wrap=True, overflow="ellipsis")
    ranked = sorted(steps, key=lambda step: (_INTEREST[step.state], step.id))
    for step in ranked[:STEPS_MAX]:
        running_s = None if step.started is None else time.time() - step.started
        table.add_row(
            str(step.id),
            step.name,
            Text(step.state.value, STYLES[step.state]),
            step.agent_name or "",
            duration(step.build_s if step.state in ENDED else running_s),
            _remark(step),
        )
    return table


def _remark(step: StepView) -> str:
    if step.state is StepState.FAILED:
        return step.outcome or ""
    return "suspect: agents were lost under it" if step.is_suspect else ""


def _outcome(build: BuildView) -> Text:
    if build.outcome is None and build.not_before > time.time():
        return Text(f"deferred until {moment(build.not_before)}", "dim")
    if build.outcome is None:
        return Text("unfinished", "cyan")
    return Text(build.outcome, "green" if build.outcome in _SUCCESSES else "bold red")


@click.command()
@click.argument("builds", nargs=-1, required=True)
@options.JSON
@options.URL
def cancel(*, builds: tuple[str, ...], as_json: bool, url: str) -> None:
    """Stop builds. A step another build wants goes on."""
    _to_each(builds, GrangeClient.cancel, "cancelled", as_json=as_json, url=url)


@click.command()
@click.argument("builds", nargs=-1, required=True)
@DEFER
@options.JSON
@options.URL
def retry(*, builds: tuple[str, ...], not_before: float, as_json: bool, url: str) -> None:
    """Try failed builds again, their failed steps included."""

    def again(client: GrangeClient, build: str) -> BuildView:
        return client.retry(build, not_before)

    _to_each(builds, again, "trying again", as_json=as_json, url=url)


def _to_each(
    builds: Sequence[str],
    call: Callable[[GrangeClient, str], BuildView],
    said: str,
    *,
    as_json: bool,
    url: str,
) -> None:
    with GrangeClient(url) as client:
        done = [call(client, find_build(client, each).id) for each in builds]
    if as_json:
        print_json(done)
    else:
        for build in done:
            click.echo(f"{said}: {step_name(build.drv_path)} ({build.id})")
