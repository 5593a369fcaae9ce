"""The certificate that a coordinator shows over HTTP and gRPC, read anew when it is told to."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from grange.errors import OperatorError
from grange.wire.tls import ServerPems


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files."""

    certificate: Path  # the chain, the server's own first
    key: Path
    client_ca: Path | None = None  # who signs certificates of agents; None: none is asked for


class ServerTls:
    """Raises OperatorError, made or told to reload, unless the files fit together."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self.pems = self._read()
        self.context = self._context()

    def reload(self) -> None:
        """Show from now on what the files hold now; where they are wrong, what was good stays."""
        pems = self._read()
        self._context()
        self.context.load_cert_chain(self._files.certificate, self._files.key)
        self.pems = pems

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._files.certificate, self._files.key)
            if self._files.client_ca is not None:  # for gRPC alone: here it is only looked at
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self._files.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise OperatorError(
                f"the files in [tls] do not fit together: {self._files.certificate}, "
                f"{self._files.key}, {self._files.client_ca or 'no client_ca'} ({error}); "
                "each must be PEM, and the key that of the first certificate"
            ) from None
        return context

    def _read(self) -> ServerPems:
        files = self._files
        return ServerPems(
            _bytes(files.certificate),
            _bytes(files.key),
            None if files.client_ca is None else _bytes(files.client_ca),
        )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{path}, named in [tls], cannot be read: {error.strerror}") from error
