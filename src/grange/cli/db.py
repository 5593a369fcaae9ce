"""`grange db`: what an operator does to the farm's journal."""

import asyncio
import json
from typing import TYPE_CHECKING, Protocol

import click

from grange.cli.options import JSON

if TYPE_CHECKING:
    from grange.cli.app import Adapters

EXIT_DAMAGED = 1


class JournalTools(Protocol):
    """What the commands here do; see `grange.db.tools`."""

    async def migrate(self, url: str) -> tuple[int, int]: ...

    async def check(self, url: str) -> list[str]: ...

    async def copy(self, source: str, target: str) -> dict[str, int]: ...


@click.group(short_help="Migrate, check and move the farm's journal.")
def db() -> None:
    """The farm's journal: JOURNAL is a path, sqlite:PATH or postgresql://…"""


@db.command()
@click.argument("journal")
@JSON
@click.pass_obj
def migrate(adapters: "Adapters", journal: str, as_json: bool) -> None:
    """Bring JOURNAL to this version of Grange, or make it.

    A coordinator does so itself when it starts. A migration only adds, so that coordinators of the
    version before go on working meanwhile.
    """
    before, after = asyncio.run(adapters.journal_tools().migrate(journal))
    if as_json:
        click.echo(json.dumps({"before": before, "after": after}))
    elif before == 0:
        click.echo(f"made, with schema version {after}")
    elif before == after:
        click.echo(f"up to date: schema version {after}")
    else:
        click.echo(f"migrated from schema version {before} to {after}")


@db.command()
@click.argument("journal")
@JSON
@click.pass_context
def check(ctx: click.Context, journal: str, as_json: bool) -> None:
    """Say whether JOURNAL contradicts itself; exits with 1 if it does. Changes nothing."""
    adapters: Adapters = ctx.obj
    findings = asyncio.run(adapters.journal_tools().check(journal))
    if as_json:
        click.echo(json.dumps({"is_sound": not findings, "findings": findings}))
    else:
        click.echo("\n".join(findings) or "sound")
    if findings:
        ctx.exit(EXIT_DAMAGED)


@db.command()
@click.argument("source")
@click.argument("target")
@JSON
@click.pass_obj
def copy(adapters: "Adapters", source: str, target: str, as_json: bool) -> None:
    """Copy the whole journal SOURCE, on SQLite, to TARGET, an empty database on PostgreSQL.

    Stop the coordinator first, and start it on TARGET afterwards: NARs, narinfos and logs stay
    where they are. SOURCE is not changed.
    """
    counts = asyncio.run(adapters.journal_tools().copy(source, target))
    if as_json:
        click.echo(json.dumps({"rows": counts}))
        return
    for table, rows in counts.items():
        click.echo(f"{rows:>10,}  {table}")
    click.echo("copied, and counted again")
