"""What `grange serve` and `grange agent run` are started with."""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from grange.cli.farm_file import FarmFile
from grange.client.credentials import default_state_dir, is_loopback, token_in
from grange.errors import OperatorError
from grange.objects.location import StoreLocation
from grange.scheduler.facts import Limits, Thresholds
from grange.store.path import NIX_STORE, StoreDir

HTTP_PORT: Final = 7380
AGENTS_PORT: Final = 7381
AGENT_FILE: Final = "agent-token"  # in a farm's state directory: for agents of this machine
LEASE_S: Final = 30.0  # three missed heartbeats


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 takes a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``host:port`` or ``[host]:port``; OperatorError for anything else."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise OperatorError(f"{text!r} is not an address to listen on; write 127.0.0.1:7380")
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_store_dir(text: str) -> StoreDir:
    """Read an absolute directory; OperatorError for anything else."""
    root = text.rstrip("/")
    if not root.startswith("/"):
        raise OperatorError(f"--store-dir {text!r} is not an absolute path such as /nix/store")
    return StoreDir(root)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A binary cache whose paths the farm takes instead of building them."""

    url: str
    public_keys: tuple[str, ...]  # name:base64; at least one of them signs every path


@dataclass(frozen=True, slots=True)
class ServeConfig:
    http: Address = Address("127.0.0.1", HTTP_PORT)
    agents: Address = Address("127.0.0.1", AGENTS_PORT)
    state_dir: Path = field(default_factory=default_state_dir)
    cache_dir: Path | None = None  # None: cache in the state directory
    stores: tuple[StoreLocation, ...] = ()  # the first is read from; none: the cache directory
    store_dir: StoreDir = NIX_STORE
    upstreams: tuple[Upstream, ...] = ()
    key_files: tuple[Path, ...] = ()  # none: a key is made in the state directory
    database: str | None = None  # URL of PostgreSQL; None: SQLite in the state directory
    public_url: str | None = None  # what others reach the farm by; None: http://{http}
    farm: FarmFile = field(default_factory=lambda: FarmFile(Limits()))
    # Reads what `farm` was read from once more; raises OperatorError. None: there is no file.
    reread: Callable[[], FarmFile] | None = None
    lease_s: float = LEASE_S

    @property
    def is_local(self) -> bool:
        """Whether nobody beyond this machine is meant to reach it over HTTP."""
        if self.public_url is not None:
            return is_loopback(urlsplit(self.public_url).hostname or "")
        return self.http.is_loopback

    @property
    def may_all_read(self) -> bool:
        """Whether callers who show no credential may read."""
        if self.farm.anonymous is None:
            return self.is_local
        return self.farm.anonymous == "read"

    def check(self) -> None:
        """Raises OperatorError for settings that make no sense, or not together."""
        if self.public_url is not None and not self.public_url.startswith(("http://", "https://")):
            raise OperatorError(
                f"--public-url {self.public_url!r} is no URL; write https://farm.example"
            )
        if self.farm.trusts_loopback and not (
            self.is_local and self.http.is_loopback and self.agents.is_loopback
        ):
            raise OperatorError(
                "[access] trust_loopback is for farms that only their own machine reaches, and "
                "--listen, --listen-agents or --public-url say that others do: through a proxy "
                "they would all be trusted. Take one or the other out; programs of this machine "
                "find their token by themselves"
            )

    @property
    def journal_url(self) -> str:
        """As `grange.db.open.open_journal` takes it."""
        return self.database or str(self.state_dir / "journal.db")


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Named as in the agent. None, 0 and "" where it finds out by itself."""

    coordinators: tuple[str, ...] = (f"http://127.0.0.1:{AGENTS_PORT}",)
    state_dir: Path = field(default_factory=lambda: default_state_dir() / "agent")
    name: str | None = None  # its host name
    uuid: str | None = None  # what its state directory says
    password_file: Path | None = None  # made by the farm; None: it makes one for itself
    token_file: Path | None = None  # of a token to register with
    ca: Path | None = None  # PEM, of who signed the farm's certificate; None: the system's
    certificate: Path | None = None  # PEM, its own
    key: Path | None = None
    store: str = ""  # "" or "daemon": the system's; "unix:SOCKET"; or an absolute directory
    store_dir: StoreDir = NIX_STORE
    build_dir: Path = Path("/tmp")
    systems: tuple[str, ...] | None = None  # what its Nix says
    features: tuple[str, ...] | None = None
    mandatory_features: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    mandatory_tags: tuple[str, ...] = ()
    max_jobs: int = 0  # one for each CPU
    cores: int = 0  # for each build; 0: what a fair share is
    speed_factor: float = 1.0
    sandbox: bool = True
    thresholds: Thresholds = field(default_factory=Thresholds)

    def password(self) -> str:
        """That the farm has given it; "" where it has its own. Raises OperatorError."""
        if self.password_file is None:
            return ""
        text = _read(self.password_file).decode(errors="replace").strip()
        if not text or not text.isascii() or not text.isprintable():
            raise OperatorError(
                f"{self.password_file} holds no password; make one: grange agent AGENT password new"
            )
        return text

    def registration(self) -> str:
        """The token that it registers with; "" for none.

        Unless it was told of one, that of a farm on this machine. Raises OperatorError.
        """
        if self.token_file is not None:
            return token_in(self.token_file)
        own = default_state_dir() / AGENT_FILE
        hosts = [urlsplit(each).hostname or "" for each in self.coordinators]
        return token_in(own) if all(map(is_loopback, hosts)) and os.access(own, os.R_OK) else ""

    def pems(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Of the CA, its own certificate and its key. Raises OperatorError: gRPC would end the
        process over such files."""
        if (self.certificate is None) is not (self.key is None):
            raise OperatorError("--certificate and --key go together; name both")
        try:
            if self.ca is not None:
                ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None and self.key is not None:
                ssl.create_default_context().load_cert_chain(self.certificate, self.key)
        except ssl.SSLError as error:
            raise OperatorError(
                f"--ca, --certificate and --key must be PEM, and the key that of the first "
                f"certificate ({error})"
            ) from error
        except OSError:
            pass  # told below, with the file's name
        ca, certificate, key = [
            None if path is None else _read(path) for path in (self.ca, self.certificate, self.key)
        ]
        return ca, certificate, key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from error
