"""Makes layers in a process that does nothing else, for `layers` and `image-cold`.

``python -m benchmarks.layers_of_nars STORE CODEC NAR…``, each NAR being PATH,FILE,BYTES,HASH: of
the image with these store paths, whose NARs STORE, a directory, has. Prints wall and processor
seconds, this process's MiB before it and at its peak, and how many layers and bytes it made.
"""

import asyncio
import re
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from grange.images.layers import CODECS, Layers
from grange.objects.directory import DirectoryObjects
from grange.oci.manifest import Compression
from grange.oci.plan import plan
from grange.oci.segments import Codec
from grange.store.hash import Hash
from grange.store.narinfo import NarInfo, PathInfo
from grange.store.path import StorePath
from tests.images_fakes import MemoryCatalog


@dataclass(frozen=True, slots=True)
class StoredNar:
    """As the command line has it."""

    path: StorePath
    file: str
    nar_bytes: int
    nar_hash: str  # of 0-9 and a-f

    @classmethod
    def parse(cls, text: str) -> "StoredNar":
        path, file, size, digest = text.split(",")
        return cls(StorePath.parse_base(path), file, int(size), digest)

    def show(self) -> str:
        return f"{self.path},{self.file},{self.nar_bytes},{self.nar_hash}"

    def narinfo(self, store: Path) -> NarInfo:
        info = PathInfo(self.path, Hash("sha256", bytes.fromhex(self.nar_hash)), self.nar_bytes, ())
        compression = "zstd" if self.file.endswith(".zst") else "none"
        return NarInfo(info, self.file, compression, None, (store / self.file).stat().st_size)


async def measure(
    store: Path, codec: Codec, narinfos: Mapping[StorePath, NarInfo]
) -> tuple[float, ...]:
    async def find(paths: Collection[StorePath]) -> dict[StorePath, NarInfo]:
        return {path: narinfos[path] for path in paths}

    catalog, objects = MemoryCatalog(), DirectoryObjects(store)
    layers = Layers(catalog=catalog, objects=objects, narinfos=find)
    before_mib = peak_mib()
    wall, cpu = time.perf_counter(), time.process_time()
    groups = plan(each.info for each in narinfos.values())
    made = await asyncio.gather(*[layers.layer(codec, group.members) for group in groups])
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    await layers.close()
    blob_bytes = sum(layer.descriptor.blob_bytes for layer in made)
    return *seconds, before_mib, peak_mib(), len(made), blob_bytes


def peak_mib() -> float:
    # Not ru_maxrss, which a process inherits from the one that started it.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    folder, compression, *nars = sys.argv[1:]
    known = [StoredNar.parse(text).narinfo(Path(folder)) for text in nars]
    chosen = CODECS[Compression(compression)]
    print(*asyncio.run(measure(Path(folder), chosen, {each.info.path: each for each in known})))
