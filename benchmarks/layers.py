"""layers: an image layer from a store path's NAR, against zstd alone on the same bytes.

The rival is `zstd -3` in one thread, from a file to nowhere. Ours reads the same file, makes tar
entries of the NAR, compresses them as much, hashes archive and blob, and writes nowhere as well.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.private import Place
from benchmarks.report import Result, Series
from grange.oci.segments import ZSTD
from grange.store.nar import CLOSE, DIRECTORY_OPEN, MAGIC, entry_open, padding, regular_open

MEASURED_BYTES: Final = 256 << 20
COPIES: Final = 4  # of that, for the peak: a gigabyte
SOURCE: Final = Path("/usr/lib")  # what programs consist of, on every machine
FILE_BYTES_MAX: Final = 4 << 20  # or a few large libraries would be all of it
FILES: Final = 12_000  # spread over all there are; more are not needed for so many bytes


def layers(place: Place, runs: int) -> Result:
    """Megabytes of NAR a second, and the peak memory of a layer of a gigabyte."""
    nar = place.folder("nars") / "measured.nar"
    with nar.open("wb") as file:
        file.writelines(_nar())
    megabytes = nar.stat().st_size / 1e6
    ours, rival = [], []
    for _ in range(runs):
        rival.append(place.run(["zstd", "-3", "-T1", "-q", str(nar), "-o", "/dev/null"])[:2])
        ours.append(_layer(place, str(nar))[:2])
    _, _, idle_mib, peak_mib = _layer(place, str(nar), str(COPIES))
    return Result(
        bench="layers",
        aim="ratio >= 0.8, peak_mib <= 64",
        ours=Series("layer, by processor time", "MB/s", [megabytes / cpu for _, cpu in ours]),
        rival=Series("zstd -3, by processor time", "MB/s", [megabytes / cpu for _, cpu in rival]),
        others=(
            Series("layer, by the clock", "MB/s", [megabytes / wall for wall, _ in ours]),
            Series("zstd -3, by the clock", "MB/s", [megabytes / wall for wall, _ in rival]),
        ),
        also={"peak_mib": peak_mib, "idle_mib": idle_mib},
        notes=(
            f"a NAR of {megabytes:.0f} MB with files of {SOURCE}; ours without Python's start",
            f"memory of the whole process: {peak_mib:.0f} MiB at the peak of a layer of "
            f"{COPIES * megabytes:.0f} MB, {idle_mib:.0f} MiB before it",
            f"codec {ZSTD.version}; load of the machine: {os.getloadavg()[0]:.1f}",
        ),
    )


def _layer(place: Place, *arguments: str) -> list[float]:
    _, _, said = place.run([sys.executable, "-m", "benchmarks.layer_of_nar", *arguments])
    return [float(figure) for figure in said.split()]


def _nar() -> Iterator[bytes]:
    """A directory of files in SOURCE, in their order, up to the size that is measured."""
    files = [
        file
        for file in sorted(SOURCE.rglob("*"))
        if file.is_file() and not file.is_symlink() and file.stat().st_size <= FILE_BYTES_MAX
    ]
    yield MAGIC + DIRECTORY_OPEN
    made = 0
    for number, file in enumerate(files[:: max(1, len(files) // FILES)]):
        contents = file.read_bytes()
        yield entry_open(b"%08d" % number) + regular_open(len(contents), is_executable=False)
        yield contents
        yield padding(len(contents)) + CLOSE + CLOSE
        made += len(contents)
        if made >= MEASURED_BYTES:
            break
    yield CLOSE
