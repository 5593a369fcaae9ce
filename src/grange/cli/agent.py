"""`grange agent run`."""

from pathlib import Path
from typing import Final
from uuid import UUID

import click

from grange.cli.account import ALL, AgentCommands
from grange.cli.app import Adapters
from grange.cli.config import AGENTS_PORT, AgentOptions, parse_store_dir
from grange.client.credentials import default_state_dir
from grange.errors import OperatorError
from grange.scheduler.facts import Thresholds
from grange.store.path import NIX_STORE

_THRESHOLDS: Final = Thresholds()
_FILE: Final = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=AgentCommands, short_help="Run agents, and say who may be one.")
def agent() -> None:
    """An agent builds on one machine what a coordinator tells it to.

    AGENT is its UUID or its name, and may stand before the command: grange agent ci-3 pause.
    """


for command in ALL:
    agent.add_command(command)


@agent.command()
@click.option(
    "--coordinator",
    "coordinators",
    multiple=True,
    default=(f"127.0.0.1:{AGENTS_PORT}",),
    show_default=True,
    metavar="HOST:PORT",
    help="Where the farm listens for agents; https://HOST:PORT or --ca for TLS. Repeat it for a "
    "farm of several coordinators: the one that leads is found.",
)
@click.option("--uuid", type=click.UUID, help="Who it is, where the farm has made it an account.")
@click.option(
    "--password-file",
    type=_FILE,
    help="The password that the farm gave it [default: it makes one, and registers with it].",
)
@click.option(
    "--token-file",
    type=_FILE,
    help="A token to register with [default: that of a farm on this machine].",
)
@click.option("--ca", type=_FILE, help="Who signed the farm's certificate [default: the system's].")
@click.option("--certificate", type=_FILE, help="Its own, where the farm asks for one: PEM.")
@click.option("--key", type=_FILE, help="Its certificate's key: PEM.")
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
    "--mandatory-tag",
    "mandatory_tags",
    multiple=True,
    metavar="TAG",
    help="Build only what carries this tag; may be repeated. Counts as --tag too.",
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
    help="Take no work while the load of each CPU is higher, where the kernel tells no pressure.",
)
@click.option(
    "--cpu-pressure",
    default=_THRESHOLDS.cpu_pressure_percent,
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help='Take no work while CPU pressure (PSI "some" of 10 s) is higher.',
)
@click.option(
    "--memory-pressure",
    default=_THRESHOLDS.memory_pressure_percent,
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help='Take no work while memory pressure (PSI "full" of 10 s) is higher.',
)
@click.option(
    "--io-pressure",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help='Take no work while I/O pressure (PSI "full" of 10 s) is higher.',
)
@click.pass_obj
def run(
    adapters: Adapters,
    *,
    coordinators: tuple[str, ...],
    uuid: UUID | None,
    password_file: Path | None,
    token_file: Path | None,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    name: str | None,
    state_dir: Path,
    store: str,
    store_dir: str,
    build_dir: Path,
    systems: tuple[str, ...],
    features: tuple[str, ...],
    mandatory_features: tuple[str, ...],
    tags: tuple[str, ...],
    mandatory_tags: tuple[str, ...],
    max_jobs: int,
    cores: int,
    speed_factor: float,
    sandbox: bool,
    store_free_percent: float,
    load_per_cpu: float,
    cpu_pressure: float,
    memory_pressure: float,
    io_pressure: float | None,
) -> None:
    """Build for a farm until SIGTERM or Ctrl-C, which let what runs end; a second one does not."""
    adapters.run_agent(
        AgentOptions(
            coordinators=tuple([_target(each, is_tls=ca is not None) for each in coordinators]),
            name=name,
            uuid=None if uuid is None else str(uuid),
            password_file=password_file,
            token_file=token_file,
            ca=ca,
            certificate=certificate,
            key=key,
            state_dir=state_dir.absolute(),
            store=_store(store),
            store_dir=parse_store_dir(store_dir),
            build_dir=build_dir.absolute(),
            systems=systems or None,
            features=features or None,
            mandatory_features=mandatory_features,
            tags=tuple(dict.fromkeys((*tags, *mandatory_tags))),
            mandatory_tags=mandatory_tags,
            max_jobs=max_jobs,
            cores=cores,
            speed_factor=speed_factor,
            sandbox=sandbox,
            thresholds=Thresholds(
                store_free_percent=store_free_percent,
                load1_per_cpu=load_per_cpu,
                cpu_pressure_percent=cpu_pressure,
                memory_pressure_percent=memory_pressure,
                io_pressure_percent=io_pressure,
            ),
        )
    )


def _target(text: str, *, is_tls: bool) -> str:
    scheme, _, address = text.rpartition("://")
    host, _, port = address.rpartition(":")
    if scheme not in ("", "http", "https") or not host or not port.isascii() or not port.isdigit():
        raise OperatorError(f"--coordinator {text!r} is not HOST:PORT, such as 127.0.0.1:7381")
    if scheme == "http" and is_tls:
        raise OperatorError(f"--coordinator {text} is in the clear, and --ca is for https://")
    return f"{scheme or ('https' if is_tls else 'http')}://{host}:{port}"


def _store(text: str) -> str:
    """`text` with a relative directory made absolute."""
    if text in ("", "daemon") or text.startswith(("unix:", "local?")):
        return text
    return str(Path(text).absolute())
