"""What a stock Nix client needs to build on slots: machines, SSH's configuration, a host CA."""

from dataclasses import dataclass
from typing import Final

from grange.autoscaler.wiring.ports import Wiring, slots
from grange.capacity.facts import Pool
from grange.errors import OperatorError

HOST_ALIAS: Final = "grange-builder"  # the principal in every builder's host certificate


@dataclass(frozen=True, slots=True)
class NixClient:
    """Where a client keeps what."""

    key_file: str = "/etc/nix/grange_ed25519"
    known_hosts_file: str = "/etc/nix/grange_known_hosts"
    ca: str = ""  # of host keys, as in its .pub file
    is_shared: bool = False  # a line for each pool, instead of one for each slot


@dataclass(frozen=True, slots=True)
class NixFiles:
    machines: str
    ssh_config: str
    known_hosts: str
    known_hosts_file: str

    def __str__(self) -> str:
        return "\n".join(
            (
                "# /etc/nix/machines, where nix.conf says: builders = @/etc/nix/machines",
                "# and builders-use-substitutes = true",
                self.machines,
                "# /etc/ssh/ssh_config.d/grange.conf",
                self.ssh_config,
                f"# {self.known_hosts_file}",
                self.known_hosts,
            )
        )


def nix_machines(wiring: Wiring, client: NixClient) -> NixFiles:
    """A machine for each slot: Nix uploads to one at a time of each name, and builds on as many at
    once as it has names. Raises OperatorError."""
    machines, hosts = [], []
    for pool in wiring.pools:
        port = wiring.port(pool.name)
        if client.is_shared:
            machines.append(_machine(wiring, client, pool, pool.name, pool.capacity * pool.max))
            hosts.append(_host(wiring, client, pool.name, port))
        else:
            for number, slot in slots(pool):
                machines.append(_machine(wiring, client, pool, slot, pool.capacity))
                hosts.append(_host(wiring, client, slot, port + number))
    return NixFiles(
        machines="".join(machines),
        ssh_config="\n".join(hosts),
        known_hosts=_authority(client.ca),
        known_hosts_file=client.known_hosts_file,
    )


def _machine(wiring: Wiring, client: NixClient, pool: Pool, name: str, jobs: int) -> str:
    cells = (
        f"ssh-ng://{wiring.user}@{name}",
        ",".join(pool.systems),
        client.key_file,
        str(jobs),
        "1",
        ",".join(pool.features) or "-",
        ",".join(pool.mandatory_features) or "-",
        "-",  # no host key of one machine: see known_hosts
    )
    if spoilt := [
        cell for cell in cells if any(c.isspace() or c in ";#" for c in cell) or not cell
    ]:
        raise OperatorError(
            f"pool {pool.name!r} cannot be a line of Nix's machines: {spoilt[0]!r} is empty or has"
            " a blank, ';' or '#' in it; change its systems, features, user or key file"
        )
    return " ".join(cells) + "\n"


def _host(wiring: Wiring, client: NixClient, name: str, port: int) -> str:
    return f"""\
Host {name}
    HostName {wiring.host}
    Port {port}
    HostKeyAlias {HOST_ALIAS}
    UserKnownHostsFile {client.known_hosts_file}
    StrictHostKeyChecking yes
    IdentitiesOnly yes
    # Also until there is room on a builder: HAProxy takes the connection before that
    ConnectTimeout 300
    ServerAliveInterval 30
    ServerAliveCountMax 6
    # One connection is one build
    ControlMaster no
    ControlPath none
"""


def _authority(ca: str) -> str:
    """The line that trusts every builder with a certificate of the CA."""
    if not ca:
        return (
            "# @cert-authority grange-builder ssh-ed25519 AAAA… (the public key of your host CA)\n"
        )
    words = ca.split()
    if len(words) < 2 or not words[0].startswith(("ssh-", "ecdsa-")) or "\n" in ca.strip():
        raise OperatorError(
            f"{ca[:60]!r} is no public key of a host CA; make one with ssh-keygen -t ed25519, and"
            " name its .pub file"
        )
    return f"@cert-authority {HOST_ALIAS} {words[0]} {words[1]}\n"
