"""Paths that stock Nix brings: `nix copy --to http://farm`.

Nix puts the NAR, then its narinfo, which says what the NAR is. So a NAR is put aside until then and
is judged when the narinfo comes: read back, decompressed within bounds, hashed and searched for
references, while it is written to its own place among the objects. What no narinfo claims is swept
like any other abandoned upload.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Final

from grange.cache.receive import BLOCK_BYTES, put_listing, receive, take
from grange.cache.signing import nar_key, publish
from grange.cache.verify import (
    NAR_BYTES_MAX,
    Candidates,
    Claims,
    NarVerifier,
    Verified,
    candidates_of,
    check_claims,
)
from grange.errors import NotFoundError, PeerError
from grange.identity import Identity, Role
from grange.ports import Journal, Objects
from grange.store.compression import NAR_SUFFIXES
from grange.store.content import check_path
from grange.store.hash import BASE32_CHARS, Hash
from grange.store.keys import SecretKey, TrustedKeys
from grange.store.narinfo import NARINFO_BYTES_MAX, NarInfo, fingerprint, parse
from grange.store.path import StoreDir

JUDGED_AT_ONCE: Final = 4  # each holds some 30 MB and three threads
ASIDE: Final = "incoming/copy/"
NARS: Final = "nar/"
_FILE: Final = re.compile(rf"([{BASE32_CHARS}]{{52}})(\.nar(?:\.zst|\.xz)?)\Z")

Add = Callable[[NarInfo], Awaitable[None]]
"""Publishes a verified path: see `Deliveries.add_path`."""


class Copies:
    """Belongs to one event loop."""

    def __init__(
        self,
        *,
        objects: Objects,
        journal: Journal,
        add: Add,
        keys: Sequence[SecretKey],
        trusted: TrustedKeys,
        store_dir: StoreDir,
    ) -> None:
        """`trusted`: whose word is taken for what a path is that content does not prove."""
        self._objects = objects
        self._journal = journal
        self._add = add
        self._keys = keys
        self._trusted = trusted
        self._store_dir = store_dir
        self._judging = asyncio.Semaphore(JUDGED_AT_ONCE)

    async def put_nar(self, file: str, body: AsyncIterator[bytes]) -> None:
        """Put a file aside; raises PeerError where its name is not that of its content."""
        match = _FILE.match(file)
        if match is None:
            raise PeerError(
                f"{file[:100]!r} is no NAR that this farm takes; copy with ?compression=zstd, xz "
                "or none"
            )
        wanted = Hash.parse(match[1], "sha256")
        hasher = sha256()
        size = 0
        writer = self._objects.writer()
        try:
            while block := await take(body, BLOCK_BYTES):
                size += len(block)
                if size > NAR_BYTES_MAX:
                    raise PeerError(f"a NAR of more than {NAR_BYTES_MAX} bytes is not taken")
                hasher.update(block)
                await writer.write(block)
            found = Hash("sha256", hasher.digest())
            if found != wanted:
                raise PeerError(f"what came has the hash {found.base32()}, not {match[1]}")
            await writer.commit(ASIDE + file)
        finally:
            await writer.discard()

    async def put_narinfo(self, hash_part: str, text: bytes, who: Identity) -> bool:
        """Judge and publish a path whose NAR was put; False where it is here already.

        Raises ForbiddenError where `who` may not bring it, NotFoundError for a NAR that was not
        put, PeerError for whatever is not true, OutsideError where the store fails.
        """
        narinfo = self._parse(hash_part, text)
        info = narinfo.info
        self._check_right(narinfo, who)
        if info.path in await self._journal.valid_paths([info.path]):
            return False
        others = [each for each in info.references if each != info.path]
        if missing := set(others) - await self._journal.valid_paths(others):
            raise PeerError(
                f"{info.path} refers to {min(missing)}, which the farm does not have; copy that "
                "first"
            )
        candidates: Candidates | None = None
        if info.content_address is None:
            candidates = candidates_of([*await self._journal.runtime_closure(others), info.path])
        claims = Claims(
            info.path, info.nar_hash, info.nar_bytes, info.references, info.content_address
        )
        check_claims(claims, candidates)
        async with self._judging:
            verified = await self._judge(narinfo, claims, candidates)
        await self._add(publish(verified, info.deriver, self._keys, self._store_dir))
        await self._objects.delete(_aside(narinfo))
        return True

    def _parse(self, hash_part: str, text: bytes) -> NarInfo:
        if len(text) > NARINFO_BYTES_MAX:
            raise PeerError(f"a narinfo of more than {NARINFO_BYTES_MAX} bytes is not taken")
        try:
            narinfo = parse(text.decode(), self._store_dir)
        except UnicodeDecodeError:
            raise PeerError("the narinfo is no text; send it uncompressed") from None
        if narinfo.info.path.hash_part != hash_part:
            raise PeerError(f"the narinfo is of {narinfo.info.path}, not of {hash_part[:40]}")
        if narinfo.compression not in NAR_SUFFIXES or narinfo.file_hash is None:
            raise PeerError("copy with ?compression=zstd, xz or none, and the hash of the file")
        return narinfo

    def _check_right(self, narinfo: NarInfo, who: Identity) -> None:
        """What follows from its content may be brought by who submits; else someone must answer
        for it: a key that is trusted, or a token that may import."""
        info = narinfo.info
        if info.content_address is not None:
            check_path(info.path, info.content_address, info.references, self._store_dir)
            who.demand(Role.SUBMIT, Role.IMPORT)
        elif self._trusted.signer(fingerprint(info, self._store_dir), info.signatures) is not None:
            who.demand(Role.SUBMIT, Role.IMPORT)
        else:
            who.demand(Role.IMPORT)

    async def _judge(
        self, narinfo: NarInfo, claims: Claims, candidates: Candidates | None
    ) -> Verified:
        """Read back what was put aside, and store it for good; or what is stored already, since Nix
        puts no file that is there."""
        assert narinfo.file_hash is not None
        file = f"{narinfo.file_hash.base32()}{NAR_SUFFIXES[narinfo.compression]}"
        key = ASIDE + file
        is_stored = await self._objects.size(key) is None
        if is_stored:
            key = NARS + file
            if await self._objects.size(key) is None:
                raise NotFoundError(
                    f"the NAR of {claims.path} was not put, or too long ago; copy again"
                )
        body = self._pieces(key)
        writer = None if is_stored else self._objects.writer()
        verifier = NarVerifier(claims, candidates, narinfo.compression)
        try:
            verified = await receive(verifier, await take(body, BLOCK_BYTES), body, writer)
            if writer is not None:
                await writer.commit(nar_key(verified))
        finally:
            if writer is not None:
                await writer.discard()
            await body.aclose()
        await put_listing(verified, self._objects)
        return verified

    async def _pieces(self, key: str) -> AsyncGenerator[bytes, None]:
        async for piece in self._objects.read(key):
            yield piece


def _aside(narinfo: NarInfo) -> str:
    assert narinfo.file_hash is not None
    return f"{ASIDE}{narinfo.file_hash.base32()}{NAR_SUFFIXES[narinfo.compression]}"
