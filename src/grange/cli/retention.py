"""`grange collect`, `pin`, `pins` and `unpin`: what is kept of the cache."""

from typing import Final

import click
from rich import box
from rich.table import Table

from grange.cli import options
from grange.cli.ids import find_build
from grange.cli.text import clean, console, count, moment, print_json, print_table, size
from grange.client.api import GrangeClient
from grange.client.models import CollectView, PinRequest, PinView

PATHS_SHOWN: Final = 20


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why the rest stays.")
@click.option(
    "--pressed", is_flag=True, help="Room is short: outputs that were stored lately go as well."
)
@options.JSON
@options.URL
def collect(*, dry_run: bool, pressed: bool, as_json: bool, url: str) -> None:
    """Delete from the cache what nothing keeps: see docs/operating/retention.md.

    Safe while the farm works. Files go an hour after their paths, for downloads under way.
    """
    with GrangeClient(url) as client:
        answer = client.plan_collection(pressed) if dry_run else client.collect(pressed)
    if as_json:
        print_json(answer)
    else:
        _show(answer)


def _show(answer: CollectView) -> None:
    verb = "collected" if answer.is_done else "would go"
    for path in answer.paths[:PATHS_SHOWN]:
        click.echo(clean(path))
    if answer.count > PATHS_SHOWN:
        click.echo(f"… and {answer.count - PATHS_SHOWN} more (--json lists all)")
    click.echo(f"{answer.count} paths, {size(answer.file_bytes)}: {verb}")
    if answer.builds or answer.attempts:
        click.echo(f"records of {answer.builds} builds and {answer.attempts} attempts: {verb}")
    if not answer.kept:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kept for")
    table.add_column("paths", justify="right")
    table.add_column("files", justify="right")
    for kept in answer.kept:
        table.add_row(clean(kept.reason), str(kept.paths), size(kept.file_bytes))
    console().print(table)


@click.command()
@click.argument("what", metavar="PATH|BUILD")
@click.option("--name", help="What the pin is called; one of that name is replaced.")
@options.JSON
@options.URL
def pin(what: str, name: str | None, *, as_json: bool, url: str) -> None:
    """Keep a store path with its closure, or a build with its outputs, until it is unpinned."""
    with GrangeClient(url) as client:
        is_path = what.startswith("/") and not what.endswith(".drv")
        answer = client.pin(
            PinRequest(
                name=name,
                path=what if is_path else None,
                build=None if is_path else find_build(client, what).id,
            )
        )
    if as_json:
        print_json(answer)
    else:
        click.echo(f"pinned as {clean(answer.name)}")


@click.command()
@options.JSON
@options.URL
def pins(*, as_json: bool, url: str) -> None:
    """List what is pinned."""
    with GrangeClient(url) as client:
        answer = client.pins()
    if as_json:
        print_json(answer)
        return
    if not answer:
        click.echo("Nothing is pinned.")
        return
    columns = ("name", "what", "since", "by")
    print_table(columns, (_row(each) for each in answer))


def _row(each: PinView) -> tuple[str, str, str, str]:
    what = each.path or f"build {each.build}"
    return clean(each.name), clean(what), moment(each.created), clean(each.created_by)


@click.command()
@click.argument("name")
@options.JSON
@options.URL
def unpin(name: str, *, as_json: bool, url: str) -> None:
    """Let go of a pin; what it kept goes with the next collection."""
    with GrangeClient(url) as client:
        left = client.unpin(name)
    if as_json:
        print_json(left)
    else:
        click.echo(f"{name} is let go of; {count(len(left), 'pin')} left")
