"""`grange projects`, `pause`, `resume`, `priority` and so on: what operators turn while it runs."""

import re
import time
from datetime import datetime
from typing import Final

import click
from rich import box
from rich.table import Table
from rich.text import Text

from grange.cli import options
from grange.cli.ids import find_build
from grange.cli.text import clean, console, duration, print_json, step_name
from grange.client.api import GrangeClient
from grange.client.models import PauseRequest, PausesView, ProjectView

_SPAN: Final = re.compile(r"\+(\d+(?:\.\d+)?)([smhd])\Z")
_UNIT_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def moment(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float:
    """Seconds since 1970 for a time to come; zero for none.

    2030-01-31T22:00 is meant as it is here, unless it names an offset; +90m is from now.
    """
    if text is None:
        return 0.0
    if match := _SPAN.match(text):
        return time.time() + float(match[1]) * _UNIT_S[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"{text!r} is no time; say 2030-01-31T22:00, or +90m") from None


DEFER: Final = click.option(
    "--defer-until",
    "not_before",
    callback=moment,
    metavar="TIME",
    help="Begin nothing before: 2030-01-31T22:00, or +90m, +8h, +2d from now.",
)
PROJECT: Final = click.option("--project", help="Of this project.")
AGENT: Final = click.option("--agent", help="Of this agent: its id or its name.")


@click.command()
@options.JSON
@options.URL
def projects(*, as_json: bool, url: str) -> None:
    """List projects: shares, quotas, and what they use. Who uses least of its share goes first."""
    with GrangeClient(url) as client:
        answer = client.projects()
    if as_json:
        print_json(answer)
        return
    if not answer:
        click.echo("No project has a rule, a build, or a past.")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("project", overflow="fold")
    for column in ("share", "priority", "running", "queued", "used of late", "use"):
        table.add_column(column, justify="right")
    table.add_column("", overflow="fold")
    for project in answer:
        table.add_row(*_project_row(project))
    console().print(table)


def _project_row(project: ProjectView) -> tuple[str | Text, ...]:
    pause = Text()
    if project.pause is not None:
        pause = Text(_paused(project.pause), "yellow")
    return (
        clean(project.name),
        f"{project.share:g}",
        f"{project.priority:+d}" if project.priority else "",
        _bounded(project.running, project.running_max),
        _bounded(project.queued, project.queued_max),
        duration(project.agent_s),
        f"{project.use:.2f}",
        pause,
    )


def _bounded(count: int, most: int) -> str:
    return f"{count:,} of {most:,}" if most else f"{count:,}"


def _paused(reason: str) -> str:
    return f"paused: {clean(reason)}" if reason else "paused"


@click.command()
@PROJECT
@AGENT
@click.option("--reason", default="", help="For whoever asks why.")
@options.JSON
@options.URL
def pause(*, project: str | None, agent: str | None, reason: str, as_json: bool, url: str) -> None:
    """Begin nothing more: on the whole farm, of a project, or on an agent.

    What runs goes on to its end. It lasts until `grange resume`, over restarts too.
    """
    _check_one(project, agent)
    with GrangeClient(url) as client:
        is_new = project is not None and project not in {p.name for p in client.projects()}
        answer = client.pause(PauseRequest(project=project, agent=agent, reason=reason))
    if is_new:  # it may be to come, or be spelt otherwise
        click.echo(f"project {project} has no rule and no build here: grange projects", err=True)
    _print_pauses(answer, as_json=as_json)


@click.command()
@options.JSON
@options.URL
def pauses(*, as_json: bool, url: str) -> None:
    """List what is paused: the farm, projects, agents."""
    with GrangeClient(url) as client:
        answer = client.pauses()
    _print_pauses(answer, as_json=as_json)


@click.command()
@PROJECT
@AGENT
@options.JSON
@options.URL
def resume(*, project: str | None, agent: str | None, as_json: bool, url: str) -> None:
    """End a pause: of the farm itself, of a project, or of an agent."""
    _check_one(project, agent)
    with GrangeClient(url) as client:
        answer = client.resume(PauseRequest(project=project, agent=agent))
    _print_pauses(answer, as_json=as_json)


def _check_one(project: str | None, agent: str | None) -> None:
    if project is not None and agent is not None:
        raise click.UsageError("name a project or an agent, not both")


def _print_pauses(pauses: PausesView, *, as_json: bool) -> None:
    """All that is paused now, so that nothing stays so by being forgotten."""
    if as_json:
        print_json(pauses)
        return
    lines = [] if pauses.farm is None else [f"the farm is {_paused(pauses.farm)}"]
    lines += [f"project {clean(each.name)} is {_paused(each.reason)}" for each in pauses.projects]
    lines += [f"agent {each.name} is {_paused(each.reason)}" for each in pauses.agents]
    for line in lines or ["nothing is paused"]:
        click.echo(line)


@click.command(context_settings={"ignore_unknown_options": True})  # "-5" is a priority
@click.argument("build")
@click.argument("priority", type=int)
@options.JSON
@options.URL
def priority(*, build: str, priority: int, as_json: bool, url: str) -> None:
    """Raise or lower the PRIORITY of a BUILD; higher goes first.

    What it needs is as urgent as the most urgent build that needs it.
    """
    with GrangeClient(url) as client:
        view = client.prioritise(find_build(client, build).id, priority)
    if as_json:
        print_json(view)
    else:
        click.echo(f"priority {view.priority}: {step_name(view.drv_path)} ({view.id})")
