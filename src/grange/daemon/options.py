"""Settings of one connection."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from grange.daemon.wire import integer, string_map


@dataclass(frozen=True, slots=True)
class Options:
    """What `Daemon.set_options` sets for everything that follows on the connection.

    `overrides` are settings of nix.conf by name. The daemon keeps the list of
    substituters it first used on a connection: other substituters need another connection.
    """

    keep_failed: bool = False  # keep the build directory of a failed build
    verbosity: int = 0  # of the daemon's own messages: 0 errors, 1 warnings, 3 info, ... 7 vomit
    max_silent_s: int = 0  # 0: no limit
    timeout_s: int = 0  # 0: no limit
    build_cores: int = 0  # NIX_BUILD_CORES; 0: all
    builds_max: int = 1  # at once; Nix before 2.9 counts substitutions too
    use_substitutes: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        # How soon a path that another connection builds is looked at again; 5 s unless told.
        overrides = {"timeout": str(self.timeout_s), "build-poll-interval": "1", **self.overrides}
        if not self.use_substitutes:
            overrides.setdefault("substituters", "")
        fields = (
            self.keep_failed,
            False,  # keep going: one operation is one build
            False,  # fall back to building where substitution fails: the farm decides that
            self.verbosity,
            self.builds_max,
            self.max_silent_s,
            True,  # use the build hook, obsolete
            0,  # verbose build: log lines come as results either way
            0,  # log type, obsolete
            0,  # print build trace, obsolete
            self.build_cores,
            self.use_substitutes,
        )
        return b"".join(map(integer, fields)) + string_map(overrides)
