"""Images in files, as `docker load`, `podman load` and skopeo read them: whole or not at all.

Source: OCI image-spec 1.1, image-layout.md; what `docker save` writes, and `docker load` reads.
"""

import asyncio
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final, Self

import click

from grange.client.image_pull import Blob, ImagePuller, PulledImage
from grange.errors import OutsideError

AT_ONCE: Final = 4  # layers: one hides the other's way through the network
_GZIP_WBITS: Final = 31
_COPY_BYTES: Final = 1 << 20

Tell = Callable[[int], None]
"""Hears how many more bytes have come."""


class Form(StrEnum):
    OCI = "oci-archive"
    DOCKER = "docker-archive"


@dataclass(frozen=True, slots=True)
class Target:
    """Where an image goes."""

    form: Form
    path: Path

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``oci-archive:FILE`` or ``docker-archive:FILE``; raises click.BadParameter."""
        form, _, path = text.partition(":")
        if form not in [*Form] or not path:
            raise click.BadParameter(
                f"{text!r} is neither oci-archive:FILE nor docker-archive:FILE"
            )
        return cls(Form(form), Path(path))


async def write_archive(
    puller: ImagePuller, image: PulledImage, reference: str, target: Target, tell: Tell
) -> None:
    """Fetch the layers of `image`, and put all of it into a file, which others see once it is
    whole. It is called `reference` in there.

    Raises as `ImagePuller.fetch`, OutsideError where it cannot be written.
    """
    try:
        with TemporaryDirectory(prefix=f".{target.path.name}.", dir=target.path.parent) as name:
            folder = Path(name)
            layers = await _layers(puller, image, target.form, folder, tell)
            if target.form is Form.OCI:
                entries = _oci(image, reference, layers)
            else:
                entries = _docker(image, reference, layers)
            await asyncio.to_thread(_write, entries, folder / "archive", target.path)
    except OSError as error:
        raise OutsideError(f"{target.path} cannot be written: {error.strerror or error}") from error


# --- Layers -----------------------------------------------------------------------------------


async def _layers(
    puller: ImagePuller, image: PulledImage, form: Form, folder: Path, tell: Tell
) -> list[Path]:
    """A file of each layer, lowest first, each fetched once; Docker's are decompressed."""
    room = asyncio.Semaphore(AT_ONCE)
    files: dict[str, Path] = {}

    async def fetch(layer: Blob, diff_id: str, path: Path) -> None:
        async with room:
            with path.open("xb") as file:
                plain = _Plain(file, layer, diff_id) if form is Form.DOCKER else None
                await _fetch(puller, layer, file, plain, tell)

    try:
        async with asyncio.TaskGroup() as group:
            for layer, diff_id in zip(image.layers, image.diff_ids, strict=True):
                if layer.digest not in files:
                    files[layer.digest] = folder / str(len(files))
                    group.create_task(fetch(layer, diff_id, files[layer.digest]))
    except ExceptionGroup as group_:
        raise group_.exceptions[0] from group_
    return [files[layer.digest] for layer in image.layers]


async def _fetch(
    puller: ImagePuller, layer: Blob, file: IO[bytes], plain: "_Plain | None", tell: Tell
) -> None:
    async def take(piece: bytes) -> None:
        tell(len(piece))
        if plain is None:
            file.write(piece)
        else:
            await asyncio.to_thread(plain.write, piece)

    await puller.fetch(layer, take)
    if plain is not None:
        plain.check()


class _Plain:
    """Writes what a layer's blob stands for, of however many gzip members."""

    def __init__(self, file: IO[bytes], layer: Blob, diff_id: str) -> None:
        self._file = file
        self._layer = layer
        self._diff_id = diff_id
        self._member = zlib.decompressobj(_GZIP_WBITS)
        self._hasher = sha256()

    def write(self, data: bytes) -> None:
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP_WBITS)
            try:
                plain = self._member.decompress(data, _COPY_BYTES)
            except zlib.error as error:
                raise self._wrong(f"is not gzip ({error})") from error
            self._hasher.update(plain)
            self._file.write(plain)
            data = self._member.unused_data or self._member.unconsumed_tail

    def check(self) -> None:
        """All has been written; raises OutsideError where that is something else."""
        if f"sha256:{self._hasher.hexdigest()}" != self._diff_id:
            raise self._wrong("holds something else than its image says")

    def _wrong(self, what: str) -> OutsideError:
        return OutsideError(
            f"the layer {self._layer.digest} {what}, though it is what the farm has recorded; "
            "please report it, with the name of the image"
        )


# --- Archives ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    content: bytes | Path


def _oci(image: PulledImage, reference: str, layers: list[Path]) -> list[_Entry]:
    digest = f"sha256:{sha256(image.manifest).hexdigest()}"
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                "mediaType": image.media_type,
                "digest": digest,
                "size": len(image.manifest),
                "annotations": {"org.opencontainers.image.ref.name": reference},
            }
        ],
    }
    blobs = {digest: image.manifest, image.config_blob.digest: image.config} | dict(
        zip([layer.digest for layer in image.layers], layers, strict=True)
    )
    return [
        _Entry("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
        _Entry("index.json", _json(index)),
        *[_Entry(f"blobs/sha256/{_hex(each)}", content) for each, content in blobs.items()],
    ]


def _docker(image: PulledImage, reference: str, layers: list[Path]) -> list[_Entry]:
    config = f"{_hex(image.config_blob.digest)}.json"
    names = [f"{_hex(diff_id)}.tar" for diff_id in image.diff_ids]
    manifest = [{"Config": config, "RepoTags": [reference], "Layers": names}]
    contents = dict(zip(names, layers, strict=True))
    return [
        _Entry("manifest.json", _json(manifest)),
        _Entry(config, image.config),
        *[_Entry(name, content) for name, content in contents.items()],
    ]


def _write(entries: Iterable[_Entry], new: Path, target: Path) -> None:
    """Files of layers go as they are written: the disk need not hold them twice."""
    with new.open("xb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for entry in entries:
                info = tarfile.TarInfo(entry.name)  # of 1970, and of nobody: the same every time
                if isinstance(entry.content, bytes):
                    info.size = len(entry.content)
                    archive.addfile(info, BytesIO(entry.content))
                else:
                    with entry.content.open("rb") as layer:
                        info.size = os.fstat(layer.fileno()).st_size
                        archive.addfile(info, layer)
                    entry.content.unlink()
        file.flush()
        os.fsync(file.fileno())
    new.replace(target)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _hex(digest: str) -> str:
    return digest.partition(":")[2]
