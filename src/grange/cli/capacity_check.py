"""`grange capacity check-config`."""

from pathlib import Path

import click

from grange.capacity.facts import Pool
from grange.cli import options
from grange.cli.app import EXIT_FAILED, Adapters
from grange.cli.capacity_tables import AloneFile, CapacityFile, read_alone_file
from grange.cli.farm_file import read_farm_file
from grange.cli.tables import toml
from grange.cli.text import print_json, print_table
from grange.errors import OperatorError
from grange.scheduler.facts import Limits

_OF_ALONE = {"haproxy", "daemon", "overlay"}  # tables that no farm's file has


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--offline", "is_offline", is_flag=True, help="Ask no cloud and no HAProxy.")
@options.JSON
@click.pass_context
def check_config(ctx: click.Context, *, path: Path, is_offline: bool, as_json: bool) -> None:
    """Say what is wrong with FILE, be it of `grange serve` or of `grange autoscaler`.

    Asks clouds, HAProxy and overlay, too, whether what it says of them works: images, subnets,
    rights, servers. Nothing is launched or changed. Exits with 1 where something does not work.
    """
    file = read_any_file(path)
    capacity = file.capacity if isinstance(file, AloneFile) else file
    adapters: Adapters = ctx.obj
    assert adapters.capacity_troubles is not None
    troubles = [] if is_offline else adapters.capacity_troubles(file)
    if as_json:
        print_json({"pools": [_row(pool) for pool in capacity.pools], "troubles": troubles})
    else:
        head = ("pool", "systems", "features", "slots", "places", "offerings", "$/h at most")
        print_table(head, [tuple(_row(pool).values()) for pool in capacity.pools])
        for trouble in troubles:
            click.secho(trouble, fg="red", err=True)
        if not troubles:
            asked = ", and nothing outside was asked" if is_offline else ""
            click.echo(f"{path} is in order{asked}.")
    if troubles:
        ctx.exit(EXIT_FAILED)


def read_any_file(path: Path) -> AloneFile | CapacityFile:
    """Of a farm or of an autoscaler alone. Raises OperatorError."""
    if _OF_ALONE & toml(path).keys():
        return read_alone_file(path)
    file = read_farm_file(path, Limits()).capacity
    if not file.pools:
        raise OperatorError(f"{path}: there is no pool; add a [pools.NAME] section")
    return file


def _row(pool: Pool) -> dict[str, str]:
    prices = [
        each.price(market)
        for each in pool.offerings
        for market in (pool.market, pool.fallback)
        if market is not None
    ]
    most = pool.max * max(prices, default=0.0)
    return {
        "pool": pool.name,
        "systems": " ".join(pool.systems),
        "features": " ".join(pool.features),
        "slots": f"{pool.min} to {pool.max}",
        "places": str(pool.capacity),
        "offerings": str(len(pool.offerings)),
        "hourly_max": f"{most:.2f}" if most else "",
    }
