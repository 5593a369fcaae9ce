"""What an agent shows of who it is, over gRPC and HTTP alike."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class AgentCredentials:
    agent: str  # its UUID
    password: str = field(repr=False)
    registration: str = field(default="", repr=False)  # a token to register with; "" for none
    name: str = ""  # that it wants to go by once registered

    @property
    def authorization(self) -> str:
        """The value of the header."""
        return "Basic " + b64encode(f"{self.agent}:{self.password}".encode()).decode()

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        shown = [("authorization", self.authorization), ("grange-name", quote(self.name))]
        if self.registration:
            shown.append(("grange-registration", self.registration))
        return shown
