"""The token that a person or program shows to a farm: where it is found without being asked for.

A token is never taken from the command line, where every process of the machine could read it.
"""

import netrc
import os
from base64 import b64encode
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from grange.errors import OperatorError

TOKEN_PREFIX: Final = "grange_"
ADMIN_FILE: Final = "admin-token"  # in the state directory of a farm on this machine

_told: Path | None = None


def use_token_file(path: Path | None) -> None:
    """Have this process show the token in `path` to farms, before any other."""
    global _told  # noqa: PLW0603 - a command line has one, whichever of its parts makes calls
    _told = path


def default_state_dir() -> Path:
    """/var/lib/grange for root, otherwise where the user's state is kept."""
    if os.geteuid() == 0:
        return Path("/var/lib/grange")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "grange"


def authorization_for(url: str) -> str | None:
    """The header to show at `url`, None for none: of --token-file, GRANGE_TOKEN,
    GRANGE_TOKEN_FILE, netrc, or the state directory of a farm on this machine, whichever is first.

    Raises OperatorError for a file that cannot be read or holds no token.
    """
    if _told is not None:
        return bearer(token_in(_told))
    if token := os.environ.get("GRANGE_TOKEN"):
        return bearer(_checked(token.strip(), "GRANGE_TOKEN"))
    if file := os.environ.get("GRANGE_TOKEN_FILE"):
        return bearer(token_in(Path(file)))
    host = urlsplit(url).hostname or ""
    if (found := _of_netrc(host)) is not None:
        return found
    own = default_state_dir() / ADMIN_FILE
    # Never to another machine, whose farm it would make ours to whoever runs that.
    if is_loopback(host) and os.access(own, os.R_OK):
        return bearer(token_in(own))
    return None


def bearer(token: str) -> str:
    return f"Bearer {token}"


def token_in(path: Path) -> str:
    """The token kept in a file."""
    try:
        text = path.read_text(errors="replace").strip()
    except OSError as error:
        raise OperatorError(f"the token file {path} cannot be read: {error.strerror}") from error
    return _checked(text, str(path))


def _checked(token: str, where: str) -> str:
    if not (token.startswith(TOKEN_PREFIX) and token.isascii() and token.isprintable()):
        raise OperatorError(
            f"{where} holds no token of a Grange farm: those begin with {TOKEN_PREFIX}"
        )
    return token


def _of_netrc(host: str) -> str | None:
    """What ~/.netrc, or the file that NETRC names, has for this very host."""
    file = os.environ.get("NETRC") or str(Path("~/.netrc").expanduser())
    if not os.access(file, os.R_OK):
        return None
    try:
        found = netrc.netrc(file).hosts.get(host)
    except (netrc.NetrcParseError, OSError) as error:
        raise OperatorError(f"{file} cannot be read as a netrc file: {error}") from None
    if found is None:
        return None
    login, _, password = found
    return "Basic " + b64encode(f"{login}:{password}".encode()).decode()


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
