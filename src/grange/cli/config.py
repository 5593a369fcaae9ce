"""What `grange serve` and `grange agent run` are started with."""

import os
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

from grange.cli.farm_file import FarmFile
from grange.errors import OperatorError
from grange.scheduler.facts import Limits, Thresholds
from grange.store.path import NIX_STORE, StoreDir

HTTP_PORT: Final = 7380
AGENTS_PORT: Final = 7381
LEASE_S: Final = 30.0  # three missed heartbeats


def default_state_dir() -> Path:
    """/var/lib/grange for root, otherwise where the user's state is kept."""
    if os.geteuid() == 0:
        return Path("/var/lib/grange")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "grange"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 takes a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``host:port`` or ``[host]:port``; OperatorError unless the host is loopback."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise OperatorError(f"{text!r} is not an address to listen on; write 127.0.0.1:7380")
        if not _is_loopback(host):
            raise OperatorError(
                f"{text!r} is open to other machines, and agents and users have no identities yet: "
                "listen on 127.0.0.1, and reach it from elsewhere through a tunnel such as ssh -L"
            )
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


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
    store_dir: StoreDir = NIX_STORE
    upstreams: tuple[Upstream, ...] = ()
    key_files: tuple[Path, ...] = ()  # none: a key is made in the state directory
    database: str | None = None  # URL of PostgreSQL; None: SQLite in the state directory
    public_url: str | None = None  # what others reach the farm by; None: http://{http}
    farm: FarmFile = field(default_factory=lambda: FarmFile(Limits()))
    lease_s: float = LEASE_S

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
    store: str = ""  # "" or "daemon": the system's; "unix:SOCKET"; or an absolute directory
    store_dir: StoreDir = NIX_STORE
    build_dir: Path = Path("/tmp")
    systems: tuple[str, ...] | None = None  # what its Nix says
    features: tuple[str, ...] | None = None
    mandatory_features: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    max_jobs: int = 0  # one for each CPU
    cores: int = 0  # for each build; 0: what a fair share is
    speed_factor: float = 1.0
    sandbox: bool = True
    thresholds: Thresholds = field(default_factory=Thresholds)
