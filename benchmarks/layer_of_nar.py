"""Makes one layer in a process that has loaded nothing else, for the benchmark `layers`.

``python -m benchmarks.layer_of_nar FILE [COPIES]``: of the NAR in FILE, or of one with so many
files of its bytes. Prints wall and processor seconds, and this process's MiB before it and at
its peak.
"""

import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from grange.oci.segments import ZSTD, LayerWriter
from grange.store.nar import CLOSE, DIRECTORY_OPEN, MAGIC, entry_open, padding, regular_open
from grange.store.path import StorePath

PATH: Final = StorePath.parse_base("00000000000000000000000000000000-large-1")
CHUNK_BYTES: Final = 1 << 20


def measure(chunks: Iterable[bytes]) -> tuple[float, float, float, float]:
    """Wall seconds, processor seconds, MiB before, MiB at the peak."""
    before_mib = _peak_mib()
    wall, cpu = time.perf_counter(), time.process_time()
    writer = LayerWriter(ZSTD)
    writer.start()
    writer.open(PATH)
    for chunk in chunks:
        for _ in writer.feed(chunk):
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


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            yield chunk


def _copies(file: Path, count: int) -> Iterator[bytes]:
    size = file.stat().st_size
    yield MAGIC + DIRECTORY_OPEN
    for number in range(count):
        yield entry_open(b"%08d" % number) + regular_open(size, is_executable=False)
        yield from _chunks(file)
        yield padding(size) + CLOSE + CLOSE
    yield CLOSE


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(*measure(_copies(source, int(sys.argv[2])) if sys.argv[2:] else _chunks(source)))
