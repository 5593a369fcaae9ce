"""Grants and what becomes of them: forged, expired, spent, revoked, broken off, tried again."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import pytest
import zstandard

from grange.cache import grants as grants_module
from grange.cache.grants import GRANT_S, UploadError
from grange.cache.receive import SMALL_FILE_BYTES, SMALL_NAR_BYTES
from grange.cache.signing import listing_key, nar_key
from grange.cache.tokens import TokenKey
from grange.cache.uploads import STORED, Answer, Stored, Uploads, join_batch
from grange.cache.verify import Claims, candidates_of
from grange.errors import OperatorError, OutsideError, PeerError
from grange.objects.directory import DirectoryObjects
from grange.scheduler.facts import AttemptId
from grange.store.content import ContentAddress, Method
from grange.store.hash import Hash
from grange.store.nar import Directory, File, nar_of_tree, single_file_nar
from grange.store.outputs import source_path, text_path
from grange.store.path import NIX_STORE, StorePath
from grange.wire.messages import BuiltOutput

DEP = StorePath.parse_base("1b" * 16 + "-dep")
CLOSURE = candidates_of([DEP])
ATTEMPT = AttemptId(7)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(data)


def output(nar: bytes, *references: StorePath, number: int = 0) -> BuiltOutput:
    path = StorePath.parse_base(f"{number:032}-out")
    return BuiltOutput("out", path, Hash.of("sha256", nar), len(nar), references)


SMALL = single_file_nar(b"small, and uses " + DEP.encode())
LARGE = nar_of_tree(
    Directory({b"noise": File(os.urandom(3 << 20)), b"zeros": File(bytes(20 << 20))})
)


@dataclass
class FakeClock:
    now: float = 1_700_000_000.0

    def wall_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.now


@dataclass
class Farm:
    root: Path
    key: TokenKey = field(default_factory=lambda: TokenKey(b"k" * 32))
    clock: FakeClock = field(default_factory=FakeClock)
    stored: list[Stored] = field(default_factory=list)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.objects = DirectoryObjects(self.root)
        self.restart()

    def restart(self) -> None:
        self.uploads = Uploads(
            self.objects,
            self.key,
            self.clock,
            self._on_stored,
            store_dir=NIX_STORE,
            nar_bytes_max=1 << 30,
        )

    async def _on_stored(self, stored: Sequence[Stored]) -> None:
        if self.error is not None:
            raise self.error
        self.stored += stored

    def grant(self, nar: bytes, *references: StorePath, number: int = 0) -> str:
        claims = output(nar, *references, number=number)
        url = self.uploads.grant(ATTEMPT, claims, CLOSURE, None)
        assert url.startswith("/upload/")
        return url.removeprefix("/upload/")

    async def put(self, token: str, file: bytes, part_bytes: int = 50_000) -> Answer:
        return await self.uploads.put(token, parts(file, part_bytes), len(file))

    def files(self) -> set[str]:
        found = (path for path in self.root.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)) for path in found}


async def parts(file: bytes, part_bytes: int = 50_000) -> AsyncIterator[bytes]:
    for start in range(0, len(file), part_bytes):
        yield file[start : start + part_bytes]


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    return Farm(tmp_path / "objects")


async def test_a_small_upload_is_stored_under_its_hash(farm: Farm) -> None:
    file = zstd(SMALL)
    assert await farm.put(farm.grant(SMALL, DEP), file) == STORED
    (stored,) = farm.stored
    assert stored.attempt == ATTEMPT
    assert stored.output == output(SMALL, DEP)
    key = f"nar/{Hash.of('sha256', file).base32()}.nar.zst"
    assert nar_key(stored.verified) == key
    assert farm.files() == {key}
    assert await farm.objects.get(key) == file


async def test_a_large_upload_is_stored_with_its_listing(farm: Farm) -> None:
    file = zstd(LARGE)
    assert await farm.put(farm.grant(LARGE), file) == STORED
    (stored,) = farm.stored
    key = nar_key(stored.verified)
    assert farm.files() == {key, listing_key(key)}
    assert await farm.objects.get(key) == file
    assert await farm.objects.get(listing_key(key)) == stored.verified.listing


async def test_bytes_of_unknown_number_are_counted(farm: Farm) -> None:
    token = farm.grant(LARGE)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield os.urandom(1 << 20)

    answer = await farm.uploads.put(token, endless(), None)
    assert answer.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert farm.files() == set()


async def test_too_many_bytes_are_refused_before_they_come(farm: Farm) -> None:
    token = farm.grant(SMALL, DEP)
    never: AsyncIterator[bytes] = parts(b"")
    answer = await farm.uploads.put(token, never, 1 << 30)
    assert answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert await farm.put(token, zstd(SMALL)) == STORED


async def test_a_forged_url(farm: Farm) -> None:
    good = farm.grant(SMALL, DEP)
    other = TokenKey(b"x" * 32).issue(int(farm.clock.now) + GRANT_S)[1]
    flipped = [
        good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :] for at in range(len(good))
    ]
    for token in ("", "junk", "ü" * 44, "A" * 44, good + "A", good[:-4], other, *flipped):
        answer = await farm.put(token, zstd(SMALL))
        assert answer.status == HTTPStatus.FORBIDDEN, token
    assert farm.files() == set()
    assert await farm.put(good, zstd(SMALL)) == STORED


async def test_an_expired_url(farm: Farm) -> None:
    token = farm.grant(SMALL, DEP)
    farm.clock.now += GRANT_S
    answer = await farm.put(token, zstd(SMALL))
    assert answer.status == HTTPStatus.GONE
    assert "expired" in answer.text


async def test_a_url_from_before_a_restart(farm: Farm) -> None:
    token = farm.grant(SMALL, DEP)
    farm.restart()
    answer = await farm.put(token, zstd(SMALL))
    assert answer.status == HTTPStatus.GONE
    assert "ask for a new one" in answer.text


async def test_a_used_url(farm: Farm) -> None:
    token = farm.grant(SMALL, DEP)
    assert await farm.put(token, zstd(SMALL)) == STORED
    answer = await farm.put(token, zstd(SMALL))
    assert answer.status == HTTPStatus.CONFLICT
    assert len(farm.stored) == 1


async def test_two_uploads_under_one_url_at_once(farm: Farm) -> None:
    token = farm.grant(LARGE)
    answers = await asyncio.gather(*(farm.put(token, zstd(LARGE)) for _ in range(2)))
    statuses = {answer.status for answer in answers}
    assert statuses == {HTTPStatus.CREATED, HTTPStatus.CONFLICT}
    assert len(farm.stored) == 1


async def test_a_revoked_url(farm: Farm) -> None:
    tokens = [farm.grant(SMALL, DEP, number=n) for n in range(2)]
    farm.uploads.revoke(ATTEMPT)
    farm.uploads.revoke(ATTEMPT)
    for token in tokens:
        assert (await farm.put(token, zstd(SMALL))).status == HTTPStatus.GONE
    assert farm.stored == []


async def test_revoked_while_it_comes_in(farm: Farm) -> None:
    token = farm.grant(LARGE)

    async def body() -> AsyncIterator[bytes]:
        file = zstd(LARGE)
        yield file[: 1 << 20]
        farm.uploads.revoke(ATTEMPT)
        yield file[1 << 20 :]

    assert (await farm.uploads.put(token, body(), None)).status == HTTPStatus.GONE
    assert farm.stored == []


async def test_a_new_url_for_a_path_makes_the_earlier_one_void(farm: Farm) -> None:
    first, second = farm.grant(SMALL, DEP), farm.grant(SMALL, DEP)
    assert (await farm.put(first, zstd(SMALL))).status == HTTPStatus.GONE
    assert await farm.put(second, zstd(SMALL)) == STORED


@pytest.mark.parametrize("nar", [SMALL, LARGE], ids=["small", "large"])
async def test_an_upload_cut_in_the_middle_is_tried_again(farm: Farm, nar: bytes) -> None:
    file = zstd(nar)
    references = [DEP] if nar is SMALL else []
    token = farm.grant(nar, *references)

    async def cut() -> AsyncIterator[bytes]:
        yield file[: len(file) // 2]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await farm.uploads.put(token, cut(), len(file))
    assert farm.files() == set()
    answer = await farm.put(token, file[: len(file) // 2])
    assert answer.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "ends early" in answer.text
    assert farm.files() == set()
    assert await farm.put(token, file) == STORED


async def test_a_lie_in_a_large_upload_leaves_nothing(farm: Farm) -> None:
    token = farm.grant(LARGE)
    changed = bytearray(LARGE)
    changed[-100] ^= 1
    answer = await farm.put(token, zstd(bytes(changed)))
    assert answer.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert farm.files() == set()
    assert farm.stored == []


async def test_a_malformed_large_upload_ends_at_once(farm: Farm) -> None:
    """What the second thread finds reaches the first."""
    token = farm.grant(bytes(200 << 20))
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        file = zstandard.ZstdCompressor().compressobj()
        yield file.compress(LARGE[: 1 << 20] + bytes(1 << 20))
        for _ in range(200):
            taken += 1
            yield file.compress(os.urandom(1 << 20))

    answer = await farm.uploads.put(token, body(), None)
    assert answer.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "NAR" in answer.text
    assert taken < 200


async def test_a_small_file_of_a_large_nar(farm: Farm) -> None:
    nar = single_file_nar(bytes(SMALL_NAR_BYTES * 8))
    file = zstd(nar)
    assert len(file) < SMALL_FILE_BYTES
    assert await farm.put(farm.grant(nar), file) == STORED


async def test_where_the_farm_cannot_take_note_the_url_stays_good(farm: Farm) -> None:
    token = farm.grant(SMALL, DEP)
    farm.error = OutsideError("the journal's disk is full")
    answer = await farm.put(token, zstd(SMALL))
    assert answer == Answer(HTTPStatus.SERVICE_UNAVAILABLE, "the journal's disk is full")
    farm.error = None
    assert await farm.put(token, zstd(SMALL)) == STORED


async def test_claims_that_cannot_be_true_get_no_url(farm: Farm) -> None:
    stranger = StorePath.parse_base("3d" * 16 + "-stranger")
    with pytest.raises(PeerError, match="neither in the closure"):
        farm.grant(SMALL, stranger)
    huge = BuiltOutput("out", output(SMALL).path, Hash.of("sha256", b""), 2**63, ())
    with pytest.raises(PeerError, match="a NAR of 9223372036854775808 bytes"):
        farm.uploads.grant(ATTEMPT, huge, CLOSURE, None)
    large = BuiltOutput("out", output(SMALL).path, Hash.of("sha256", b""), 2**30 + 1, ())
    with pytest.raises(PeerError, match="this farm takes at most"):
        farm.uploads.grant(ATTEMPT, large, CLOSURE, None)


async def test_expired_grants_are_forgotten(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants_module, "GRANTS_MAX", 10)
    for number in range(10):
        farm.grant(SMALL, DEP, number=number)
    with pytest.raises(OutsideError, match="try again"):
        farm.grant(SMALL, DEP, number=10)
    farm.clock.now += GRANT_S
    farm.grant(SMALL, DEP, number=10)
    assert len(farm.uploads._grants) == 1
    assert len(farm.uploads._grants._by_attempt) == 1


def source(name: str, nar: bytes, *references: StorePath) -> Claims:
    nar_hash = Hash.of("sha256", nar)
    path = source_path(name, nar_hash, references, NIX_STORE)
    return Claims(path, nar_hash, len(nar), references, ContentAddress(Method.NAR, nar_hash))


async def test_a_source(farm: Farm) -> None:
    nar = nar_of_tree(Directory({b"main.c": File(b"int main;")}))
    claims = source("src", nar, DEP)  # what it refers to need not occur in it
    token = farm.uploads.grant_source(claims).removeprefix("/upload/")
    assert await farm.put(token, zstd(nar)) == STORED
    assert farm.stored[0].attempt is None
    assert farm.stored[0].verified.references == (DEP,)


async def test_a_text_source(farm: Farm) -> None:
    text = Hash.of("sha256", b"text")
    nar = single_file_nar(b"text")
    path = text_path("note", text, (), NIX_STORE)
    address = ContentAddress(Method.TEXT, text)
    claims = Claims(path, Hash.of("sha256", nar), len(nar), (), address)
    token = farm.uploads.grant_source(claims).removeprefix("/upload/")
    assert await farm.put(token, zstd(nar)) == STORED


async def test_a_source_whose_path_does_not_follow(farm: Farm) -> None:
    nar = single_file_nar(b"x")
    good = source("src", nar)
    elsewhere = StorePath.parse_base("3d" * 16 + "-src")
    for claims, what in (
        (Claims(elsewhere, good.nar_hash, len(nar), (), good.address), "does not follow"),
        (Claims(good.path, good.nar_hash, len(nar), (DEP,), good.address), "does not follow"),
        (Claims(good.path, good.nar_hash, len(nar), (), None), "no content address"),
        (Claims(good.path, good.nar_hash, len(nar), (good.path,), good.address), "to itself"),
    ):
        with pytest.raises(PeerError, match=what):
            farm.uploads.grant_source(claims)


async def test_a_source_of_other_content(farm: Farm) -> None:
    good, bad = single_file_nar(b"good"), single_file_nar(b"evil")
    claims = source("src", good)
    lie = Claims(claims.path, Hash.of("sha256", bad), len(bad), (), claims.address)
    token = farm.uploads.grant_source(lie).removeprefix("/upload/")
    answer = await farm.put(token, zstd(bad))
    assert answer.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "content hash" in answer.text


async def test_a_batch_judges_each_item_alone(farm: Farm) -> None:
    nars = [single_file_nar(b"item %d" % n) for n in range(40)]
    items = [(farm.grant(nar, number=n), zstd(nar)) for n, nar in enumerate(nars)]
    items[3] = (items[3][0], zstd(nars[4]))
    items[5] = ("forged", items[5][1])
    items[7] = (items[8][0], items[8][1])  # twice the same
    answers = await farm.uploads.put_batch(join_batch(items))
    statuses = {n: a.status for n, a in enumerate(answers) if a != STORED}
    assert statuses == {
        3: HTTPStatus.UNPROCESSABLE_ENTITY,
        5: HTTPStatus.FORBIDDEN,
        8: HTTPStatus.CONFLICT,
    }
    assert len(farm.stored) == 37
    assert len(farm.files()) == 37


async def test_a_batch_with_a_larger_item(farm: Farm) -> None:
    nar = single_file_nar(os.urandom(1 << 20))
    items = [(farm.grant(nar), zstd(nar)), (farm.grant(SMALL, DEP, number=1), zstd(SMALL))]
    assert await farm.uploads.put_batch(join_batch(items)) == [STORED, STORED]


async def test_a_batch_the_farm_cannot_take_note_of(farm: Farm) -> None:
    body = join_batch([(farm.grant(SMALL, DEP), zstd(SMALL)), ("forged", b"")])
    farm.error = OutsideError("later")
    answers = await farm.uploads.put_batch(body)
    assert [a.status for a in answers] == [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.FORBIDDEN]
    farm.error = None
    assert (await farm.uploads.put_batch(body))[0] == STORED


@pytest.mark.parametrize("cut", [1, 3, 40, 60])
async def test_a_batch_that_ends_within_an_item(farm: Farm, cut: int) -> None:
    body = join_batch([(farm.grant(SMALL, DEP), zstd(SMALL))])
    with pytest.raises(UploadError, match="ends within an item"):
        await farm.uploads.put_batch(body[:-cut])
    with pytest.raises(UploadError, match="at most 4096"):
        await farm.uploads.put_batch(bytes(8 * 4097))
    assert await farm.uploads.put_batch(b"") == []


def test_the_key_survives(tmp_path: Path) -> None:
    path = tmp_path / "upload-key"
    token = TokenKey.load(path).issue(5)[1]
    assert TokenKey.load(path).read(token).expires == 5
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["upload-key"]
    path.write_bytes(b"short")
    with pytest.raises(OperatorError, match="damaged"):
        TokenKey.load(path)
    with pytest.raises(OperatorError, match="set the state directory"):
        TokenKey.load(tmp_path / "missing" / "upload-key")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")
async def test_a_full_disk(tiny_disk: Path) -> None:
    farm = Farm(tiny_disk)
    token = farm.grant(LARGE)
    answer = await farm.put(token, zstd(LARGE))
    assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert "is full" in answer.text
    assert farm.files() == set()
    nar = single_file_nar(os.urandom(60_000))
    assert await farm.put(farm.grant(nar, number=1), zstd(nar)) == STORED
    assert (await farm.put(token, zstd(LARGE))).status == HTTPStatus.SERVICE_UNAVAILABLE
