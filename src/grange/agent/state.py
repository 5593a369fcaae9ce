"""The agent's own directory: who it is, which process holds it, and which session ended last.

One process at a time holds it, by a lock that dies with the process. So whoever gets the lock knows
that the sessions named inside have ended, and may take over from them at once.
"""

import fcntl
import os
import uuid
from pathlib import Path
from secrets import token_urlsafe
from types import TracebackType
from typing import Final, Self

from grange.errors import OperatorError
from grange.scheduler.facts import AgentId

PASSWORD_BYTES: Final = 32  # of randomness, before they are made text
SESSIONS_MAX: Final = 16  # that an agent may start in vain before it joins; older ones have expired


class StateDir:
    """The state directory, locked for the life of this object. Raises OperatorError."""

    def __init__(self, root: Path, agent: AgentId | None = None) -> None:
        """`agent`: who it is to be, where a farm has given it an account already."""
        self.root = root
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OperatorError(
                f"the agent cannot use its state directory {root}: {error.strerror};"
                " make it writable, or name another one"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise OperatorError(
                f"another agent runs with the state directory {root};"
                " stop it, or give this one a state directory of its own"
            ) from None
        self.agent = self._read_identity(agent)
        self.session = uuid.uuid4().hex
        ended = self._read("sessions").split()
        self.ended_sessions = tuple(ended[-SESSIONS_MAX:])  # the one that may live longest is last
        # Written before the first join: should this process end right after it, the next one knows.
        self._write("sessions", "\n".join((*self.ended_sessions, self.session)) + "\n")

    def _read_identity(self, agent: AgentId | None) -> AgentId:
        text = self._read("agent-id").strip()
        if not text:
            text = agent or str(uuid.uuid4())
            self._write("agent-id", text + "\n")
        try:
            known = AgentId(str(uuid.UUID(text)))
        except ValueError:
            raise OperatorError(
                f"{self.root / 'agent-id'} holds no UUID; remove the file to get a new one"
            ) from None
        if agent is not None and agent != known:
            raise OperatorError(
                f"the state directory {self.root} is agent {known}'s, and not {agent}'s; give "
                "each agent a state directory of its own"
            )
        return known

    def password(self) -> str:
        """What it proves by that it is this agent, made at its first start."""
        text = self._read("password").strip()
        if not text:
            text = token_urlsafe(PASSWORD_BYTES)
            self._write("password", text + "\n")
        return text

    def joined(self) -> None:
        """This session has taken the place of all that ended before it."""
        if self.ended_sessions:
            self.ended_sessions = ()
            self._write("sessions", self.session + "\n")

    def _read(self, name: str) -> str:
        try:
            return (self.root / name).read_text()
        except FileNotFoundError:
            return ""

    def _write(self, name: str, text: str) -> None:
        new = self.root / f"{name}.new"
        with open(new, "w", opener=_for_us_alone) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.root / name)

    def close(self) -> None:
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _for_us_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
