"""`grange store`: what an operator does to the stores that hold the cache."""

import asyncio
import json

import click

from grange.cli.config import parse_store_dir
from grange.cli.options import JSON
from grange.errors import OperatorError
from grange.objects.location import parse_location

EXIT_INCOMPLETE = 1
FAILURES_SHOWN = 20


@click.group(short_help="Bring the cache's stores level.")
def store() -> None:
    """The stores that hold the binary cache, named by URL as for `grange serve --store`."""


@store.command()
@click.argument("source")
@click.argument("targets", nargs=-1, required=True)
@click.option("--store-dir", default="/nix/store", show_default=True, metavar="DIR")
@JSON
def fill(source: str, targets: tuple[str, ...], store_dir: str, as_json: bool) -> None:
    """Copy to TARGETS what SOURCE has and they lack; may run beside a farm.

    For a store that was added later or has lost something. Exits with 1 if it still lacks a path.
    """
    from grange.cache.fill import fill as fill_stores
    from grange.objects.open import open_shelves

    locations = [parse_location(url) for url in (source, *targets)]
    locations[0].check_there()
    if any(each.key_files for each in locations):
        raise OperatorError("nothing is signed here: leave secret-key out of the URLs")

    async def run() -> tuple[int, tuple[str, ...]]:
        filled = await fill_stores(open_shelves(locations), parse_store_dir(store_dir))
        return filled.paths, filled.failures

    paths, failures = asyncio.run(run())
    if as_json:
        click.echo(json.dumps({"paths": paths, "failures": failures}))
    else:
        what = "1 path is" if paths == 1 else f"{paths} paths are"
        click.echo(f"{what} in all {len(locations)} stores")
        for failure in failures[:FAILURES_SHOWN]:
            click.echo(failure, err=True)
        if len(failures) > FAILURES_SHOWN:
            click.echo(f"and {len(failures) - FAILURES_SHOWN} more", err=True)
    if failures:
        raise SystemExit(EXIT_INCOMPLETE)
