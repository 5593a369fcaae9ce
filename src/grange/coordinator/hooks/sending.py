"""What the three kinds of hooks have in common."""

from dataclasses import dataclass
from typing import Final, Protocol

from grange.errors import OutsideError
from grange.ports import FarmEvent

ERROR_CHARS_MAX: Final = 2_000  # of what is kept of a failure


class DeliveryError(OutsideError):
    """A hook did not take an event; the text is for whoever runs it."""

    def __init__(self, text: str, *, is_final: bool = False, wait_s: float = 0.0) -> None:
        """`is_final`: another try would end the same way. `wait_s`: not before so many seconds."""
        super().__init__(text[:ERROR_CHARS_MAX])
        self.is_final = is_final
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Call:
    """One try to tell a hook of an event."""

    event: FarmEvent
    body: bytes  # JSON, as docs/operating/hooks.md says
    token: str  # of the farm's API, for the time of this try
    sent: float  # wall clock


class Sender(Protocol):
    async def send(self, call: Call) -> None:
        """Return once the hook has taken it. Raises DeliveryError.

        Where it is cancelled, nothing of the try goes on afterwards.
        """

    async def close(self) -> None: ...
