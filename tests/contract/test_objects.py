"""What every object store must do, and what a directory does on a bad day."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from obstore.store import MemoryStore

from grange.errors import OperatorError, OutsideError, PeerError
from grange.objects.cloud import CloudObjects
from grange.objects.directory import SYNC_BYTES, DirectoryObjects
from grange.objects.location import parse_location
from grange.objects.open import open_store
from grange.ports import Objects
from tests.fake_s3 import fake_s3, open_fake
from tests.moto_s3 import CREDENTIALS, moto_s3

STRANGE = bytes(range(256)) * 5_000


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_s3() as url:
        yield url


@asynccontextmanager
async def opened(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Objects]:
    """An empty store of this kind."""
    match kind:
        case "directory":
            yield DirectoryObjects(request.getfixturevalue("tmp_path") / "objects")
        case "memory":
            yield CloudObjects(MemoryStore(), "memory")
        case "moto":
            for name, value in CREDENTIALS.items():
                monkeypatch.setenv(name, value)
            url = request.getfixturevalue("moto")
            objects = open_store(parse_location(f"s3://store?endpoint={url}"))
            async for entry in objects.list():
                await objects.delete(entry.key)
            yield objects
        case _:
            async with fake_s3(is_versioned=kind == "versioned") as fake:
                yield open_fake(fake, monkeypatch)


@pytest.fixture(params=["directory", "memory", "fake", "versioned", "moto"])
async def objects(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Objects]:
    async with opened(request.param, request, monkeypatch) as objects:
        yield objects


@pytest.fixture(params=["fake", "versioned", "moto"])
async def bucket(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Objects]:
    """One that strangers may put into."""
    async with opened(request.param, request, monkeypatch) as objects:
        yield objects


async def _read(objects: Objects, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([part async for part in objects.read(key, start, end)])


async def test_what_is_put_is_there(objects: Objects) -> None:
    assert await objects.put_if_absent("nar/a.nar", b"hello")
    assert await objects.get("nar/a.nar") == b"hello"
    assert await objects.size("nar/a.nar") == 5
    assert await _read(objects, "nar/a.nar") == b"hello"
    assert await _read(objects, "nar/a.nar", 1, 3) == b"el"
    assert await _read(objects, "nar/a.nar", 3) == b"lo"


async def test_what_is_not_put_is_not_there(objects: Objects) -> None:
    await objects.put_if_absent("file", b"")
    for key in ("nar/a.nar", "file/below"):
        assert await objects.get(key) is None
        assert await objects.size(key) is None
        with pytest.raises(OutsideError):
            await _read(objects, key)
    await objects.delete("nar/a.nar")


async def test_an_object_is_never_replaced(objects: Objects) -> None:
    assert await objects.put_if_absent("key", b"first")
    assert not await objects.put_if_absent("key", b"second")
    writer = objects.writer()
    await writer.write(b"third")
    assert not await writer.commit("key")
    assert await objects.get("key") == b"first"
    await objects.delete("key")
    assert await objects.put_if_absent("key", b"fourth")


async def test_of_many_puts_of_one_key_one_wins(objects: Objects) -> None:
    puts = [objects.put_if_absent("key", bytes([n])) for n in range(20)]
    answers = await asyncio.gather(*puts)
    assert sum(answers) == 1
    assert await objects.get("key") == bytes([answers.index(True)])


async def test_many_at_once(objects: Objects) -> None:
    keys = [f"many/{n % 3}/{n}" for n in range(600 if objects.local_path("x") else 60)]
    assert all(await asyncio.gather(*(objects.put_if_absent(key, key.encode()) for key in keys)))
    assert [await objects.get(key) for key in keys] == [key.encode() for key in keys]


async def test_a_writer_shows_nothing_before_commit(objects: Objects) -> None:
    writer = objects.writer()
    await writer.write(b"a" * 100_000)
    await writer.write(memoryview(b"b"))
    assert await objects.get("deep/er/key") is None
    assert await writer.commit("deep/er/key")
    assert await objects.get("deep/er/key") == b"a" * 100_000 + b"b"
    await writer.discard()
    assert await objects.size("deep/er/key") == 100_001


async def test_an_empty_object(objects: Objects) -> None:
    assert await objects.writer().commit("empty")
    assert await objects.get("empty") == b""
    assert await _read(objects, "empty") == b""


async def test_a_large_object_in_parts(objects: Objects) -> None:
    part = os.urandom(1 << 20)
    writer = objects.writer()
    parts = SYNC_BYTES // len(part) + 1
    for _ in range(parts):
        await writer.write(part)
    assert await writer.commit("large")
    assert await objects.size("large") == parts * len(part)
    assert await _read(objects, "large", len(part) - 5, 2 * len(part) + 5) == (
        part[-5:] + part + part[:5]
    )


async def test_a_writer_may_replace(objects: Objects) -> None:
    for size in (3, 20 << 20, 5):
        writer = objects.writer()
        await writer.write(bytes([size % 251]) * size)
        assert await writer.commit("log/x", replaces=True)
        assert await objects.size("log/x") == size
    assert await _keys(objects) == {"log/x"}


async def test_listings_tell_sizes_and_ages(objects: Objects) -> None:
    assert await _keys(objects) == set()
    before = time.time()
    for key in ("a", "nar/b", "nar/bc", "nar/b.d/e"):
        await objects.put_if_absent(key, key.encode())
    entries = [entry async for entry in objects.list()]
    assert {entry.key: entry.size for entry in entries} == {
        "a": 1,
        "nar/b": 5,
        "nar/bc": 6,
        "nar/b.d/e": 9,
    }
    for entry in entries:  # S3 tells whole seconds
        assert before - 2 <= entry.changed <= time.time() + 2
    assert await _keys(objects, "nar/b") == {"nar/b", "nar/bc", "nar/b.d/e"}
    assert await _keys(objects, "nar/bc") == {"nar/bc"}
    assert await _keys(objects, "none/") == set()


async def _keys(objects: Objects, prefix: str = "") -> set[str]:
    return {entry.key async for entry in objects.list(prefix)}


async def test_a_large_object_given_up_leaves_nothing(objects: Objects) -> None:
    writer = objects.writer()
    for _ in range(24):
        await writer.write(bytes(1 << 20))
    await writer.discard()
    await writer.discard()
    assert await _keys(objects) == set()


async def test_an_end_behind_the_object_is_an_error(objects: Objects) -> None:
    await objects.put_if_absent("key", b"12345")
    for start, end in ((2, 8), (7, 9)):
        with pytest.raises(OutsideError):
            await _read(objects, "key", start, end)
    assert await _read(objects, "key", 5, 5) == b""


@pytest.mark.parametrize(
    "key",
    [
        *["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".incoming/x", "a/./b", "a\0b"],
        *["ü", "a\n", "x" * 256, "/".join("a" * 9)],
    ],
)
async def test_keys_that_could_escape_are_refused(objects: Objects, key: str) -> None:
    with pytest.raises(PeerError):
        await objects.put_if_absent(key, b"")
    with pytest.raises(PeerError):
        await objects.get(key)
    with pytest.raises(PeerError):
        await objects.size(key)
    with pytest.raises(PeerError):
        await objects.delete(key)
    with pytest.raises(PeerError):
        await objects.writer().commit(key)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as http:
        yield http


async def test_a_stranger_puts_and_the_copy_is_what_was_read(
    bucket: Objects, http: httpx.AsyncClient
) -> None:
    direct = bucket.direct
    assert direct is not None
    assert await direct.landed("incoming/x") is None
    signed = await direct.presign("incoming/x", len(STRANGE), sha256(STRANGE).digest())
    answer = await http.put(signed.url, content=STRANGE, headers=dict(signed.headers))
    assert answer.status_code == httpx.codes.OK, answer.text
    again = await http.put(signed.url, content=STRANGE, headers=dict(signed.headers))
    assert again.status_code == httpx.codes.PRECONDITION_FAILED
    landed = await direct.landed("incoming/x")
    assert landed is not None
    assert landed.size == len(STRANGE)
    assert b"".join([piece async for piece in direct.read(landed)]) == STRANGE
    await direct.adopt(landed, "nar/x")
    await direct.adopt(landed, "nar/x")  # twice is once
    assert await bucket.get("nar/x") == STRANGE


async def test_what_was_put_meanwhile_is_another_object(bucket: Objects) -> None:
    direct = bucket.direct
    assert direct is not None
    await bucket.put_if_absent("incoming/x", STRANGE)
    landed = await direct.landed("incoming/x")
    assert landed is not None
    await bucket.delete("incoming/x")
    await bucket.put_if_absent("incoming/x", STRANGE[::-1])
    with pytest.raises(OutsideError):
        await direct.adopt(landed, "nar/x")
    with pytest.raises(OutsideError):
        [piece async for piece in direct.read(landed)]
    await bucket.delete("incoming/x")
    with pytest.raises(OutsideError):
        await direct.adopt(landed, "nar/x")
    assert await bucket.get("nar/x") is None


def _incoming(root: Path) -> list[str]:
    return os.listdir(root / ".incoming")


async def test_nothing_is_left_of_what_was_discarded_or_committed(tmp_path: Path) -> None:
    objects = DirectoryObjects(tmp_path)
    for size in (10, 1 << 20):
        writer = objects.writer()
        await writer.write(b"x" * size)
        await writer.discard()
        await writer.discard()
    writer = objects.writer()
    await writer.write(b"x")
    await writer.commit("key")
    await objects.put_if_absent("key", b"y")
    assert _incoming(tmp_path) == []


async def test_writers_are_opened_while_others_are_put(tmp_path: Path) -> None:
    """Files are named by the event loop and by the thread that puts, however they interleave."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    objects = DirectoryObjects(tmp_path)

    async def open_writers() -> None:
        for _ in range(200):
            await objects.writer().discard()
            await asyncio.sleep(0)

    try:
        for round_ in range(5):
            puts = [objects.put_if_absent(f"{round_}/{number}", b"x") for number in range(100)]
            await asyncio.gather(open_writers(), *puts)
    finally:
        sys.setswitchinterval(usual)


async def test_stale_files_are_swept_but_not_those_of_the_living(tmp_path: Path) -> None:
    first = DirectoryObjects(tmp_path)
    writer = first.writer()
    await writer.write(b"alive")
    (tmp_path / ".incoming/stale").write_bytes(b"x")
    DirectoryObjects(tmp_path)
    assert "stale" not in _incoming(tmp_path)
    assert await writer.commit("key")
    assert await first.get("key") == b"alive"


async def test_a_cancelled_write_ends_before_its_file_is_closed(tmp_path: Path) -> None:
    """Otherwise the thread would go on to write whichever file gets the descriptor next."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    objects = DirectoryObjects(tmp_path / "objects")
    writer = objects.writer()
    await writer.write(b"x")
    assert writer._descriptor is not None
    end = os.open(pipe, os.O_WRONLY)
    os.dup2(end, writer._descriptor)  # a file that blocks
    os.close(end)
    write = asyncio.create_task(writer.write(bytes(1 << 20)))
    readable = asyncio.Event()
    asyncio.get_running_loop().add_reader(reader, readable.set)
    await readable.wait()
    asyncio.get_running_loop().remove_reader(reader)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    discard = asyncio.create_task(writer.discard())
    done, _ = await asyncio.wait([discard], timeout=0)
    assert not done
    os.set_blocking(reader, True)
    total = 0
    while total < 1 << 20:
        total += len(await asyncio.to_thread(os.read, reader, 1 << 20))
    await discard
    os.close(reader)
    assert _incoming(tmp_path / "objects") == []


def test_a_directory_that_cannot_be_written_is_the_operators_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="set the object directory"):
        DirectoryObjects(tmp_path / "file")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")
async def test_a_full_disk_is_named_and_leaves_nothing(tiny_disk: Path) -> None:
    objects = DirectoryObjects(tiny_disk)
    assert await objects.put_if_absent("small", b"x")
    with pytest.raises(OutsideError, match="is full"):
        await objects.put_if_absent("big", bytes(2 << 20))
    writer = objects.writer()
    for _ in range(16):
        await writer.write(bytes(60_000))
    with pytest.raises(OutsideError, match="is full"):
        await writer.write(bytes(60_000) * 2)
    writer = objects.writer()
    with pytest.raises(OutsideError, match="is full"):
        await writer.write(bytes(2 << 20))
    assert _incoming(tiny_disk) == []
    assert await objects.get("big") is None
    answers = await asyncio.gather(
        objects.put_if_absent("a", bytes(700_000)),
        objects.put_if_absent("b", bytes(700_000)),
        return_exceptions=True,
    )
    assert answers[0] is True
    assert isinstance(answers[1], OutsideError)
    assert await objects.put_if_absent("after", b"there is room for this")
