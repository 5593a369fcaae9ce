"""`grange capacity haproxy-config`, `nix-machines` and `user-data`: text for other machines."""

from pathlib import Path
from typing import Final

import click

from grange.autoscaler.wiring import NixClient, haproxy_config
from grange.autoscaler.wiring import nix_machines as nix_files
from grange.cli import options
from grange.cli.capacity_tables import AloneFile
from grange.cli.text import print_json
from grange.errors import OperatorError

_CLIENT: Final = NixClient()
_CONFIG: Final = click.option(
    "--config",
    "path",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of `grange autoscaler`.",
)


@click.command("haproxy-config")
@_CONFIG
def haproxy_config_command(path: Path) -> None:
    """Print HAProxy's configuration: a port for each pool, and one for each of its slots.

    HAProxy has to be reloaded where a pool gets a higher max.
    """
    file = _alone(path)
    click.echo(haproxy_config(file.wiring, file.haproxy, file.state_file), nl=False)


@click.command("nix-machines")
@_CONFIG
@click.option(
    "--key-file",
    default=_CLIENT.key_file,
    show_default=True,
    help="The private key with which clients come.",
)
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The public key of the CA that signs builders' host keys.",
)
@click.option(
    "--known-hosts-file",
    default=_CLIENT.known_hosts_file,
    show_default=True,
    help="Where clients keep the line that trusts it.",
)
@click.option("--shared", "is_shared", is_flag=True, help="A line for each pool, not each slot.")
@options.JSON
def nix_machines(
    path: Path,
    *,
    key_file: str,
    ca_file: Path | None,
    known_hosts_file: str,
    is_shared: bool,
    as_json: bool,
) -> None:
    """Print what clients need: Nix's machines, SSH's configuration, and the host CA's line."""
    try:
        ca = "" if ca_file is None else ca_file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"--ca-file {ca_file} cannot be read: {error}") from error
    client = NixClient(key_file, known_hosts_file, ca, is_shared)
    files = nix_files(_alone(path).wiring, client)
    if as_json:
        print_json(
            {
                "machines": files.machines,
                "ssh_config": files.ssh_config,
                "known_hosts": files.known_hosts,
            }
        )
    else:
        click.echo(str(files), nl=False)


def _alone(path: Path) -> AloneFile:
    from grange.cli.capacity_check import read_any_file

    file = read_any_file(path)
    if not isinstance(file, AloneFile):
        raise OperatorError(
            f"{path} is a farm's file: its instances are agents, which nobody reaches by SSH or"
            " through HAProxy; there is nothing to print"
        )
    return file
