"""Options of `grange capacity`: whom to ask."""

import os
import re
from collections.abc import Callable, Sequence
from getpass import getuser
from typing import Any, Final, TypeVar

import click

from grange.cli import options
from grange.client.capacity import SOCKET, is_socket_there
from grange.client.connection import DEFAULT_URL

_SPAN: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd]?)\Z")
_UNIT_S: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

CommandT = TypeVar("CommandT", bound=Callable[..., Any] | click.Command)


def _found(_ctx: click.Context, _parameter: click.Parameter, urls: Sequence[str]) -> str:
    if urls:
        return ",".join(urls)
    return f"unix:{SOCKET}" if is_socket_there() else os.environ.get("GRANGE_URL") or DEFAULT_URL


_URL: Final = click.option(
    "--url",
    envvar="GRANGE_CAPACITY_URL",
    multiple=True,
    callback=_found,
    show_envvar=True,
    help="An autoscaler, as unix:/PATH or http(s)://HOST:PORT, or a farm  [default: "
    f"unix:{SOCKET} if it is there, else GRANGE_URL, else {DEFAULT_URL}].",
)


def URL(command: CommandT) -> CommandT:  # noqa: N802 - reads like the other options
    """Which autoscaler, and as whom."""
    return _URL(options.TOKEN_FILE(command))


def me() -> str:
    """Who is at the keyboard, for people who read what was done."""
    try:
        return os.environ.get("SUDO_USER") or getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def span(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    """Seconds, of `90`, `90s`, `15m`, `2h` or `1d`; None for none."""
    if text is None:
        return None
    if match := _SPAN.match(text):
        return float(match[1]) * _UNIT_S[match[2]]
    raise click.BadParameter(f"{text!r} is no span of time; say 90s, 15m, 2h or 1d")
