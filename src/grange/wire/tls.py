"""TLS of the gRPC service and its callers, from PEM as files have it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc


@dataclass(frozen=True, slots=True)
class ServerPems:
    """All bytes of PEM files."""

    certificate: bytes  # the chain, the server's own first
    key: bytes = field(repr=False)
    client_ca: bytes | None  # who signs certificates of agents; None: none is asked for


@dataclass(frozen=True, slots=True)
class ClientPems:
    """None: as the system has it, and without a certificate of one's own."""

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


def server_credentials(current: Callable[[], ServerPems]) -> grpc.ServerCredentials:
    """`current` is asked at every handshake, from threads of gRPC's; it answers with the same
    object until there is another."""
    known = current()

    def changed() -> Any:  # None for no change, which grpc-stubs do not know
        nonlocal known
        latest = current()
        if latest is known:
            return None
        known = latest
        return _configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(known), changed, require_client_authentication=known.client_ca is not None
    )


def _configuration(pems: ServerPems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pems.key, pems.certificate)], root_certificates=pems.client_ca
    )


def channel_credentials(pems: ClientPems) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(pems.ca, pems.key, pems.certificate)
