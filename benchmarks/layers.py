"""layers: an image layer from a store path's NAR, against zstd alone on the same bytes.

The rival is `zstd -3` in one thread, from a file to nowhere. Ours reads the same file out of a
cache, checks the NAR's hash, makes tar entries of it, compresses them as much, hashes archive and
blob, and puts the segment into the cache, synced. It is also given the NAR as caches have it, which
it must decompress first.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from benchmarks.layers_of_nars import StoredNar
from benchmarks.private import Place
from benchmarks.report import Result, Series
from grange.oci.segments import ZSTD
from grange.store.nar import CLOSE, DIRECTORY_OPEN, MAGIC, entry_open, padding, regular_open
from tests.images_fakes import path_of

MEASURED_BYTES: Final = 256 << 20
COPIES: Final = 4  # of that, for the peak: a gigabyte
SOURCE: Final = Path("/usr/lib")  # what programs consist of, on every machine
FILE_BYTES_MAX: Final = 4 << 20  # or a few large libraries would be all of it
FILES: Final = 12_000  # spread over all there are; more are not needed for so many bytes


def layers(place: Place, runs: int) -> Result:
    """Megabytes of NAR a second, and the peak memory of a layer of a gigabyte."""
    store = place.folder("store")
    contents = b"".join(contents_of(SOURCE, MEASURED_BYTES))
    measured = write_nar(store, "nar/measured.nar", [contents])
    large = write_nar(store, "nar/large.nar", [contents] * COPIES)
    del contents
    packed, large_packed = pack(place, store, measured), pack(place, store, large)
    megabytes = measured.nar_bytes / 1e6
    command = ["zstd", "-3", "-T1", "-q", str(store / measured.file), "-o", "/dev/null"]
    ours, of_zstd, rival = [], [], []
    for _ in range(runs):
        rival.append(place.run(command)[:2])
        ours.append(layers_of(place, store, "zstd", [measured]))
        of_zstd.append(layers_of(place, store, "zstd", [packed]))
    _, _, idle_mib, peak_mib, *_ = layers_of(place, store, "zstd", [large_packed])

    def speeds(label: str, seconds: list[float]) -> Series:
        return Series(label, "MB/s", [megabytes / each for each in seconds])

    return Result(
        bench="layers",
        aim="ratio >= 0.8, peak_mib <= 64",
        ours=speeds("layer, by the clock", [run[0] for run in ours]),
        rival=speeds("zstd -3, by the clock", [run[0] for run in rival]),
        others=(
            speeds("layer, by processor time", [run[1] for run in ours]),
            speeds("zstd -3, by processor time", [run[1] for run in rival]),
            speeds("layer of a NAR in zstd, by the clock", [run[0] for run in of_zstd]),
        ),
        also={"peak_mib": peak_mib, "idle_mib": idle_mib},
        notes=(
            f"a NAR of {megabytes:.0f} MB with files of {SOURCE}; ours without Python's start",
            f"memory of the whole process: {peak_mib:.0f} MiB at the peak of a layer of "
            f"{large.nar_bytes / 1e6:.0f} MB, {idle_mib:.0f} MiB before it",
            f"codec {ZSTD.version}; load of the machine: {os.getloadavg()[0]:.1f}",
        ),
    )


def layers_of(
    place: Place, store: Path, compression: str, nars: Sequence[StoredNar]
) -> list[float]:
    """Make all layers of these; what the child says."""
    shutil.rmtree(store / "images", ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.layers_of_nars", str(store), compression]
    _, _, said = place.run([*command, *[nar.show() for nar in nars]])
    return [float(figure) for figure in said.split()]


def write_nar(store: Path, file: str, folders: Sequence[bytes], name: str = "large") -> StoredNar:
    """The NAR of a directory with directories that have these entries."""
    (store / file).parent.mkdir(parents=True, exist_ok=True)
    hasher = sha256()
    with (store / file).open("wb") as opened:
        for piece in _nar(folders):
            opened.write(piece)
            hasher.update(piece)
        return StoredNar(path_of(name), file, opened.tell(), hasher.hexdigest())


def pack(place: Place, store: Path, nar: StoredNar) -> StoredNar:
    """The same, as a cache has it."""
    place.run(["zstd", "-3", "-q", str(store / nar.file)])
    return replace(nar, file=f"{nar.file}.zst")


def _nar(folders: Sequence[bytes]) -> Iterator[bytes]:
    yield MAGIC + DIRECTORY_OPEN
    for number, entries in enumerate(folders):
        yield entry_open(b"%08d" % number) + DIRECTORY_OPEN + entries + CLOSE + CLOSE
    yield CLOSE


def contents_of(source: Path, bytes_max: int) -> Iterator[bytes]:
    """Entries that are files below `source`, in their order, up to so many bytes."""
    made = 0
    for number, file in enumerate(files_of(source)):
        contents = file.read_bytes()
        yield entry_open(b"%08d" % number) + regular_open(len(contents), is_executable=False)
        yield contents
        yield padding(len(contents)) + CLOSE + CLOSE
        made += len(contents)
        if made >= bytes_max:
            break


def files_of(source: Path) -> list[Path]:
    """Files spread over all there are, none of them very large."""
    files = [
        file
        for file in sorted(source.rglob("*"))
        if file.is_file() and not file.is_symlink() and file.stat().st_size <= FILE_BYTES_MAX
    ]
    return files[:: max(1, len(files) // FILES)]
