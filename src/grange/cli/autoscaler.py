"""`grange autoscaler`."""

from functools import partial
from pathlib import Path

import click

from grange.cli.app import Adapters
from grange.cli.capacity_tables import read_alone_file


@click.command(short_help="Run elastic capacity alone, without a farm.")
@click.option(
    "--config",
    "path",
    required=True,
    envvar="GRANGE_AUTOSCALER_CONFIG",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML: pools, clouds, HAProxy and where it listens; see docs/operating/capacity.md.",
)
@click.pass_obj
def autoscaler(adapters: Adapters, *, path: Path) -> None:
    """Launch and end builders behind HAProxy, and grant reservations on them, until SIGTERM or
    Ctrl-C: instances go on meanwhile. SIGHUP has the pools read anew.

    A farm needs none: its coordinator does this where the file of `grange serve` has [pools.NAME].
    """
    assert adapters.run_autoscaler is not None
    adapters.run_autoscaler(read_alone_file(path), partial(read_alone_file, path))
