"""`grange serve`."""

from functools import partial
from pathlib import Path

import click

from grange.cli.app import Adapters
from grange.cli.config import (
    AGENTS_PORT,
    HTTP_PORT,
    LEASE_S,
    Address,
    ServeConfig,
    Upstream,
    parse_store_dir,
)
from grange.cli.farm_file import FarmFile, read_farm_file
from grange.client.credentials import default_state_dir
from grange.errors import OperatorError
from grange.objects.location import parse_location
from grange.scheduler.facts import Limits


@click.command(short_help="Run a farm: coordinator, cache and web.")
@click.option(
    "--listen",
    default=f"127.0.0.1:{HTTP_PORT}",
    show_default=True,
    metavar="HOST:PORT",
    help="For people and caches: API, web and binary cache over HTTP.",
)
@click.option(
    "--listen-agents",
    default=f"127.0.0.1:{AGENTS_PORT}",
    show_default=True,
    metavar="HOST:PORT",
    help="For agents: gRPC.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_state_dir,
    help="Logs and, unless told otherwise, database, cache and key. Coordinators that share a "
    "--database share this too.",
)
@click.option(
    "--database",
    envvar="GRANGE_DATABASE",
    metavar="URL",
    help="postgresql://…, which several coordinators may share: one leads, the others stand by "
    "[default: journal.db in the state directory].",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the binary cache lies [default: cache in the state directory].",
)
@click.option(
    "--store",
    "stores",
    multiple=True,
    metavar="URL",
    help="Where the binary cache lies instead: file:///DIR, s3://BUCKET?region=…, gs://BUCKET or "
    "az://CONTAINER (docs/operating/stores.md). May be repeated: a path is published once all have "
    "it, and the first is read from.",
)
@click.option(
    "--store-dir",
    default="/nix/store",
    show_default=True,
    metavar="DIR",
    help="The directory all store paths of this farm begin with.",
)
@click.option(
    "--substituter",
    "substituters",
    multiple=True,
    type=(str, str),
    metavar="URL KEYS",
    help="A binary cache to take paths from, and its public keys with commas between them. "
    "May be repeated; the first that has a path is used.",
)
@click.option(
    "--key-file",
    "key_files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A secret key to sign with, made by `grange key generate` or by Nix. May be repeated "
    "[default: one is made in the state directory].",
)
@click.option("--public-url", metavar="URL", help="How others reach this farm over HTTP.")
@click.option(
    "--lease",
    "lease_s",
    default=LEASE_S,
    show_default=True,
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="After so long without a word an agent has lost its attempts.",
)
@click.option(
    "--config",
    "farm_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML: projects, limits, retries, scheduling, retention, hooks, access, TLS, pools of "
    "elastic agents and more; see docs/operating. What it says of limits comes before the options "
    "that follow.",
)
@click.option(
    "--build-timeout",
    "build_s",
    default=0,
    type=click.IntRange(min=0),
    metavar="SECONDS",
    help="A build that runs longer fails; 0 sets no limit.",
)
@click.option(
    "--silence-timeout",
    "silent_s",
    default=0,
    type=click.IntRange(min=0),
    metavar="SECONDS",
    help="A build that logs nothing for so long fails; 0: no limit.",
)
@click.option(
    "--log-bytes",
    default=256 << 20,
    show_default=True,
    type=click.IntRange(min=0),
    help="A build that logs more fails; 0 sets no limit.",
)
@click.option(
    "--output-bytes",
    default=0,
    type=click.IntRange(min=0),
    help="A build with a larger output fails; 0 sets no limit.",
)
@click.pass_obj
def serve(
    adapters: Adapters,
    *,
    listen: str,
    listen_agents: str,
    state_dir: Path,
    database: str | None,
    cache_dir: Path | None,
    stores: tuple[str, ...],
    store_dir: str,
    substituters: tuple[tuple[str, str], ...],
    key_files: tuple[Path, ...],
    public_url: str | None,
    lease_s: float,
    farm_file: Path | None,
    build_s: int,
    silent_s: int,
    log_bytes: int,
    output_bytes: int,
) -> None:
    """Run a farm until SIGTERM or Ctrl-C: coordinator, binary cache, API and web."""
    limits = Limits(
        silent_s=silent_s, build_s=build_s, log_bytes=log_bytes, output_bytes=output_bytes
    )
    if stores and cache_dir is not None:
        raise OperatorError("say --cache-dir or --store, not both: --store file:///DIR is the same")
    locations = tuple([parse_location(url) for url in stores])
    config = ServeConfig(
        http=Address.parse(listen),
        agents=Address.parse(listen_agents),
        state_dir=state_dir,
        database=database,
        cache_dir=cache_dir,
        stores=locations,
        store_dir=parse_store_dir(store_dir),
        upstreams=tuple(_upstream(url, keys) for url, keys in substituters),
        key_files=(*key_files, *[file for each in locations for file in each.key_files]),
        public_url=public_url,
        farm=FarmFile(limits) if farm_file is None else read_farm_file(farm_file, limits),
        reread=None if farm_file is None else partial(read_farm_file, farm_file, limits),
        lease_s=lease_s,
    )
    config.check()
    adapters.serve(config)


def _upstream(url: str, keys: str) -> Upstream:
    public_keys = tuple(filter(None, keys.replace(",", " ").split()))
    if not url.startswith(("http://", "https://")):
        raise OperatorError(f"--substituter {url!r} is not an http:// or https:// URL")
    if not public_keys:
        raise OperatorError(
            f"--substituter {url} has no public key; without one nothing it serves can be checked"
        )
    return Upstream(url.rstrip("/"), public_keys)
