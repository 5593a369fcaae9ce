"""Sending sources: from a store on this machine to the farm's cache, as compressed NARs."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import urljoin

import httpx
import zstandard

from grange.client.answers import problem, unreachable
from grange.client.api import GrangeClient
from grange.client.connection import CONNECT_S
from grange.client.models import SourceClaim, SourceGrant
from grange.errors import OutsideError, PeerError
from grange.store.closure import topological
from grange.store.narinfo import PathInfo
from grange.store.path import StoreDir, StorePath

CLAIMS_MAX: Final = 1_000  # in one call, so that grants do not expire before their turn
SMALL_BYTES_MAX: Final = 256 << 10  # of a NAR: up to here a request costs more than its body
BATCH_BYTES_MAX: Final = 4 << 20  # of small NARs in one request; the farm takes twice that
UPLOADS_AT_ONCE: Final = 4  # enough to keep packing, compressing and the network busy
UPLOAD_SILENCE_S: Final = 300.0  # the farm verifies a NAR before it answers
ZSTD_LEVEL: Final = 3
_ARRIVED: Final = (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.CONFLICT)  # also from elsewhere
PIECE_BYTES: Final = 64 << 10  # from here on compressing deserves a thread


class LocalStore(Protocol):
    """The store sources are read from. `nar` may be called again while earlier ones are read."""

    async def path_info(self, path: StorePath) -> PathInfo | None:
        """None where the store does not have `path`."""

    def nar(self, path: StorePath) -> AsyncIterator[bytes | memoryview]:
        """The NAR of a path the store has; a piece is valid until the next is asked for."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Upload:
    info: PathInfo
    url: str


def upload_sources(
    client: GrangeClient,
    store: LocalStore,
    sources: Iterable[StorePath],
    wanted_by: Mapping[StorePath, StorePath],
    store_dir: StoreDir,
) -> None:
    """Send `sources` and what they refer to, references first; closes `store`.

    `wanted_by` tells for each the derivation that needs it. PeerError where the store no longer has
    one, or where the farm refuses it; OutsideError where the farm cannot be reached.
    """

    async def run() -> None:
        try:
            infos = await _path_infos(client, store, sources, wanted_by, store_dir)
            limits = httpx.Timeout(UPLOAD_SILENCE_S, connect=CONNECT_S)
            is_far = client.url.startswith("https://")
            transport = client.transport
            async with httpx.AsyncClient(
                timeout=limits,
                verify=client.tls if is_far and client.tls is not None else is_far,
                trust_env=is_far,
                transport=transport if isinstance(transport, httpx.AsyncBaseTransport) else None,
            ) as http:
                for level in _levels(infos):
                    for claims in _in_parts(level, CLAIMS_MAX):
                        grants = client.claim_sources([_claim(each, store_dir) for each in claims])
                        await _upload_all(http, store, _uploads(client.url, grants, claims))
        finally:
            await store.aclose()

    try:
        asyncio.run(run())
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


async def _path_infos(
    client: GrangeClient,
    store: LocalStore,
    sources: Iterable[StorePath],
    wanted_by: Mapping[StorePath, StorePath],
    store_dir: StoreDir,
) -> dict[StorePath, PathInfo]:
    """The path infos of `sources`, and of whatever they refer to that the farm lacks too."""
    infos: dict[StorePath, PathInfo] = {}
    referrers: dict[StorePath, StorePath] = {}
    wave = list(sources)
    while wave:
        for path in wave:
            info = await store.path_info(path)
            if info is None:
                raise _gone(path, referrers.get(path) or wanted_by[path], store_dir)
            if info.content_address is None:
                raise _unproven(path, referrers.get(path) or wanted_by[path], store_dir)
            infos[path] = info
            referrers |= {each: path for each in info.references if each not in infos}
        found = sorted({each for path in wave for each in infos[path].references} - infos.keys())
        lack = client.lacking((), map(store_dir.show, found)).sources if found else []
        wave = [store_dir.parse(path) for path in lack]
    return infos


def _gone(path: StorePath, wanted_by: StorePath, store_dir: StoreDir) -> PeerError:
    return PeerError(
        f"the source {store_dir.show(path)}, wanted by {store_dir.show(wanted_by)}, is not in "
        "the store of this machine any more, and the farm does not have it; instantiate the "
        "derivation again, or name the store that has it with --store"
    )


def _unproven(path: StorePath, wanted_by: StorePath, store_dir: StoreDir) -> PeerError:
    return PeerError(
        f"the source {store_dir.show(path)}, wanted by {store_dir.show(wanted_by)}, was built "
        "here, so nothing proves what it holds; refer to its derivation instead of its path, or "
        "import its content as a source of its own"
    )


def _levels(infos: Mapping[StorePath, PathInfo]) -> list[list[PathInfo]]:
    """Path infos such that references are in an earlier list, each list able to go at once."""
    depths: dict[StorePath, int] = {}
    levels: list[list[PathInfo]] = []
    for path in topological(infos, lambda path: infos[path].references):
        below = [depths[each] for each in infos[path].references if each in depths]
        depths[path] = max(below, default=-1) + 1
        if depths[path] == len(levels):
            levels.append([])
        levels[depths[path]].append(infos[path])
    return levels


def _in_parts(infos: Sequence[PathInfo], size: int) -> Iterator[Sequence[PathInfo]]:
    return (infos[start : start + size] for start in range(0, len(infos), size))


def _claim(info: PathInfo, store_dir: StoreDir) -> SourceClaim:
    address = info.content_address
    return SourceClaim(
        path=store_dir.show(info.path),
        nar_hash=info.nar_hash.nix(),
        nar_bytes=info.nar_bytes,
        references=[store_dir.show(each) for each in info.references],
        content_address=address.show() if address else "",
    )


def _uploads(
    farm_url: str, grants: Iterable[SourceGrant], claims: Iterable[PathInfo]
) -> list[_Upload]:
    """What has to be sent, and where to."""
    by_name = {str(info.path): info for info in claims}
    return [
        _Upload(info, urljoin(farm_url + "/", grant.url))
        for grant in grants
        if grant.url and (info := by_name.get(grant.path.rpartition("/")[2])) is not None
    ]


async def _upload_all(http: httpx.AsyncClient, store: LocalStore, uploads: list[_Upload]) -> None:
    room = asyncio.Semaphore(UPLOADS_AT_ONCE)
    async with asyncio.TaskGroup() as tasks:
        for upload in uploads:
            if upload.info.nar_bytes > SMALL_BYTES_MAX:
                tasks.create_task(_upload_one(http, store, upload, room))
        for batch in _small_batches(uploads):
            tasks.create_task(_upload_batch(http, store, batch, room))


def _small_batches(uploads: Iterable[_Upload]) -> Iterator[list[_Upload]]:
    batch: list[_Upload] = []
    size = 0
    for upload in uploads:
        nar_bytes = upload.info.nar_bytes
        if nar_bytes > SMALL_BYTES_MAX:
            continue
        if size + nar_bytes > BATCH_BYTES_MAX:
            yield batch
            batch, size = [], 0
        batch.append(upload)
        size += nar_bytes
    if batch:
        yield batch


async def _upload_one(
    http: httpx.AsyncClient, store: LocalStore, upload: _Upload, room: asyncio.Semaphore
) -> None:
    async with room:
        body = _compressed(store.nar(upload.info.path), upload.info.nar_bytes)
        answer = await _send(http, "PUT", upload.url, body)
    if answer.status_code not in _ARRIVED:
        raise problem(answer)


async def _upload_batch(
    http: httpx.AsyncClient, store: LocalStore, batch: list[_Upload], room: asyncio.Semaphore
) -> None:
    """Send small NARs in one request, to the URL above theirs.

    For each come token and body, behind their lengths in four bytes, big-endian; the answer is
    a list of one status and text for each.
    """
    parts: list[bytes] = []
    async with room:
        for upload in batch:
            token = upload.url.rpartition("/")[2].encode()
            nar = _compressed(store.nar(upload.info.path), upload.info.nar_bytes)
            body = b"".join([piece async for piece in nar])
            parts += (len(token).to_bytes(4, "big"), token)
            parts += (len(body).to_bytes(4, "big"), body)
        url = batch[0].url.rpartition("/")[0]
        answer = await _send(http, "POST", url, b"".join(parts))
    if not answer.is_success:
        raise problem(answer)
    for upload, each in zip(batch, answer.json(), strict=True):
        if each["status"] not in _ARRIVED:
            text = f"the farm refused the source {upload.info.path}: {each['text']}"
            raise OutsideError(text) if each["status"] >= 500 else PeerError(text)


async def _send(
    http: httpx.AsyncClient, method: str, url: str, content: bytes | AsyncIterator[bytes]
) -> httpx.Response:
    headers = {"content-type": "application/octet-stream"}
    try:
        return await http.request(method, url, content=content, headers=headers)
    except httpx.TransportError as error:
        raise unreachable(url, error) from error


async def _compressed(
    nar: AsyncIterator[bytes | memoryview], nar_bytes: int
) -> AsyncIterator[bytes]:
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj(size=nar_bytes)
    async for piece in nar:
        if len(piece) < PIECE_BYTES:
            compressed = compressor.compress(piece)
        else:
            compressed = await asyncio.to_thread(compressor.compress, piece)
        if compressed:
            yield compressed
    yield compressor.flush()
