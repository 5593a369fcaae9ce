"""Delivering outputs to the cache.

Small ones are packed at once and share requests: the first goes as it comes, others gather while
the request before is under way and for a few milliseconds after it began. Larger ones are packed,
compressed and sent as a stream, some at a time.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from time import monotonic
from typing import Final

import aiohttp

from grange.agent.direct import Spool, message_of, put_spool
from grange.agent.pack import pack
from grange.agent.support import Physical
from grange.daemon import DaemonPool
from grange.errors import OutsideError
from grange.scheduler.facts import AttemptId
from grange.store.compression import Compressor, compress, compressor
from grange.store.path import StorePath
from grange.wire.messages import BuiltOutput, UploadGrant

INLINE_NAR_BYTES: Final = 64 << 10  # packed and compressed faster than a thread is woken up
MEMORY_NAR_BYTES: Final = 512 << 10  # packed whole, in case it compresses to a small one
SMALL_BYTES: Final = 64 << 10  # compressed: goes together with others
BATCH_BYTES: Final = 8 << 20  # the most the cache takes in one request
BATCH_ITEMS: Final = 1000
GATHER_S: Final = 0.01  # between requests in a row: each costs both sides as much as three uploads
STREAMS_MAX: Final = 4  # at once; two fill a network, more hide each other's latency
COMPRESSION_THREADS: Final = 2
BACKOFF_S: Final = 0.2
BACKOFF_MAX_S: Final = 10.0
# Without a byte taken, or without an answer after the last one. All tries of an upload that hangs
# end before a coordinator calls its attempt stalled, which is after 300 s.
QUIET_S: Final = 40.0
BATCH_S: Final = 60.0  # for one request of BATCH_BYTES, a megabit a second
TRIES: Final = 3  # at least, and ...
TRY_S: Final = 150.0  # ... for so long: a cache that restarts or moves is back by then
ASKS_MAX: Final = 5  # for a new URL, before the upload counts as failed

_U32: Final = Struct(">I")
_log: Final = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Upload:
    output: BuiltOutput
    grant: UploadGrant
    task: asyncio.Task[None] | None = None  # None while it waits in a batch
    body: bytes = b""
    spool: Spool | None = None  # all of it, compressed, on its way straight to the store
    broken: OutsideError | None = None  # why the output cannot be read
    failures: int = 0  # in a row, while we are joined
    failing_since: float = 0.0

    @property
    def key(self) -> tuple[AttemptId, StorePath]:
        return self.grant.attempt, self.output.path


class Uploader:
    """Uploads what is granted.

    `ask_again` is called where a URL has expired: a new grant will come. `fail` is called where the
    cache refuses the bytes, or takes none while the farm `is_joined`. Without the farm an upload is
    tried for as long as nobody calls it off: what has been built must outlast any lost connection.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        physical: Physical,
        pool: DaemonPool,
        *,
        ask_again: Callable[[AttemptId], None],
        fail: Callable[[AttemptId, str], None],
        is_joined: Callable[[], bool],
        spool_dir: Path | None = None,
    ) -> None:
        """`spool_dir`: where to keep what goes straight to a store; where temporary files go."""
        self._spool_dir = spool_dir
        self._http = http
        self._physical = physical
        self._pool = pool
        self._ask_again = ask_again
        self._fail = fail
        self._is_joined = is_joined
        self.progress = 0  # grows with all that leaves: what waits in a line moves on with it
        self._batch_url = ""
        self._uploads: dict[tuple[AttemptId, StorePath], _Upload] = {}
        self._asks: dict[AttemptId, int] = {}
        self._ready: dict[tuple[AttemptId, StorePath], _Upload] = {}  # for the next batch; ordered
        self._batching: asyncio.Task[None] | None = None
        self._streams = asyncio.Semaphore(STREAMS_MAX)

    def use(self, cache_url: str, http: aiohttp.ClientSession | None = None) -> None:
        """The cache that takes batches, and connections to it where they are new."""
        self._batch_url = f"{cache_url}/upload"
        self._http = http or self._http

    def forget_asks(self) -> None:
        """A coordinator that may be another one: what was asked before it counts no more."""
        self._asks.clear()

    def deliver(self, output: BuiltOutput, grant: UploadGrant) -> None:
        """Upload `output`. One under way goes on, with this grant for its next try."""
        upload = self._uploads.get((grant.attempt, output.path))
        if upload is not None:
            upload.grant = grant
            return
        upload = _Upload(output, grant)
        self._uploads[upload.key] = upload
        if output.nar_bytes <= INLINE_NAR_BYTES and self._takes_batches(grant):
            try:
                upload.body = _compress(self._physical(output.path), grant)
            except OutsideError:
                pass  # not readable by us: the daemon may
            else:
                self._enqueue(upload)
                return
        upload.task = asyncio.create_task(self._deliver_alone(upload))

    def call_off(self, attempt: AttemptId) -> None:
        """Stop all uploads of `attempt`."""
        self._asks.pop(attempt, None)
        for key in [key for key in self._uploads if key[0] == attempt]:
            upload = self._uploads.pop(key)
            self._ready.pop(key, None)
            if upload.task is not None:
                upload.task.cancel()

    def _takes_batches(self, grant: UploadGrant) -> bool:
        return grant.url.startswith(self._batch_url + "/")

    # --- Batches -----------------------------------------------------------------------------

    def _enqueue(self, upload: _Upload) -> None:
        upload.task = None
        self._ready[upload.key] = upload
        if self._batching is None:
            self._batching = asyncio.create_task(self._send_batches())

    async def _send_batches(self) -> None:
        tries = 0
        try:
            while self._ready:
                batch = self._take_batch()
                next_at = monotonic() + GATHER_S
                try:
                    answers = await self._post(batch)
                except (aiohttp.ClientError, TimeoutError, _PassingError) as error:
                    answers = [(503, str(error) or type(error).__name__)] * len(batch)
                failure = ""
                for upload, (status, message) in zip(batch, answers, strict=True):
                    if self._uploads.get(upload.key) is not upload:
                        continue  # called off meanwhile
                    if not _may_pass(status):
                        self._conclude(upload, status, message)
                    elif not self._gives_up(upload, f"{status} {message}"):
                        self._ready[upload.key] = upload
                        failure = f"{status} {message}"
                tries = tries + 1 if failure else 0
                if failure:
                    _log.warning("uploads to %s fail, trying again: %s", self._batch_url, failure)
                    await _back_off(tries)
                else:
                    await asyncio.sleep(next_at - monotonic())
        finally:
            self._batching = None

    def _take_batch(self) -> list[_Upload]:
        batch: list[_Upload] = []
        left = BATCH_BYTES
        for upload in self._ready.values():
            size = len(upload.body) + len(upload.grant.url) + 8
            if size > left or len(batch) == BATCH_ITEMS:
                break
            left -= size
            batch.append(upload)
        for upload in batch:
            del self._ready[upload.key]
        return batch

    async def _post(self, batch: list[_Upload]) -> list[tuple[int, str]]:
        parts: list[bytes] = []
        for upload in batch:
            token = upload.grant.url.rpartition("/")[2].encode()
            parts += (_U32.pack(len(token)), token, _U32.pack(len(upload.body)), upload.body)
        async with (
            asyncio.timeout(BATCH_S),
            self._http.post(self._batch_url, data=b"".join(parts)) as response,
        ):
            if response.status != 200:
                text = await message_of(response)
                return [(response.status, text)] * len(batch)
            answers = await response.json()
        self.progress += sum(len(upload.body) for upload in batch)
        try:
            pairs = [(int(answer["status"]), str(answer["text"])) for answer in answers]
        except (TypeError, ValueError, KeyError) as error:
            raise _PassingError(f"its answer to a batch is not as agreed: {error!r}") from error
        if len(pairs) != len(batch):
            raise _PassingError(f"it answers {len(pairs)} of {len(batch)} uploads")
        return pairs

    # --- Alone -------------------------------------------------------------------------------

    async def _deliver_alone(self, upload: _Upload) -> None:
        async with self._streams:
            output = upload.output
            try:
                if output.nar_bytes <= MEMORY_NAR_BYTES and self._takes_batches(upload.grant):
                    body = await self._compressed_whole(upload)
                    if len(body) <= SMALL_BYTES:
                        upload.body = body
                        self._enqueue(upload)
                        return
                await self._put(upload)
            except OutsideError as error:
                self._end(upload)
                self._fail(upload.grant.attempt, f"{output.path} cannot be read: {error}")
            finally:
                if upload.spool is not None:
                    upload.spool.close()

    async def _compressed_whole(self, upload: _Upload) -> bytes:
        path = self._physical(upload.output.path)
        try:
            return await asyncio.to_thread(_compress, path, upload.grant)
        except OutsideError:
            return b"".join([piece async for piece in self._from_daemon(upload)])

    async def _put(self, upload: _Upload) -> None:
        while True:
            try:
                status, text = await self._try_put(upload)
                if not _may_pass(status):
                    self._conclude(upload, status, text)
                    return
                error = f"{status} {text}"
            except (aiohttp.ClientError, TimeoutError) as failure:
                if upload.broken is not None:  # which the client wraps in an error of its own
                    raise upload.broken from failure
                error = str(failure) or f"it took no byte for {QUIET_S:.0f} s"
            if self._gives_up(upload, error):
                return
            _log.warning("upload of %s fails, trying again: %s", upload.output.path, error)
            await _back_off(max(1, upload.failures))

    async def _try_put(self, upload: _Upload) -> tuple[int, str]:
        """The answer; TimeoutError where nothing moves for QUIET_S."""
        headers = {"Content-Type": "application/octet-stream"}
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(QUIET_S) as patience:

            def moved(count: int) -> None:
                self.progress += count
                if not patience.expired():
                    patience.reschedule(loop.time() + QUIET_S)

            if upload.grant.is_direct:
                return await put_spool(
                    self._http, upload.grant.url, await self._spooled(upload, moved), moved
                )
            body = self._stream(upload, moved)
            async with self._http.put(upload.grant.url, data=body, headers=headers) as answer:
                return answer.status, await message_of(answer)

    async def _spooled(self, upload: _Upload, moved: Callable[[int], None]) -> Spool:
        """The whole of it, compressed once for however many tries."""
        if upload.spool is not None:
            return upload.spool
        spool = Spool(self._spool_dir)
        try:
            async for piece in self._pieces(upload):
                await spool.write(piece)
                moved(len(piece))
        except BaseException:
            spool.close()
            raise
        upload.spool = spool
        return spool

    async def _stream(self, upload: _Upload, moved: Callable[[int], None]) -> AsyncIterator[bytes]:
        try:
            async for piece in self._pieces(upload):
                yield piece
                moved(len(piece))
        except OutsideError as error:
            upload.broken = error
            raise

    async def _pieces(self, upload: _Upload) -> AsyncIterator[bytes]:
        """The compressed NAR; the next piece is made while the last one travels."""
        stream = _stream_of(upload.grant, COMPRESSION_THREADS)
        pieces = _compressed(self._physical(upload.output.path), stream)
        try:
            piece = await asyncio.to_thread(next, pieces, b"")
        except OutsideError:
            async for piece in self._from_daemon(upload):
                yield piece
            return
        while piece:
            following = asyncio.create_task(asyncio.to_thread(next, pieces, b""))
            try:
                yield piece
            except BaseException:
                await asyncio.wait((following,))  # a generator must not be left in mid-run
                raise
            piece = await following

    async def _from_daemon(self, upload: _Upload) -> AsyncIterator[bytes]:
        stream = _stream_of(upload.grant)
        async with self._pool.lease() as daemon:
            async for chunk in daemon.nar_from_path(upload.output.path):
                if piece := stream.compress(chunk):
                    yield piece
        if piece := stream.flush():
            yield piece

    # --- Answers -----------------------------------------------------------------------------

    def _gives_up(self, upload: _Upload, error: str) -> bool:
        """Whether `error`, of a try that another may better, was the last of too many."""
        if not self._is_joined():
            upload.failures = 0
            return False
        now = monotonic()
        if not upload.failures:
            upload.failing_since = now
        upload.failures += 1
        if upload.failures < TRIES or now - upload.failing_since < TRY_S:
            return False
        self._end(upload)
        message = f"the cache takes no upload of {upload.output.path}, {upload.failures} tries long"
        self._fail(upload.grant.attempt, f"{message}: {error}")
        return True

    def _end(self, upload: _Upload) -> None:
        if self._uploads.get(upload.key) is upload:
            del self._uploads[upload.key]

    def _conclude(self, upload: _Upload, status: int, message: str) -> None:
        """Act on an answer that trying again would not change."""
        attempt = upload.grant.attempt
        self._end(upload)
        if status in {200, 201, 204, 409}:  # 409: it is there already
            return
        if status in {401, 403, 404, 410}:
            asks = self._asks[attempt] = self._asks.get(attempt, 0) + 1
            if asks <= ASKS_MAX:
                self._ask_again(attempt)
                return
        self._fail(attempt, f"the cache refuses {upload.output.path}: {status} {message}".rstrip())


def _may_pass(status: int) -> bool:
    """Whether another try may get a better answer."""
    return status >= 500 or status in {408, 429}


class _PassingError(Exception):
    """An answer that another try may better."""


async def _back_off(tries: int) -> None:
    pause_s = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(tries, 10))
    await asyncio.sleep(pause_s * random.uniform(0.5, 1))


def _stream_of(grant: UploadGrant, threads: int = 0) -> Compressor:
    return compressor(grant.compression, grant.compression_level, threads=threads)


def _compress(path: str, grant: UploadGrant) -> bytes:
    nar = b"".join([bytes(chunk) for chunk in pack(path)])
    return compress(grant.compression, grant.compression_level, nar)


def _compressed(path: str, stream: Compressor) -> Iterator[bytes]:
    """The compressed NAR in pieces of about a megabyte of NAR, none of them empty."""
    for chunk in pack(path):
        if piece := stream.compress(chunk):
            yield piece
    if piece := stream.flush():
        yield piece
