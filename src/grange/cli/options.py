"""Options that several commands share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from grange.client.connection import DEFAULT_URL
from grange.client.credentials import use_token_file

CommandT = TypeVar("CommandT", bound=Callable[..., Any] | click.Command)


def _joined(_ctx: click.Context, _parameter: click.Parameter, urls: Sequence[str]) -> str:
    return ",".join(urls)


_URL: Final = click.option(
    "--url",
    envvar="GRANGE_URL",
    multiple=True,
    default=(DEFAULT_URL,),
    callback=_joined,
    show_default=True,
    show_envvar=True,
    help="The farm. Of several coordinators name each, with commas or another --url: the next is "
    "asked where one is gone.",
)


def _use(_ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    use_token_file(path)


TOKEN_FILE: Final = click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_use,
    expose_value=False,
    help="Show the token in this file [default: that of GRANGE_TOKEN, GRANGE_TOKEN_FILE, netrc, or "
    "of a farm on this machine].",
)


def URL(command: CommandT) -> CommandT:  # noqa: N802 - reads like the other options
    """Which farm, and as whom."""
    return _URL(TOKEN_FILE(command))


JSON: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
