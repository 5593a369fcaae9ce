"""What a new instance is started with: cloud-init's, for a Linux with systemd.

The text is for all launches of a pool. `@SLOT@`, `@POOL@`, `@PLACES@`, and for agents
`@COORDINATOR@` and `@REGISTRATION@`, are filled in at each of them.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from textwrap import indent
from typing import Final, Literal
from urllib.parse import urlsplit

from grange.capacity.facts import Pool
from grange.errors import OperatorError

BYTES_MAX: Final = 16_384  # EC2's
_LIB: Final = "/usr/local/lib/grange"
_SCRIPTS: Final = ("imds", "spot-watch", "dead-man", "setup")
_MODE_PLAIN, _MODE_SECRET, _MODE_PROGRAM = "0644", "0600", "0755"


@dataclass(frozen=True, slots=True)
class Builder:
    """How instances of a pool are to be. `kind` says as what they take work."""

    kind: Literal["agent", "sshd"]
    user: str = "nix"  # for sshd: whom clients are
    port: int = 22
    client_keys: str = ""  # for sshd: lines of authorized_keys
    client_ca: str = ""  # or who signs clients' keys
    coordinator: str = ""  # for agents: as they see it, to know the port
    farm_ca: str = ""  # PEM
    overlay_key: str = ""  # of Tailscale: ephemeral, tagged, approved beforehand; "" for no overlay
    login_server: str = ""  # headscale's
    notice_url: str = ""  # of an autoscaler or a farm, to be told of spot notices
    notice_token: str = ""  # that may say so there, and nothing else
    dead_s: int = 3600  # without anybody; then it is powered off
    max_silent_s: int = 3600  # that a build may say nothing
    timeout_s: int = 21_600  # that it may take


def user_data(pool: Pool, builder: Builder) -> str:
    """Raises OperatorError for what cannot work, or is too long for EC2."""
    if builder.kind == "sshd" and not (builder.client_keys.strip() or builder.client_ca.strip()):
        raise OperatorError(
            "nobody could log in to builders: name the clients' public keys, or their CA's"
        )
    head = "#cloud-config\n# Made by 'grange capacity user-data'.\nwrite_files:\n"
    text = head + "".join(_entry(*each) for each in _files(pool, builder))
    text += f"runcmd:\n  - [{_LIB}/setup]\n"
    if len(text.encode()) > BYTES_MAX:
        raise OperatorError(
            f"user data of pool {pool.name} has {len(text.encode())} bytes, and EC2 takes"
            f" {BYTES_MAX}; name a CA of clients instead of all their keys"
        )
    return text


def script(name: str) -> str:
    """A program that instances get."""
    return (files(__package__) / "instance" / name).read_text()


def _entry(path: str, mode: str, content: str) -> str:
    body = indent(content if content.endswith("\n") else content + "\n", "      ")
    return f'  - path: {path}\n    permissions: "{mode}"\n    content: |\n{body}'


def _files(pool: Pool, builder: Builder) -> Iterator[tuple[str, str, str]]:
    yield "/etc/grange/instance", _MODE_PLAIN, _environment(pool, builder)
    yield "/etc/nix/grange.conf", _MODE_PLAIN, nix_conf(pool, builder)
    for name in _SCRIPTS:
        yield f"{_LIB}/{name}", _MODE_PROGRAM, script(name)
    for name in ("dead-man", "spot-watch"):
        unit = _unit(f"ExecStart={_LIB}/{name}\nEnvironmentFile=/etc/grange/instance", "on-failure")
        yield f"/etc/systemd/system/grange-{name}.service", _MODE_PLAIN, unit
    if builder.overlay_key:
        yield "/etc/grange/overlay-key", _MODE_SECRET, builder.overlay_key.strip()
    if builder.notice_url:
        yield "/etc/grange/notice-token", _MODE_SECRET, builder.notice_token.strip()
    yield from _sshd(builder) if builder.kind == "sshd" else _agent(pool, builder)


def _sshd(builder: Builder) -> Iterator[tuple[str, str, str]]:
    yield f"{_LIB}/session", _MODE_PROGRAM, script("session")
    yield "/etc/grange/client-keys", _MODE_PLAIN, builder.client_keys
    yield "/etc/grange/client-ca", _MODE_PLAIN, builder.client_ca
    yield "/etc/grange/sshd_config", _MODE_PLAIN, sshd_config(builder)
    # A stop ends the listener alone: sessions are let be
    start = "ExecStart=/usr/sbin/sshd -D -f /etc/grange/sshd_config\nKillMode=process"
    yield "/etc/systemd/system/grange-sshd.service", _MODE_PLAIN, _unit(start, "on-failure")


def _agent(pool: Pool, builder: Builder) -> Iterator[tuple[str, str, str]]:
    yield "/etc/grange/registration", _MODE_SECRET, "@REGISTRATION@"
    words = ["grange", "agent", "run", "--coordinator", "@COORDINATOR@", "--name", "@SLOT@"]
    words += ["--token-file", "/etc/grange/registration", "--state-dir", "/var/lib/grange-agent"]
    words += ["--max-jobs", "@PLACES@"]
    for option, values in (
        ("--system", pool.systems),
        ("--feature", pool.features),
        ("--mandatory-feature", pool.mandatory_features),
        ("--tag", pool.tags),
    ):
        words += [word for value in values for word in (option, value)]
    if builder.farm_ca:
        yield "/etc/grange/farm-ca.pem", _MODE_PLAIN, builder.farm_ca
        words += ["--ca", "/etc/grange/farm-ca.pem"]
    start = f"ExecStart=/usr/bin/env {shlex.join(words)}\nKillMode=mixed\nTimeoutStopSec=infinity"
    yield "/etc/systemd/system/grange-agent.service", _MODE_PLAIN, _unit(start, "on-failure")


def _unit(service: str, restart: str) -> str:
    return f"[Service]\n{service}\nRestart={restart}\nRestartSec=2\n"


def _environment(pool: Pool, builder: Builder) -> str:
    """Of the programs, as the shell and systemd both read it."""
    is_agent = builder.kind == "agent"
    drain = (
        "systemctl kill --signal=TERM --kill-who=main grange-agent.service"
        if is_agent
        else "systemctl stop grange-sshd.service"
    )
    said = {
        "GRANGE_KIND": builder.kind,
        "GRANGE_SLOT": "@SLOT@",
        "GRANGE_POOL": "@POOL@",
        "GRANGE_NESTED": "1" if pool.is_nested_virtual or "kvm" in pool.features else "0",
        "GRANGE_DRAIN": drain,
        "GRANGE_DEAD_S": str(builder.dead_s),
        "GRANGE_USER": "" if is_agent else builder.user,
        "GRANGE_PORT": str(builder.port),
        "GRANGE_FARM_PORT": _port(builder.coordinator) if is_agent else "",
        "GRANGE_LOGIN_SERVER": builder.login_server,
        "GRANGE_NOTICE_URL": builder.notice_url.rstrip("/"),
    }
    return "".join(f'{name}="{_quotable(name, value)}"\n' for name, value in said.items())


def nix_conf(pool: Pool, builder: Builder) -> str:
    """What a client's Nix cannot say to a builder, it has to know by itself."""
    lines = {
        "max-silent-time": str(builder.max_silent_s),
        "timeout": str(builder.timeout_s),
        "max-jobs": str(pool.capacity),
        "extra-platforms": " ".join(pool.systems),
        "system-features": " ".join(pool.features),
        "builders": "",
    }
    if builder.kind == "sshd":
        lines["trusted-users"] = f"root {builder.user}"  # clients send inputs without signatures
    return "".join(f"{name} = {value}".rstrip() + "\n" for name, value in lines.items())


def sshd_config(builder: Builder) -> str:
    """Of an sshd of its own: for clients of Nix, and for nothing else. Host keys follow."""
    lines = [
        f"Port {builder.port}",
        f"AllowUsers {builder.user}",
        "AuthenticationMethods publickey",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin no",
        "UsePAM no",
        "AuthorizedKeysFile /etc/grange/client-keys",
        f"ForceCommand {_LIB}/session",
        "DisableForwarding yes",
        "PermitTTY no",
        "PermitUserRC no",
        "MaxSessions 1",
        "MaxStartups 100:30:300",
        "ClientAliveInterval 30",
        "ClientAliveCountMax 6",
        "PidFile /run/grange-sshd.pid",
    ]
    if builder.client_ca.strip():
        lines.append("TrustedUserCAKeys /etc/grange/client-ca")
    return "\n".join(lines) + "\n"


def _port(coordinator: str) -> str:
    url = urlsplit(coordinator if "://" in coordinator else f"http://{coordinator}")
    try:
        port = url.port
    except ValueError:
        port = None
    if port is None:
        raise OperatorError(
            f"agents need the farm's address with a port, and not {coordinator!r}; set coordinator"
            ' = "HOST:PORT" in [capacity], as instances see it'
        )
    return str(port)


def _quotable(name: str, value: str) -> str:
    if not value.isprintable() or any(each in value for each in '"$`\\'):
        raise OperatorError(f"{value!r} cannot be {name}: it has quotes or blanks that shells read")
    return value
