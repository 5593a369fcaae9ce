"""Traces: what was built, or might have been, and when. One JSON object a line.

`{"ready_at": 93.5, "duration": 41.2, "system": "x86_64-linux"}` is a whole line. Times are seconds
since any beginning that all lines share; the first line need not be the earliest.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grange.errors import PeerError

BUILDS_MAX: Final = 1_000_000  # a year of a large farm; all are held in memory
LINE_MAX: Final = 65_536  # characters
SPAN_MAX_S: Final = 400 * 86_400.0

_Seconds = Annotated[float, Field(ge=0, le=10 * SPAN_MAX_S, allow_inf_nan=False)]
_Word = Annotated[str, Field(min_length=1, max_length=1000)]


class Build(BaseModel):
    """A build that someone wants a place for. Durations are of a machine that has its inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ready_at: _Seconds  # it asks for a place
    duration: _Seconds  # seconds that it then holds it
    eval_start: _Seconds | None = None  # the evaluation that found it began then; none: no hint
    system: _Word = "x86_64-linux"
    features: tuple[_Word, ...] = Field(default=(), max_length=50)
    project: _Word = "default"
    drv: str = Field(default="", max_length=1000)
    cpu: _Seconds = 0.0  # seconds of CPU; for people, nothing is made of it
    input_bytes: int = Field(default=0, ge=0, le=1 << 50)  # that its client uploads first


def read(path: Path) -> list[Build]:
    """The builds of a file, be it compressed with gzip, in order of `ready_at`.

    They are moved so that the first thing that happens is at zero. Raises PeerError.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        text = data.decode()
    except OSError as error:
        raise PeerError(f"trace {path}: {error.strerror}") from error
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise PeerError(f"trace {path} is neither lines of JSON nor gzip of them") from error
    return parse(text.splitlines(), str(path))


def parse(lines: Iterable[str], name: str) -> list[Build]:
    builds = [_line(line, f"{name}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not builds:
        raise PeerError(f"trace {name} holds no builds; make one with --generate SEED")
    if len(builds) > BUILDS_MAX:
        raise PeerError(f"trace {name} holds {len(builds)} builds, and {BUILDS_MAX} may be")
    began = min(min(each.ready_at, each.eval_start or each.ready_at) for each in builds)
    if max(each.ready_at for each in builds) - began > SPAN_MAX_S:
        raise PeerError(f"trace {name} spans more than {SPAN_MAX_S / 86_400:.0f} days; cut it")
    builds.sort(key=lambda each: each.ready_at)
    return [_moved(each, began) for each in builds] if began else builds


def _line(line: str, where: str) -> Build:
    if len(line) > LINE_MAX:
        raise PeerError(f"{where}: longer than {LINE_MAX} characters")
    try:
        build = Build.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        member = ".".join(map(str, first["loc"]))
        raise PeerError(f"{where}: {member + ': ' if member else ''}{first['msg']}") from error
    if build.eval_start is not None and build.eval_start > build.ready_at:
        raise PeerError(f"{where}: eval_start is later than ready_at")
    return build


def _moved(build: Build, by_s: float) -> Build:
    began = None if build.eval_start is None else build.eval_start - by_s
    return build.model_copy(update={"ready_at": build.ready_at - by_s, "eval_start": began})


def lines(builds: Iterable[Build]) -> Iterator[str]:
    """A trace as it is written, without what is as it is by default."""
    for build in builds:
        yield json.dumps(build.model_dump(exclude_defaults=True), separators=(",", ":"))
