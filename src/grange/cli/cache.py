"""`grange cache`."""

import os
from typing import Final

import click

from grange.cli.alone import Serving, run, serves

CACHE_PORT: Final = 7382
APP: Final = "grange.asgi:cache"
TOKENS: Final = "GRANGE_CACHE_TOKENS"


@click.command(short_help="Serve a binary cache alone, without a farm.")
@click.option(
    "--store",
    required=True,
    envvar="GRANGE_CACHE_STORE",
    metavar="DIR|URL",
    help="What is served: the farm's cache directory, or the bucket where it keeps its cache.",
)
@serves(CACHE_PORT, TOKENS)
def cache(*, store: str, told: Serving) -> None:
    """Serve narinfos and NARs until SIGTERM or Ctrl-C; needs neither farm nor database.

    Under another ASGI server, the application is `grange.asgi:cache`, a factory that is told all
    this by the environment.
    """
    os.environ["GRANGE_CACHE_STORE"] = store
    run("cache", APP, told)
