"""`grange registry`."""

import os
from pathlib import Path
from typing import Final

import click

from grange.cli.alone import File, Serving, run, serves
from grange.client.connection import DEFAULT_URL

REGISTRY_PORT: Final = 7383
APP: Final = "grange.asgi:registry"
TOKENS: Final = "GRANGE_REGISTRY_TOKENS"


@click.command(short_help="Serve a farm's container images beside its coordinator.")
@click.option(
    "--database",
    required=True,
    envvar="GRANGE_REGISTRY_DATABASE",
    metavar="URL",
    help="The farm's: sqlite:PATH, a path, or postgresql://… It is only read.",
)
@click.option(
    "--store",
    required=True,
    envvar="GRANGE_REGISTRY_STORE",
    metavar="DIR|URL",
    help="The farm's cache directory, or the bucket where it keeps its cache. Parts of layers that "
    "were collected are put there again.",
)
@click.option(
    "--coordinator",
    envvar="GRANGE_URL",
    multiple=True,
    default=(DEFAULT_URL,),
    show_default=True,
    metavar="URL",
    help="Who makes images that are not there yet. Of several coordinators name each, with commas "
    "or another --coordinator.",
)
@click.option(
    "--token-file",
    envvar="GRANGE_TOKEN_FILE",
    type=File,
    help="Has the token that the coordinator is shown; it takes the role read.",
)
@serves(REGISTRY_PORT, TOKENS)
def registry(
    *,
    database: str,
    store: str,
    coordinator: tuple[str, ...],
    token_file: Path | None,
    told: Serving,
) -> None:
    """Serve images under /v2/ until SIGTERM or Ctrl-C, from the database and the store of a farm.

    Images that are there are served while the coordinator is away; as many of these processes as
    one likes may stand before one farm. Under another ASGI server, the application is
    `grange.asgi:registry`, a factory that is told all this by the environment.
    """
    os.environ["GRANGE_REGISTRY_DATABASE"] = database
    os.environ["GRANGE_REGISTRY_STORE"] = store
    os.environ["GRANGE_URL"] = ",".join(coordinator)
    if token_file is not None:
        os.environ["GRANGE_TOKEN_FILE"] = str(token_file)
    run("registry", APP, told, has_lifespan=True)
