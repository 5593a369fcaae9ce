"""image-cold: all layers of an image nobody has pulled, against `tar | gzip` of its closure.

Both compress as gzip does by default. The rival packs the closure's files, which lie unpacked on
the disk, into one archive. Ours has them as NARs in zstd, as a cache does: it checks their hashes,
makes the layers of the plan, and puts their segments into the cache.
"""

import os
import shutil
from itertools import cycle
from pathlib import Path
from typing import Final

from benchmarks.layers import SOURCE, files_of, layers_of, pack, write_nar
from benchmarks.layers_of_nars import StoredNar
from benchmarks.private import Place
from benchmarks.report import Result, Series
from grange.store.nar import CLOSE, entry_open, padding, regular_open

IMAGE_BYTES: Final = 1 << 30
PATHS: Final = 150  # some share a layer then
LARGEST: Final = 8  # the first path is an eighth of the image, the second a ninth, and so on


def image_cold(place: Place, runs: int) -> Result:
    """Megabytes of files a second, of an image of a gigabyte."""
    store, root = place.folder("store"), place.folder("root")
    nars = [pack(place, store, nar) for nar in _closure(store, root)]
    megabytes = sum(nar.nar_bytes for nar in nars) / 1e6
    archive = root.parent / "image.tar.gz"
    pipe = f"tar --create --sort=name --directory={root} nix | gzip > {archive}"
    ours, in_zstd, rival, layers, blob_mb = [], [], [], 0.0, 0.0
    for _ in range(runs):
        rival.append(megabytes / place.run(["sh", "-c", pipe])[0])
        in_zstd.append(megabytes / layers_of(place, store, "zstd", nars)[0])
        wall_s, _, _, _, layers, blob_bytes = layers_of(place, store, "gzip", nars)
        ours.append(megabytes / wall_s)
        blob_mb = blob_bytes / 1e6
    rival_mb = archive.stat().st_size / 1e6
    return Result(
        bench="image-cold",
        aim="ratio >= 1.0",
        ours=Series("layers of an image", "MB/s", ours),
        rival=Series("tar | gzip", "MB/s", rival),
        others=(Series("layers of an image, in zstd", "MB/s", in_zstd),),
        also={"blob_mb": blob_mb, "rival_mb": rival_mb},
        notes=(
            f"{len(nars)} store paths, {megabytes:.0f} MB, of files of {SOURCE}; ours without "
            "Python's start",
            f"{layers:.0f} layers of together {blob_mb:.0f} MB; the archive has {rival_mb:.0f} MB",
            f"load of the machine: {os.getloadavg()[0]:.1f}",
        ),
    )


def _closure(store: Path, root: Path) -> list[StoredNar]:
    """NARs in the store, and the same files below `root`."""
    shares = [1 / (LARGEST + number) for number in range(PATHS)]
    files = cycle(files_of(SOURCE))
    nars = []
    for number, share in enumerate(shares):
        wanted = IMAGE_BYTES * share / sum(shares)
        entries: list[bytes] = []
        contents: dict[str, bytes] = {}
        while wanted > 0:
            data = next(files).read_bytes()
            wanted -= max(1, len(data))
            name = f"{len(contents):08d}"
            contents[name] = data
            entries += [entry_open(name.encode()) + regular_open(len(data), is_executable=False)]
            entries += [data, padding(len(data)) + CLOSE + CLOSE]
        nar = write_nar(store, f"nar/{number}.nar", [b"".join(entries)], f"path-{number}")
        folder = root / f"nix/store/{nar.path}/00000000"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        nars.append(nar)
    return nars
