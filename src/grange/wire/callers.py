"""Who calls a method of the gRPC service, as far as the connection tells, and what each asks."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from grange.errors import UnauthenticatedError
from grange.identity import Identity, Role

_CREDENTIALS: Final = ("authorization", "grange-registration")

# What each method asks of its caller; one that is not here cannot be served.
RIGHTS: Final[Mapping[str, Role]] = {
    "CheckVersion": Role.BUILD,
    "OpenTunnel": Role.BUILD,
    "BuildLog": Role.BUILD,
    "BuildResult": Role.BUILD,
    "BuildStepUpdate": Role.BUILD,
    "CompleteBuild": Role.BUILD,
    "FetchPaths": Role.BUILD,
    "FetchRequisites": Role.BUILD,
    "HasPath": Role.BUILD,
    "RequestMultipartParts": Role.BUILD,
    "RequestPresignedUrl": Role.BUILD,
    "NotifyPresignedUploadComplete": Role.BUILD,
}
OPEN_METHODS: Final = ("Check", "Watch")  # of gRPC's health service: up or not, and no more


@dataclass(frozen=True, slots=True)
class Caller:
    """What a call shows of who makes it."""

    metadata: Mapping[str, str] = field(repr=False)  # of one value each; names in lower case
    address: str  # without its port; "" where it has none
    certificate: frozenset[str] | None  # names in it; None where TLS asked for none
    agent: str = ""  # that it says it is, where it has said so, and that agent's name
    name: str = ""


Identify = Callable[[Caller], Awaitable[Identity]]


def caller_of(context: Any) -> Caller:
    """Of a grpc.aio.ServicerContext. Raises UnauthenticatedError for credentials sent twice."""
    metadata: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if name in metadata and name in _CREDENTIALS:
            raise UnauthenticatedError(f"{name} was sent twice; send it once")
        if isinstance(value, str):
            metadata[name] = value
    kind, _, address = unquote(context.peer()).partition(":")
    host = address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""
    return Caller(metadata, host, _certificate(context.auth_context()))


def _certificate(found: Mapping[str, Sequence[bytes]]) -> frozenset[str] | None:
    """The names in the certificate that the caller proved to have the key of."""
    if not found.get("x509_pem_cert"):
        return None
    names = (*found.get("x509_common_name", ()), *found.get("x509_subject_alternative_name", ()))
    return frozenset(name.decode(errors="replace").removeprefix("urn:uuid:") for name in names)
