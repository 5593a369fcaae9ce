"""An upstream cache: which paths it has, with a signature we trust.

An answer is remembered, a miss for a short while only. A cache that is down or too slow has not
answered: nothing is remembered of that, and the farm builds what it cannot fetch.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final
from urllib.parse import urljoin

import aiohttp

from grange.cache.unpack import read_file
from grange.errors import OutsideError, PeerError
from grange.ports import Clock, Journal
from grange.store.closure import topological
from grange.store.keys import TrustedKeys
from grange.store.narinfo import NARINFO_BYTES_MAX, NarInfo, fingerprint, parse
from grange.store.path import StoreDir, StorePath

QUERIES_AT_ONCE: Final = 64
QUERY_S: Final = 15
TEXT_S: Final = 60  # for one small file
HIT_S: Final = 30 * 24 * 3600  # signed paths rarely go, and then a fetch finds out
MISS_S: Final = 600
CLOSURE_PATHS_MAX: Final = 200_000  # a whole desktop has some 5,000
FAILURES_MAX: Final = 5  # in a row; then nobody waits for this upstream for PAUSE_S
PAUSE_S: Final = 60

# S3 says FORBIDDEN where the asker may not list what is there.
_MISSES: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN, HTTPStatus.GONE)


@dataclass(frozen=True, slots=True)
class Available:
    """What an upstream has of the paths it was asked for."""

    narinfos: tuple[NarInfo, ...]  # whole runtime closures, references first; URLs are absolute
    missing: frozenset[StorePath]  # of the paths asked for: lacking in part, or not to be had now


class Upstream:
    """One binary cache that others run. Belongs to one event loop."""

    def __init__(
        self,
        url: str,
        public_keys: TrustedKeys,
        journal: Journal,
        http: aiohttp.ClientSession,
        clock: Clock,
        *,
        store_dir: StoreDir,
        warn: Callable[[str], None],
        miss_s: float = MISS_S,
    ) -> None:
        """`warn` gets what an operator should know: who is at fault, and with which path.

        `miss_s` is how long a miss is remembered.
        """
        self._url = url.rstrip("/")
        self._keys = public_keys
        self._journal = journal
        self._http = http
        self._clock = clock
        self._store_dir = store_dir
        self._warn = warn
        self._miss_s = miss_s
        self._free = asyncio.Semaphore(QUERIES_AT_ONCE)
        self._failures = 0  # in a row
        self._resumes_s = 0.0  # monotonic

    async def available(self, roots: Iterable[StorePath]) -> Available:
        """Which of `roots` can be had from here with all they refer to.

        Paths that the farm has already count as had, and are not among the answer's narinfos.
        """
        wanted = frozenset(roots)
        found: dict[StorePath, NarInfo] = {}
        lacking: set[StorePath] = set()
        present: set[StorePath] = set()
        level = set(wanted)
        while level:
            had = await self._journal.valid_paths(level)
            present |= had
            answers = await self._query(sorted(level - had))
            found |= answers
            lacking |= level - had - answers.keys()
            references = {each for one in answers.values() for each in one.info.references}
            level = references - found.keys() - lacking - present
            if len(found) + len(level) > CLOSURE_PATHS_MAX:
                self._warn(f"a closure on {self._url} has over {CLOSURE_PATHS_MAX} paths: not used")
                return Available((), wanted - present)
        _drop_incomplete(found, lacking)
        try:
            order = topological(found, lambda path: found[path].info.references)
        except PeerError as error:
            self._warn(f"{self._url} is not used: {error}")
            return Available((), wanted - present)
        return Available(tuple(found[path] for path in order), wanted - found.keys() - present)

    async def narinfos(self, paths: Iterable[StorePath]) -> dict[StorePath, NarInfo]:
        """Of exactly these paths, those that are here, whatever they refer to."""
        return await self._query(sorted(paths))

    async def text(self, narinfo: NarInfo, bytes_max: int) -> bytes:
        """The contents of a path of here that is one small file, checked against its narinfo.

        Raises OutsideError where it cannot be had, is not what was signed, or is larger.
        """
        name = narinfo.info.path
        if not narinfo.url.startswith(f"{self._url}/"):
            raise OutsideError(f"{self._url} has {name} at another place, {narinfo.url[:200]!r}")
        try:
            async with asyncio.timeout(TEXT_S), self._http.get(narinfo.url) as response:
                if response.status != HTTPStatus.OK:
                    raise OutsideError(f"it answers {response.status} {response.reason}")
                return await read_file(response.content.iter_any(), narinfo, bytes_max)
        except (aiohttp.ClientError, TimeoutError, OutsideError, PeerError) as error:
            what = str(error) or f"not within {TEXT_S} s"
            raise OutsideError(f"{self._url} does not give {name}: {what}") from error

    async def serves(self, url: str) -> bool:
        """Whether the file at `url`, from a narinfo of here, is there.

        One that does not say counts as being there: only a clear no is a no.
        """
        try:
            async with asyncio.timeout(QUERY_S), self._http.head(url) as response:
                return response.status not in _MISSES
        except (aiohttp.ClientError, TimeoutError):
            return True

    async def note_gone(self, path: StorePath) -> None:
        """What was remembered of this path has proved wrong."""
        expires = self._clock.wall_s() + MISS_S
        await self._journal.save_upstream_answers(self._url, {path.hash_part: ""}, expires)

    async def _query(self, paths: list[StorePath]) -> dict[StorePath, NarInfo]:
        """The narinfos of those that are here."""
        texts = await asyncio.gather(*(self._text(path) for path in paths))
        found: dict[StorePath, NarInfo] = {}
        hits: dict[str, str] = {}
        misses: dict[str, str] = {}
        for path, answer in zip(paths, texts, strict=True):
            if answer is None:
                continue
            text, is_new = answer
            narinfo = self._check(path, text) if text else None
            if narinfo is not None:
                found[path] = narinfo
            if is_new and narinfo is not None:
                hits[path.hash_part] = text
            elif is_new:
                misses[path.hash_part] = ""
        now = self._clock.wall_s()
        if hits:
            await self._journal.save_upstream_answers(self._url, hits, now + HIT_S)
        if misses:
            await self._journal.save_upstream_answers(self._url, misses, now + self._miss_s)
        return found

    async def _text(self, path: StorePath) -> tuple[str, bool] | None:
        """The narinfo, "" for a miss, and whether that is news; None where there is no answer."""
        async with self._free:
            now = self._clock.wall_s()
            known = await self._journal.upstream_answer(self._url, path.hash_part, now)
            if known is not None:
                return known, False
            if self._clock.monotonic_s() < self._resumes_s:
                return None
            try:
                text = await self._fetch(f"{self._url}/{path.hash_part}.narinfo")
            except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError, OutsideError) as error:
                self._note_failure(path, error)
                return None
            self._failures = 0
            return text, True

    async def _fetch(self, url: str) -> str:
        async with (
            asyncio.timeout(QUERY_S),
            self._http.get(url) as response,
        ):
            if response.status in _MISSES:
                return ""
            if response.status != HTTPStatus.OK:
                raise OutsideError(f"it answers {response.status} {response.reason}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > NARINFO_BYTES_MAX:
                    raise OutsideError(f"it sends more than {NARINFO_BYTES_MAX} bytes")
            return body.decode()

    def _note_failure(self, path: StorePath, error: Exception) -> None:
        if self._clock.monotonic_s() < self._resumes_s:
            return  # a query that was under way when the pause began
        self._failures += 1
        what = str(error) or f"no answer within {QUERY_S} s"
        if self._failures == FAILURES_MAX:
            self._failures = 0
            self._resumes_s = self._clock.monotonic_s() + PAUSE_S
            self._warn(
                f"{self._url} fails ({what}): for {PAUSE_S} s it is not asked, and what it may "
                "have is built; see whether it is up"
            )
        else:
            self._warn(f"{self._url} did not say whether it has {path}: {what}")

    def _check(self, path: StorePath, text: str) -> NarInfo | None:
        """What a narinfo says, if it is about `path` and signed by a key we trust."""
        try:
            narinfo = parse(text, self._store_dir)
        except PeerError as error:
            self._warn(f"{self._url} has a bad narinfo of {path}, which is not used: {error}")
            return None
        url = urljoin(f"{self._url}/", narinfo.url)
        if narinfo.info.path != path or not url.startswith(("https://", "http://")):
            self._warn(
                f"{self._url} has a narinfo for {path} that is about {narinfo.info.path} at "
                f"{url[:200]!r}; it is not used"
            )
            return None
        signed = fingerprint(narinfo.info, self._store_dir)
        if self._keys.signer(signed, narinfo.info.signatures) is None:
            self._warn(
                f"{self._url} has {path} without a signature by one of its public keys "
                f"({', '.join(self._keys.by_name) or 'none'}); it is not used"
            )
            return None
        return replace(narinfo, url=url)


def _drop_incomplete(found: dict[StorePath, NarInfo], lacking: Iterable[StorePath]) -> None:
    """Take out whatever refers, however far, to what is lacking."""
    referrers: dict[StorePath, list[StorePath]] = {}
    for path, narinfo in found.items():
        for reference in narinfo.info.references:
            referrers.setdefault(reference, []).append(path)
    gone = list(lacking)
    while gone:
        for referrer in referrers.get(gone.pop(), ()):
            if found.pop(referrer, None) is not None:
                gone.append(referrer)
