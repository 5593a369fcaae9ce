"""`grange cache`."""

import os
from pathlib import Path
from typing import Final

import click

from grange.cli.alone import run, serves, serving

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
def cache(
    *,
    store: str,
    listen: str,
    store_dir: str,
    tokens_file: Path | None,
    anonymous: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    workers: int,
) -> None:
    """Serve narinfos and NARs until SIGTERM or Ctrl-C; needs neither farm nor database.

    Under another ASGI server, the application is `grange.asgi:cache`, a factory that is told all
    this by the environment.
    """
    is_guarded = anonymous or tokens_file is not None
    told = serving(listen, workers, tls_cert, tls_key, is_guarded=is_guarded)
    os.environ["GRANGE_CACHE_STORE"] = store
    os.environ["GRANGE_STORE_DIR"] = store_dir
    if tokens_file is not None:
        os.environ[TOKENS] = str(tokens_file)
    run("cache", APP, told)
