"""The Nix worker protocol: build, import and query through a nix-daemon kept warm."""

from grange.daemon.client import Daemon
from grange.daemon.failure import DaemonError, DaemonGone
from grange.daemon.messages import Listener
from grange.daemon.operations import BuildMode, GcAction
from grange.daemon.options import Options
from grange.daemon.pool import DaemonPool
from grange.daemon.result import BuildResult, BuildStatus

__all__ = [
    "BuildMode",
    "BuildResult",
    "BuildStatus",
    "Daemon",
    "DaemonError",
    "DaemonGone",
    "DaemonPool",
    "GcAction",
    "Listener",
    "Options",
]
