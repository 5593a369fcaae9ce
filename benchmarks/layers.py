"""layers: an image layer from a store path's NAR, against zstd alone on the same bytes.

The rival is `zstd -3` in one thread, from a file to nowhere. Ours reads the same file, makes tar
entries of the NAR, compresses them as much, hashes archive and blob, and writes nowhere as well.
"""

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Final

from benchmarks.private import Place
from benchmarks.report import Result, Series
from grange.oci.segments import ZSTD, LayerWriter
from grange.store.nar import CLOSE, DIRECTORY_OPEN, MAGIC, entry_open, padding, regular_open
from grange.store.path import StorePath

PATH: Final = StorePath.parse_base("00000000000000000000000000000000-large-1")
MEASURED_BYTES: Final = 256 << 20
LARGE_BYTES: Final = 1 << 30
CHUNK_BYTES: Final = 1 << 20
SOURCE: Final = Path("/usr/lib")  # what programs consist of, on every machine
FILE_BYTES_MAX: Final = 4 << 20  # or a few large libraries would be all of it


def layers(place: Place, runs: int) -> Result:
    """Megabytes of NAR a second, and the peak memory of a layer of a gigabyte."""
    nar = place.folder("nars") / "measured.nar"
    with nar.open("wb") as file:
        file.writelines(_nar(MEASURED_BYTES))
    megabytes = nar.stat().st_size / 1e6
    ours, rival = [], []
    for _ in range(runs):
        rival.append(place.run(["zstd", "-3", "-T1", "-c", "-q", str(nar), "-o", "/dev/null"])[:2])
        ours.append(_layer(place, str(nar))[:2])
    _, _, idle_mib, peak_mib = _layer(place, "large")
    return Result(
        bench="layers",
        aim="ratio >= 0.8, peak_mib <= 64",
        ours=Series("layer, by processor time", "MB/s", [megabytes / cpu for _, cpu in ours]),
        rival=Series("zstd -3, likewise", "MB/s", [megabytes / cpu for _, cpu in rival]),
        others=(
            Series("layer, by the clock", "MB/s", [megabytes / wall for wall, _ in ours]),
            Series("zstd -3, likewise", "MB/s", [megabytes / wall for wall, _ in rival]),
        ),
        also={"peak_mib": peak_mib, "idle_mib": idle_mib},
        notes=(
            f"a NAR of {megabytes:.0f} MB with files of {SOURCE}; ours without Python's start",
            f"peak: of the whole process, for {LARGE_BYTES >> 30} GiB; idle: before its first byte",
            f"codec {ZSTD.version}; other load on the machine: {os.getloadavg()[0]:.1f}",
        ),
    )


def _layer(place: Place, what: str) -> list[float]:
    """What `measure` prints, in a process of its own."""
    _, _, said = place.run([sys.executable, "-m", "benchmarks.layers", what])
    return [float(figure) for figure in said.split()]


def measure(pieces: Iterable[bytes]) -> tuple[float, float, float, float]:
    """Wall and processor seconds of a layer, and MiB of this process before and at its peak."""
    before_mib = _peak_mib()
    wall, cpu = time.perf_counter(), time.process_time()
    writer = LayerWriter(ZSTD)
    writer.start()
    writer.open(PATH)
    for piece in pieces:
        for _ in writer.feed(piece):
            pass
    writer.close()
    writer.finish()
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    return *seconds, before_mib, _peak_mib()


def _peak_mib() -> float:
    # Not ru_maxrss, which a process inherits from the one that started it.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _nar(bytes_min: int) -> Iterator[bytes]:
    """A directory of the files in SOURCE, in their order, again and again up to this size."""
    files = [
        file
        for file in sorted(SOURCE.rglob("*"))
        if file.is_file() and not file.is_symlink() and file.stat().st_size <= FILE_BYTES_MAX
    ]
    yield MAGIC + DIRECTORY_OPEN
    made = 0
    for number, file in enumerate(cycle(files[:: max(1, len(files) // 6000)])):
        contents = file.read_bytes()
        made += len(contents)
        yield entry_open(b"%08d" % number) + regular_open(len(contents), is_executable=False)
        yield contents
        yield padding(len(contents)) + CLOSE + CLOSE
        if made >= bytes_min:
            break
    yield CLOSE


def _chunks(nar: Path) -> Iterator[bytes]:
    with nar.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


if __name__ == "__main__":
    print(*measure(_nar(LARGE_BYTES) if sys.argv[1] == "large" else _chunks(Path(sys.argv[1]))))
