"""How a build ended, as the daemon tells it."""

import json
from dataclasses import dataclass
from enum import IntEnum

from grange.daemon.failure import DaemonGone, plain
from grange.daemon.wire import WireReader
from grange.errors import PeerError
from grange.store.path import StorePath


class BuildStatus(IntEnum):
    """All statuses of Nix. Source: libstore/build-result.hh; 15 and 16 came after protocol 1.38."""

    BUILT = 0
    SUBSTITUTED = 1
    ALREADY_VALID = 2
    PERMANENT_FAILURE = 3
    INPUT_REJECTED = 4
    OUTPUT_REJECTED = 5
    TRANSIENT_FAILURE = 6
    CACHED_FAILURE = 7
    TIMED_OUT = 8
    MISC_FAILURE = 9
    DEPENDENCY_FAILED = 10
    LOG_LIMIT_EXCEEDED = 11
    NOT_DETERMINISTIC = 12
    RESOLVES_TO_ALREADY_VALID = 13
    NO_SUBSTITUTERS = 14
    HASH_MISMATCH = 15
    CANCELLED = 16

    @property
    def is_success(self) -> bool:
        return self in {
            BuildStatus.BUILT,
            BuildStatus.SUBSTITUTED,
            BuildStatus.ALREADY_VALID,
            BuildStatus.RESOLVES_TO_ALREADY_VALID,
        }


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A failed build is one of these too, not an exception."""

    status: BuildStatus
    error_msg: str  # without terminal escapes; empty on success
    times_built: int
    is_non_deterministic: bool
    start_time_s: int  # seconds since 1970 on the daemon's clock; 0 where nothing was run
    stop_time_s: int
    cpu_user_us: int | None  # None before protocol 1.37 or without cgroups
    cpu_system_us: int | None
    built_outputs: dict[str, StorePath]  # by output name; some daemons name them only on success


async def read_build_result(wire: WireReader, protocol: tuple[int, int]) -> BuildResult:
    number = await wire.integer()
    error_msg = plain(await wire.string())
    try:
        status = BuildStatus(number)
    except ValueError:
        status = BuildStatus.MISC_FAILURE
        error_msg = f"{error_msg} (status {number}, which this version of Grange does not know)"
    return BuildResult(
        status=status,
        error_msg=error_msg,
        times_built=await wire.integer(),
        is_non_deterministic=await wire.boolean(),
        start_time_s=await wire.integer(),
        stop_time_s=await wire.integer(),
        cpu_user_us=await _optional_integer(wire) if protocol >= (1, 37) else None,
        cpu_system_us=await _optional_integer(wire) if protocol >= (1, 37) else None,
        built_outputs=_outputs(await wire.string_map()),
    )


async def _optional_integer(wire: WireReader) -> int | None:
    return await wire.integer() if await wire.bounded(1, "an optional's tag") else None


def _outputs(realisations: dict[str, str]) -> dict[str, StorePath]:
    """Read ``{"<hash>!<output name>": "<realisation as JSON>"}``."""
    outputs = {}
    for key, text in realisations.items():
        try:
            outputs[key.partition("!")[2]] = StorePath.parse_base(json.loads(text)["outPath"])
        except (ValueError, KeyError, TypeError, RecursionError, PeerError) as error:
            raise DaemonGone(
                f"protocol violation by the daemon: realisation {text[:200]!r}"
            ) from error
    return outputs
