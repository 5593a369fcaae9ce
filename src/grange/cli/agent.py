"""`grange agent run`."""

from pathlib import Path
from typing import Final

import click

from grange.cli.app import Adapters
from grange.cli.config import AGENTS_PORT, AgentOptions, default_state_dir, parse_store_dir
from grange.errors import OperatorError
from grange.scheduler.facts import Thresholds
from grange.store.path import NIX_STORE

_THRESHOLDS: Final = Thresholds()


@click.group(short_help="Run an agent, which builds.")
def agent() -> None:
    """An agent builds on one machine what a coordinator tells it to."""


@agent.command()
@click.option(
    "--coordinator",
    "coordinators",
    multiple=True,
    default=(f"127.0.0.1:{AGENTS_PORT}",),
    show_default=True,
    metavar="HOST:PORT",
    help="Where the farm listens for agents. Repeat it for a farm of several coordinators: the "
    "one that leads is found.",
)
@click.option("--name", help="What people call it [default: this machine's host name].")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: default_state_dir() / "agent",
    help="Its identity, logs and roots. Each agent needs its own.",
)
@click.option(
    "--store",
    default="",
    metavar="STORE",
    help="Where to build: a directory with a private store in it, or unix:SOCKET of a daemon "
    "[default: the system's store].",
)
@click.option(
    "--store-dir",
    default=NIX_STORE.root,
    show_default=True,
    metavar="DIR",
    help="The directory all store paths of the farm begin with.",
)
@click.option(
    "--build-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/tmp"),
    show_default=True,
    help="Where its Nix builds; watched for space.",
)
@click.option(
    "--system",
    "systems",
    multiple=True,
    metavar="SYSTEM",
    help="Build for this system; may be repeated [default: what its Nix says].",
)
@click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="FEATURE",
    help="Offer this system feature; may be repeated.",
)
@click.option(
    "--mandatory-feature",
    "mandatory_features",
    multiple=True,
    metavar="FEATURE",
    help="Build only what requires this feature; may be repeated.",
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="TAG",
    help="Build also what carries this tag; may be repeated.",
)
@click.option(
    "--max-jobs",
    default=0,
    type=click.IntRange(min=0),
    metavar="N",
    help="So many builds at once [default: one for each CPU].",
)
@click.option(
    "--cores",
    default=0,
    type=click.IntRange(min=0),
    metavar="N",
    help="So many CPUs for each build [default: a fair share].",
)
@click.option(
    "--speed-factor",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="How fast, against other agents.",
)
@click.option(
    "--sandbox/--no-sandbox",
    default=True,
    show_default=True,
    help="Whether builds see only their inputs.",
)
@click.option(
    "--store-free-percent",
    default=_THRESHOLDS.store_free_percent,
    type=float,
    help="Take no work while the store's disk has less free.",
)
@click.option(
    "--load-per-cpu",
    default=_THRESHOLDS.load1_per_cpu,
    type=float,
    help="Take no work while the load of each CPU is higher.",
)
@click.pass_obj
def run(
    adapters: Adapters,
    *,
    coordinators: tuple[str, ...],
    name: str | None,
    state_dir: Path,
    store: str,
    store_dir: str,
    build_dir: Path,
    systems: tuple[str, ...],
    features: tuple[str, ...],
    mandatory_features: tuple[str, ...],
    tags: tuple[str, ...],
    max_jobs: int,
    cores: int,
    speed_factor: float,
    sandbox: bool,
    store_free_percent: float,
    load_per_cpu: float,
) -> None:
    """Build for a farm until SIGTERM or Ctrl-C, which let what runs end; a second one does not."""
    adapters.run_agent(
        AgentOptions(
            coordinators=tuple(map(_target, coordinators)),
            name=name,
            state_dir=state_dir.absolute(),
            store=_store(store),
            store_dir=parse_store_dir(store_dir),
            build_dir=build_dir.absolute(),
            systems=systems or None,
            features=features or None,
            mandatory_features=mandatory_features,
            tags=tags,
            max_jobs=max_jobs,
            cores=cores,
            speed_factor=speed_factor,
            sandbox=sandbox,
            thresholds=Thresholds(
                store_free_percent=store_free_percent, load1_per_cpu=load_per_cpu
            ),
        )
    )


def _target(text: str) -> str:
    host, _, port = text.removeprefix("http://").rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise OperatorError(f"--coordinator {text!r} is not HOST:PORT, such as 127.0.0.1:7381")
    return f"http://{host}:{port}"


def _store(text: str) -> str:
    """`text` with a relative directory made absolute."""
    if text in ("", "daemon") or text.startswith(("unix:", "local?")):
        return text
    return str(Path(text).absolute())
