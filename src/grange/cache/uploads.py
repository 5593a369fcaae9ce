"""Uploads: from a claim to a verified file among the objects.

Whoever is to upload a path first says what it is and gets a URL for exactly that. What comes in
under the URL is verified while it is written, committed, and handed to `on_stored`; only then is
the URL spent. A broken upload may be tried again with the same URL.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from grange.cache.direct import SHA256_BYTES, Arrival, DirectRoad
from grange.cache.grants import Grant, Grants, UploadError
from grange.cache.receive import is_small, put_listing, store, verify
from grange.cache.signing import nar_key
from grange.cache.tokens import TokenKey
from grange.cache.verify import NAR_BYTES_MAX, Candidates, Claims, Verified
from grange.cache.verify import check_claims as check_possible
from grange.errors import GrangeError, OutsideError, PeerError
from grange.ports import Clock, Objects, SignedPut
from grange.scheduler.facts import AttemptId
from grange.store.content import ContentAddress, check_path
from grange.store.path import StoreDir
from grange.wire.messages import BuiltOutput

log = logging.getLogger(__name__)

TROUBLE_S: Final = 300.0  # without another failure: agents try again more often
LARGE_AT_ONCE: Final = 8  # each holds some 30 MB and three threads
UPLOADS_AT_ONCE: Final = 512  # each holds up to 64 KB before it is judged
BATCH_BYTES_MAX: Final = 8 << 20
BATCH_ITEMS_MAX: Final = 4096
LOOK_S: Final = 15.0  # how long one question after an arrival waits for its end
_LENGTH_BYTES: Final = 4
_SLICE: Final = 32  # items of a batch judged, at 0.1 ms each, and synced before others get a turn


@dataclass(frozen=True, slots=True)
class Stored:
    """A verified NAR that lies among the objects for good, and what it was granted for."""

    attempt: AttemptId | None  # None for a source
    output: BuiltOutput | None  # None for a source
    verified: Verified


@dataclass(frozen=True, slots=True)
class Answer:
    """What an uploader is told. CREATED and CONFLICT both mean that nothing more is to be sent."""

    status: HTTPStatus
    text: str


STORED: Final = Answer(HTTPStatus.CREATED, "stored")

OnStored = Callable[[Sequence[Stored]], Awaitable[None]]


class Uploads:
    """Grants uploads and takes them in. Belongs to one event loop."""

    def __init__(
        self,
        objects: Objects,
        key: TokenKey,
        clock: Clock,
        on_stored: OnStored,
        *,
        store_dir: StoreDir,
        compression: str = "zstd",
        nar_bytes_max: int = NAR_BYTES_MAX,
    ) -> None:
        """`on_stored` gets what one request brought; where it raises, the URLs stay good."""
        self._objects = objects
        self._clock = clock
        self._grants = Grants(key, clock)
        self._on_stored = on_stored
        self._store_dir = store_dir
        self._compression = compression
        self._nar_bytes_max = nar_bytes_max
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._all = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._road = DirectRoad(objects, compression=compression)
        self._arrivals: dict[bytes, Arrival] = {}  # announced, by grant
        self._looking: dict[bytes, asyncio.Task[Answer]] = {}  # read back now, by grant
        self._on_verified: Callable[[Verified], None] | None = None
        self._trouble = ""  # of the store, since the latest upload that it took
        self._troubled = 0.0  # when that was said last, monotonic

    def want_diff_ids(self, on_verified: Callable[[Verified], None]) -> None:
        """Have the diff IDs of outputs found while their NARs come in; `on_verified` hears of all
        that is stored."""
        self._on_verified = on_verified

    def _images_of(self, claims: Claims) -> StoreDir | None:
        """What follows from its content is a source or a download, which images rarely have."""
        is_wanted = self._on_verified is not None and claims.address is None
        return self._store_dir if is_wanted else None

    def grant(
        self,
        attempt: AttemptId,
        output: BuiltOutput,
        candidates: Candidates,
        fixed: ContentAddress | None,
    ) -> str:
        """Where to PUT `output`, as the path of a URL; an earlier grant for it becomes void.

        `candidates` are the runtime closure of the step's inputs and all its own outputs; `fixed`
        is the hash that its derivation declares. Raises PeerError for claims that cannot be true,
        OutsideError where too many uploads are outstanding.
        """
        claims = Claims(output.path, output.nar_hash, output.nar_bytes, output.references, fixed)
        self._check_claims(claims, candidates)
        return f"/upload/{self._grants.issue(attempt, output, claims, candidates)}"

    def grant_source(self, claims: Claims) -> str:
        """Where to PUT a source whose references are in the cache already; raises as `grant`."""
        self._check_claims(claims, None)
        if claims.address is None:
            raise PeerError(f"{claims.path} has no content address, so it is not a source")
        if claims.path in claims.references:
            raise PeerError(f"{claims.path} refers to itself, which sources may not")
        check_path(claims.path, claims.address, claims.references, self._store_dir)
        return f"/upload/{self._grants.issue(None, None, claims, None)}"

    def _check_claims(self, claims: Claims, candidates: Candidates | None) -> None:
        check_possible(claims, candidates)
        if claims.nar_bytes > self._nar_bytes_max:
            raise PeerError(
                f"{claims.path} has a NAR of {claims.nar_bytes} bytes, but this farm takes at most "
                f"{self._nar_bytes_max}; make it smaller, or have the operator raise the limit"
            )

    def revoke(self, attempt: AttemptId) -> None:
        """Make all grants of an attempt void; what is stored stays."""
        self._grants.revoke(attempt)

    async def put(self, token: str, body: AsyncIterator[bytes], file_bytes: int | None) -> Answer:
        """Take in one upload of `file_bytes`, if that is known."""
        try:
            grant = self._grants.find(token)
            if file_bytes is not None:
                self._check_size(grant, file_bytes)
            async with self._all:
                verified = await self._take_in(grant, body)
        except (PeerError, OutsideError) as error:
            return self._told(error)
        self._trouble = ""
        return (await self._settle([(grant, verified)]))[0]

    async def _take_in(self, grant: Grant, body: AsyncIterator[bytes]) -> Verified:
        """Judge and store what comes."""
        return await store(
            grant.claims,
            grant.candidates,
            body,
            self._objects,
            compression=self._compression,
            images_of=self._images_of(grant.claims),
            large=self._large,
        )

    # --- Past the coordinator ----------------------------------------------------------------

    async def announce(self, token: str, file_bytes: int, digest: bytes) -> SignedPut | None:
        """Where in the store to put a file of so many bytes and this SHA-256; None where it is to
        be PUT here instead. An earlier announcement for the same grant is void.

        Raises UploadError, PeerError or OutsideError.
        """
        grant = self._grants.find(token)
        if len(digest) != SHA256_BYTES or file_bytes < 1:
            raise PeerError("announce a file by its length and its SHA-256")
        self._check_size(grant, file_bytes)
        if not self._road.takes(file_bytes) or grant.id in self._looking:
            return None
        self._forget_arrivals()
        before = self._arrivals.get(grant.id)
        self._arrivals[grant.id], signed = await self._road.offer(file_bytes, digest, before)
        if before is not None:
            await self._road.forget(before)
        return signed

    async def arrived(self, token: str) -> Answer:
        """What has become of an announced file that lies in the store by now.

        ACCEPTED says that it is still looked at, and how many bytes of it were: ask again.
        """
        try:
            grant = self._grants.find(token)
        except UploadError as error:
            return answer_of(error)
        arrival = self._arrivals.get(grant.id)
        if arrival is None:
            return Answer(HTTPStatus.NOT_FOUND, "announce the file first")
        looking = self._looking.get(grant.id)
        if looking is None:
            looking = asyncio.create_task(self._look(grant, arrival))
            self._looking[grant.id] = looking
            looking.add_done_callback(lambda _: self._looking.pop(grant.id, None))
        done, _ = await asyncio.wait((looking,), timeout=LOOK_S)
        return looking.result() if done else Answer(HTTPStatus.ACCEPTED, str(arrival.seen))

    async def _look(self, grant: Grant, arrival: Arrival) -> Answer:
        try:
            async with self._all, self._large:
                verified = await self._road.take_in(
                    grant, arrival, nar_key, images_of=self._images_of(grant.claims)
                )
            await put_listing(verified, self._objects)
        except (PeerError, OutsideError) as error:
            answer = self._told(error)
        else:
            self._trouble = ""
            answer = (await self._settle([(grant, verified)]))[0]
        is_over = answer.status < HTTPStatus.INTERNAL_SERVER_ERROR
        if is_over and answer.status != HTTPStatus.NOT_FOUND:  # which may come yet
            self._arrivals.pop(grant.id, None)
            await self._road.forget(arrival)
        return answer

    def _forget_arrivals(self) -> None:
        """Of grants that are no more: what lies in the store is left for the sweep."""
        for id_ in [id_ for id_ in self._arrivals if not self._grants.has(id_)]:
            del self._arrivals[id_]

    def _check_size(self, grant: Grant, file_bytes: int) -> None:
        if file_bytes > grant.claims.file_bytes_max:
            raise UploadError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{file_bytes} bytes for a NAR of {grant.claims.nar_bytes}; compress it anew",
            )

    # --- What is stored ----------------------------------------------------------------------

    async def _settle(self, items: Sequence[tuple[Grant, Verified]]) -> list[Answer]:
        """Spend the grants of what is stored and hand it over."""
        answers: list[Answer] = []
        spent: list[Grant] = []
        stored: list[Stored] = []
        for grant, verified in items:
            try:
                self._grants.spend(grant)
            except UploadError as refused:  # another upload was faster, or it was revoked
                answers.append(answer_of(refused))
                continue
            answers.append(STORED)
            spent.append(grant)
            stored.append(Stored(grant.attempt, grant.output, verified))
            if self._on_verified is not None:
                self._on_verified(verified)
        try:
            if stored:
                await self._on_stored(stored)
        except BaseException as error:
            for grant in spent:
                self._grants.unspend(grant)
            if not isinstance(error, GrangeError):
                raise
            return [answer_of(error) if answer is STORED else answer for answer in answers]
        return answers

    async def put_batch(self, body: bytes) -> list[Answer]:
        """Take in many small uploads, each as if it came alone; raises UploadError.

        Each is a token and a file, both behind their length in four bytes, big-endian.
        """
        items = _split(body)
        outcomes: list[Answer | tuple[Grant, Verified]] = []
        async with self._all:
            for start in range(0, len(items), _SLICE):
                tries = (self._take_in_small(*item) for item in items[start : start + _SLICE])
                outcomes += await asyncio.gather(*tries)
        settled = iter(await self._settle([each for each in outcomes if isinstance(each, tuple)]))
        return [each if isinstance(each, Answer) else next(settled) for each in outcomes]

    async def _take_in_small(self, token: str, file: bytes) -> Answer | tuple[Grant, Verified]:
        try:
            grant = self._grants.find(token)
            images_of = self._images_of(grant.claims)
            arguments = (grant.claims, grant.candidates, file, self._compression, images_of)
            if is_small(grant.claims, len(file)):
                verified = verify(*arguments)
            else:
                verified = await asyncio.to_thread(verify, *arguments)
            await self._objects.put_if_absent(nar_key(verified), file)
        except (PeerError, OutsideError) as error:
            return self._told(error)
        self._trouble = ""
        return grant, verified

    @property
    def trouble(self) -> str:
        """Why outputs could not be stored just now, for an operator; "" where they can be."""
        is_late = self._clock.monotonic_s() - self._troubled > TROUBLE_S
        return f"outputs cannot be stored: {self._trouble}" if self._trouble and not is_late else ""

    def _told(self, error: GrangeError) -> Answer:
        """An uploader is told what went wrong; the operator hears it where it is the store's."""
        if isinstance(error, OutsideError):
            if not self.trouble:
                log.error("outputs cannot be stored, agents try again: %s", error)
            self._trouble, self._troubled = str(error), self._clock.monotonic_s()
        return answer_of(error)


def join_batch(items: Iterable[tuple[str, bytes]]) -> bytes:
    """The body of a batch of tokens and files, as `Uploads.put_batch` takes it."""
    parts: list[bytes] = []
    for token, file in items:
        parts += (len(token).to_bytes(_LENGTH_BYTES, "big"), token.encode())
        parts += (len(file).to_bytes(_LENGTH_BYTES, "big"), file)
    return b"".join(parts)


def _split(body: bytes) -> list[tuple[str, bytes]]:
    parts: list[bytes] = []
    at = 0
    while at < len(body):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(body[at:start], "big")
        parts.append(body[start:at])
    if at != len(body) or len(parts) % 2:
        raise UploadError(HTTPStatus.BAD_REQUEST, "the batch ends within an item; send it again")
    if len(parts) > 2 * BATCH_ITEMS_MAX:
        raise UploadError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"a batch of {len(parts) // 2} uploads; send at most {BATCH_ITEMS_MAX} at once",
        )
    tokens = (part.decode("ascii", "replace") for part in parts[::2])
    return list(zip(tokens, parts[1::2], strict=True))


def answer_of(error: GrangeError) -> Answer:
    if isinstance(error, UploadError):
        return Answer(error.status, str(error))
    if isinstance(error, PeerError):
        return Answer(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
    return Answer(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
