"""`grange hooks`: how hooks do, what they failed to take, and what becomes of that."""

import time

import click
from rich.text import Text

from grange.cli import options
from grange.cli.text import clean, count, duration, moment, print_json, print_table, step_name
from grange.client.api import GrangeClient
from grange.client.hook_models import HookFailure, HookView
from grange.errors import PeerError

ALL = click.option("--all", "is_all", is_flag=True, help="All that were given up.")
EVENTS = click.argument("events", nargs=-1, type=click.IntRange(min=1), metavar="[EVENT]...")


@click.group(invoke_without_command=True)
@options.JSON
@options.URL
@click.pass_context
def hooks(ctx: click.Context, *, as_json: bool, url: str) -> None:
    """List hooks and how they do; with a command, see to what they failed to take."""
    if ctx.invoked_subcommand is not None:
        return
    with GrangeClient(url) as client:
        answer = client.hooks()
    if as_json:
        print_json(answer)
        return
    if not answer:
        click.echo("The farm's file names no hook: [hooks.NAME], see docs/operating/hooks.md.")
        return
    columns = ("hook", "does", "events", "projects", "waiting", "given up", "latest error")
    print_table(columns, (_hook_row(hook) for hook in answer))


@hooks.command()
@click.argument("hook", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1_000))
@options.JSON
@options.URL
def failures(*, hook: str | None, limit: int, as_json: bool, url: str) -> None:
    """List events that a hook did not take in all its tries, the newest first."""
    with GrangeClient(url) as client:
        answer = client.hook_failures(hook, limit=limit)
    if as_json:
        print_json(answer)
        return
    if not answer:
        click.echo("Nothing was given up.")
        return
    columns = ("hook", "event", "what", "of", "when", "tries", "error")
    print_table(columns, (_failure_row(failure) for failure in answer))
    click.echo("grange hooks retry HOOK EVENT... tells of them again; skip lets go of them.")


@hooks.command()
@click.argument("hook")
@EVENTS
@ALL
@options.JSON
@options.URL
def retry(*, hook: str, events: tuple[int, ...], is_all: bool, as_json: bool, url: str) -> None:
    """Tell HOOK again of events that were given up."""
    with GrangeClient(url) as client:
        answer = client.retry_hook(hook, _chosen(events, is_all=is_all))
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{count(answer.changed, 'event')} will be told again.")


@hooks.command()
@click.argument("hook")
@EVENTS
@ALL
@options.JSON
@options.URL
def skip(*, hook: str, events: tuple[int, ...], is_all: bool, as_json: bool, url: str) -> None:
    """Let go of events that HOOK was not told; those that wait after a failure as well."""
    with GrangeClient(url) as client:
        answer = client.skip_hook(hook, _chosen(events, is_all=is_all))
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{count(answer.changed, 'event')} will never be told.")


def _chosen(events: tuple[int, ...], *, is_all: bool) -> list[int] | None:
    if is_all == bool(events):
        raise PeerError("say which events, by their numbers in `grange hooks failures`, or --all")
    return None if is_all else [*events]


def _hook_row(hook: HookView) -> tuple[str | Text, ...]:
    return (
        hook.name,
        hook.does,
        ", ".join(hook.events),
        "all" if hook.projects is None else ", ".join(hook.projects),
        f"{hook.waiting:,}",
        Text(f"{hook.given_up:,}", "bold red" if hook.given_up else ""),
        clean(hook.last_error),
    )


def _failure_row(failure: HookFailure) -> tuple[str, ...]:
    event = failure.event
    build, step, agent = event.get("build"), event.get("step"), event.get("agent")
    of = ""
    if build is not None:
        of = f"{build['id'][:8]} {step_name(build['drv_path'])}"
    elif step is not None:
        of = step.get("name", "")
    elif agent is not None:
        of = agent.get("name", agent["id"])
    ago = duration(time.time() - event["time"])
    return (
        failure.hook,
        str(event["id"]),
        event["event"],
        of,
        f"{moment(event['time'])}, {ago} ago",
        str(failure.tries),
        clean(failure.error),
    )
