"""`grange log`."""

import sys

import click

from grange.cli import options
from grange.cli.build import watch_through
from grange.cli.ids import find_step_or_build
from grange.cli.progress import Progress
from grange.cli.screen import ending_line
from grange.cli.text import clean, console, print_json
from grange.client.api import GrangeClient
from grange.client.models import BuildView, StepView, WatchLog
from grange.errors import PeerError


@click.command()
@click.argument("what", metavar="BUILD|STEP|DRV")
@click.option("--follow", is_flag=True, help="Go on until it ends.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document; with --follow one event a line.",
)
@options.URL
def log(*, what: str, follow: bool, as_json: bool, url: str) -> None:
    """Print the log of a step's latest attempt.

    Of a build it is that of the step that failed, or of its last step; with --follow those of
    all its steps, as they are written.
    """
    with GrangeClient(url) as client:
        found = find_step_or_build(client, what)
        if isinstance(found, BuildView) and follow and found.outcome is None:
            _follow_build(client, found, as_json=as_json)
        else:
            _print_log(client, _attempt(client, found), follow=follow, as_json=as_json)


def _attempt(client: GrangeClient, found: StepView | BuildView) -> int:
    if isinstance(found, BuildView):
        if found.cause and found.cause.attempt is not None:
            return found.cause.attempt
        steps = client.build_steps(found.id)
        if not steps:
            raise PeerError(f"{found.id} has no log: everything was in the cache already")
        found = steps[0]  # the root
    if found.attempt is None:
        raise PeerError(
            f"{found.name} has no log here: it is {found.state.value} and was not attempted; "
            f"grange why {found.id} says more"
        )
    return found.attempt


def _print_log(client: GrangeClient, attempt: int, *, follow: bool, as_json: bool) -> None:
    chunks = client.log(attempt, follow=follow)
    if as_json and not follow:
        text = b"".join(chunks).decode(errors="replace")
        print_json({"attempt": attempt, "log": text})
        return
    out = sys.stdout.buffer
    for chunk in chunks:
        if as_json:
            event = WatchLog(step=0, attempt=attempt, text=chunk.decode(errors="replace"))
            out.write(event.model_dump_json().encode() + b"\n")
        else:
            out.write(chunk)
        out.flush()


def _follow_build(client: GrangeClient, build: BuildView, *, as_json: bool) -> None:
    """Every line that any step of the build logs, behind the step's name."""
    progress = Progress(0)
    screen = console()
    stderr = console(stderr=True)
    rests: dict[int, str] = {}  # by step: the line that has not ended yet
    for event in watch_through(client, [build.id], stderr.print, logs=True):
        if as_json:
            click.echo(event.model_dump_json())
            continue
        ended = progress.apply(event)
        if ended is not None:
            if rest := rests.pop(ended.id, ""):
                click.echo(f"{ended.name}> {clean(rest)}")
            screen.print(ending_line(ended), soft_wrap=True)
        if event.type == "log":
            step = progress.steps.get(event.step)
            name = step.name if step else str(event.step)
            *lines, rests[event.step] = (rests.get(event.step, "") + event.text).split("\n")
            for line in lines:
                click.echo(f"{name}> {clean(line)}")
