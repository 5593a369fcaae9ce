"""The tokens a farm makes for its own machine at its first start, each in a file of its own.

Whoever may read the file is that administrator, or may register such agents: so it is for one user.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Final

from grange.coordinator.tokens import digest_of, new_token, split_token
from grange.errors import OperatorError
from grange.identity import Credential, CredentialKind, Role

ADMIN_FILE: Final = "admin-token"
AGENT_FILE: Final = "agent-token"

_OWN: Final = (
    (ADMIN_FILE, CredentialKind.TOKEN, "admin", Role.ADMINISTER),
    (AGENT_FILE, CredentialKind.REGISTRATION, "local agents", Role.JOIN),
)


def own_tokens(state: Path, now: float) -> list[Credential]:
    """The records of the tokens in the state directory; one that is missing is made.

    Raises OperatorError for a file that is damaged, cannot be read, or may be read by others.
    """
    return [
        Credential(
            id=id_,
            kind=kind,
            name=name,
            digest=digest_of(secret),
            roles=frozenset({role}),
            created=now,
            created_by="grange",
        )
        for file, kind, name, role in _OWN
        for id_, secret in (_kept(state / file),)
    ]


def _kept(path: Path) -> tuple[str, str]:
    try:
        if not path.exists():
            write_secret(path, new_token()[1] + "\n")
        mode = path.stat().st_mode
        text = path.read_text(errors="replace").strip()
    except OSError as error:
        raise OperatorError(
            f"the farm's own token cannot be kept in {path}: {error.strerror}; let this user read "
            "and write it, and nobody else"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise OperatorError(
            f"{path} can be read by others, and may have been: remove it, and revoke its token "
            "with the one that is made in its place; or chmod 600 it, if nobody else is here"
        )
    parts = split_token(text)
    if parts is None:
        raise OperatorError(f"{path} holds no token; remove it, and a new one is made")
    return parts


def write_secret(path: Path, text: str) -> None:
    """Whole or not at all, for this user's eyes only; where another was faster, its stays."""
    new = path.with_name(f"{path.name}.{token_hex(4)}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileExistsError):
        os.link(new, path)
    new.unlink()
