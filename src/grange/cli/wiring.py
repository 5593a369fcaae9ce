"""`grange capacity haproxy-config`, `nix-machines` and `user-data`: text for other machines."""

from pathlib import Path
from typing import Final

import click

from grange.autoscaler.wiring import Builder, NixClient, haproxy_config, user_data
from grange.autoscaler.wiring import nix_machines as nix_files
from grange.capacity.facts import Pool, PoolName
from grange.cli import options
from grange.cli.capacity_check import read_any_file
from grange.cli.capacity_tables import AloneFile, CapacityFile
from grange.cli.text import print_json
from grange.errors import OperatorError

_CLIENT: Final = NixClient()
_BUILDER: Final = Builder("sshd")
_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_CONFIG: Final = click.option(
    "--config",
    "path",
    required=True,
    metavar="FILE",
    type=_FILE,
    help="The file of `grange autoscaler`, or for user data of `grange serve`.",
)


@click.command("haproxy-config")
@_CONFIG
@click.option(
    "--user",
    default="haproxy",
    show_default=True,
    help="Whom HAProxy becomes; '' for whoever starts it.",
)
@click.option("--group", default="", metavar="NAME", help="Who may open its socket, beside root.")
@options.JSON
def haproxy_config_command(path: Path, *, user: str, group: str, as_json: bool) -> None:
    """Print HAProxy's configuration: a port for each pool, and one for each of its slots.

    HAProxy has to be reloaded where a pool gets a higher max.
    """
    file = _alone(path)
    text = haproxy_config(file.wiring, file.haproxy, file.state_file, user, group)
    if as_json:
        print_json({"haproxy_config": text})
    else:
        click.echo(text, nl=False)


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
    type=_FILE,
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
    client = NixClient(key_file, known_hosts_file, _text("--ca-file", ca_file), is_shared)
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


@click.command("user-data")
@_CONFIG
@click.option("--pool", "name", metavar="NAME", help="Which, where the file has several.")
@click.option("--client-keys", "keys", type=_FILE, help="Public keys of clients that come by SSH.")
@click.option(
    "--client-ca", "ca", type=_FILE, help="Or the public key of the CA that signs theirs."
)
@click.option(
    "--tailscale-key",
    "overlay",
    type=_FILE,
    help="A key to join Tailscale with: ephemeral, tagged, approved beforehand.",
)
@click.option("--login-server", default="", metavar="URL", help="Of headscale.")
@click.option("--notice-url", default="", metavar="URL", help="Where to tell of spot notices.")
@click.option(
    "--notice-token",
    "notice",
    type=_FILE,
    help="The token for that: of role build with an autoscaler alone.",
)
@click.option(
    "--dead-s",
    type=click.IntRange(60),
    default=_BUILDER.dead_s,
    show_default=True,
    help="Power off when nobody with a right to it was there for so long.",
)
@click.option(
    "--max-silent-time",
    "max_silent_s",
    type=click.IntRange(0),
    default=_BUILDER.max_silent_s,
    show_default=True,
    help="Seconds that a build may say nothing; 0: no limit.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.IntRange(0),
    default=_BUILDER.timeout_s,
    show_default=True,
    help="Seconds that a build may take; 0: no limit.",
)
@options.JSON
def user_data_command(
    path: Path,
    *,
    name: str | None,
    keys: Path | None,
    ca: Path | None,
    overlay: Path | None,
    login_server: str,
    notice_url: str,
    notice: Path | None,
    dead_s: int,
    max_silent_s: int,
    timeout_s: int,
    as_json: bool,
) -> None:
    """Print what instances of a pool start with: cloud-init's, for ec2.user_data of the pool.

    With the file of a farm they become agents of it, with that of `grange autoscaler` builders
    that clients reach by SSH. What differs between launches is filled in at each.
    """
    file = read_any_file(path)
    is_alone = isinstance(file, AloneFile)
    capacity = file.capacity if isinstance(file, AloneFile) else file
    builder = Builder(
        "sshd" if is_alone else "agent",
        user=file.wiring.user if isinstance(file, AloneFile) else "",
        port=file.haproxy.port if isinstance(file, AloneFile) else 22,
        client_keys=_text("--client-keys", keys),
        client_ca=_text("--client-ca", ca),
        coordinator=capacity.coordinator or "",
        farm_ca=_text("ca in [capacity]:", capacity.ca),
        overlay_key=_text("--tailscale-key", overlay),
        login_server=login_server,
        notice_url=notice_url,
        notice_token=_text("--notice-token", notice),
        dead_s=dead_s,
        max_silent_s=max_silent_s,
        timeout_s=timeout_s,
    )
    if isinstance(file, AloneFile) and file.overlay is not None and overlay is None:
        click.secho(
            "no --tailscale-key: instances are waited for on the network of [overlay], which they "
            "then must join by what their image holds",
            fg="yellow",
            err=True,
        )
    text = user_data(_pool(path, capacity, name), builder)
    if as_json:
        print_json({"user_data": text})
    else:
        click.echo(text, nl=False)


def _pool(path: Path, file: CapacityFile, name: str | None) -> Pool:
    named = {pool.name: pool for pool in file.pools}
    if name is None and len(named) == 1:
        return file.pools[0]
    if name not in named:
        said = "names no pool" if name is None else f"{name!r} is no pool of {path}"
        raise OperatorError(f"--pool {said}; there are {', '.join(named)}")
    return named[PoolName(name)]


def _text(option: str, path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{option} {path} cannot be read: {error}") from error


def _alone(path: Path) -> AloneFile:
    file = read_any_file(path)
    if not isinstance(file, AloneFile):
        raise OperatorError(
            f"{path} is a farm's file: its instances are agents, which nobody reaches by SSH or"
            " through HAProxy; there is nothing to print"
        )
    return file
