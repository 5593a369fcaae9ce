"""Publication to several stores: what each gets, in which form, and what holds it back."""

import asyncio
import gzip
import json
import lzma
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from click.testing import CliRunner
from obstore.store import MemoryStore

from grange.cache.fill import fill
from grange.cache.publish import Publisher, debug_infos
from grange.cache.signing import sign
from grange.cli.store import store
from grange.errors import OutsideError
from grange.objects.cloud import CloudObjects
from grange.objects.directory import DirectoryObjects
from grange.ports import Shelf, StoreOptions
from grange.store.compression import NAR_SUFFIXES, compress
from grange.store.hash import Hash
from grange.store.keys import SecretKey
from grange.store.nar import Directory, File, Listing, NarReader, nar_of_tree
from grange.store.narinfo import NarInfo, PathInfo, parse, show
from grange.store.path import NIX_STORE, StorePath

KEY = SecretKey.generate("farm.test-1", b"s" * 32)
PATH = StorePath.parse_base("0a" * 16 + "-out")
DRV = StorePath.parse_base("1b" * 16 + "-out.drv")
DEBUG = Directory({b"ab": Directory({b"c" * 38 + b".debug": File(b"x"), b"other": File(b"y")})})
TREE = Directory(
    {
        b"lib": Directory({b"debug": Directory({b".build-id": DEBUG})}),
        b"noise": File(os.urandom(900_000)),
        b"zeros": File(bytes(900_000)),
    }
)
NAR = nar_of_tree(TREE)


def shelf(name: str = "bucket", **options: object) -> Shelf:
    objects = CloudObjects(MemoryStore(), name, part_bytes=5 << 20)
    return Shelf(name, objects, StoreOptions(**options), is_bucket=True)  # type: ignore[arg-type]


async def stored(first: Shelf, compression: str = "zstd") -> NarInfo:
    """The narinfo of PATH, whose file and listing lie in the first store."""
    file = compress(compression, 1, NAR)
    digest = Hash.of("sha256", file)
    url = f"nar/{digest.base32()}{NAR_SUFFIXES[compression]}"
    await first.objects.put_if_absent(url, file)
    listing = Listing()
    reader = NarReader(listing)
    reader.feed(NAR)
    reader.finish()
    text = listing.json()
    assert text is not None
    await first.objects.put_if_absent(f"{url}.ls", text)
    info = PathInfo(PATH, Hash.of("sha256", NAR), len(NAR), (), DRV)
    return NarInfo(sign(info, [KEY], NIX_STORE), url, compression, digest, len(file))


async def log(_: StorePath) -> AsyncIterator[bytes]:
    async def lines() -> AsyncIterator[bytes]:
        yield b"one\n"
        yield b"two\n"

    return lines()


async def narinfo_in(shelf: Shelf) -> NarInfo | None:
    text = await shelf.objects.get(f"{PATH.hash_part}.narinfo")
    return None if text is None else parse(text.decode(), NIX_STORE)


async def keys_of(shelf: Shelf) -> set[str]:
    return {entry.key async for entry in shelf.objects.list()}


async def test_each_store_gets_it_as_it_wants_it() -> None:
    first, same, xz, plain = shelf(), shelf(), shelf(compression="xz"), shelf(compression="none")
    publisher = Publisher([first, same, xz, plain], log, NIX_STORE)
    narinfo = await stored(first)
    await publisher.publish(narinfo)
    assert await narinfo_in(first) == narinfo
    assert await narinfo_in(same) == narinfo
    assert await same.objects.get(narinfo.url) == await first.objects.get(narinfo.url)
    for each, undo in ((xz, lzma.decompress), (plain, bytes)):
        own = await narinfo_in(each)
        assert own is not None
        assert own.compression == each.options.compression
        assert own.info == narinfo.info  # with its signature, which covers no file
        file = await each.objects.get(own.url)
        assert file is not None
        assert own.file_bytes == len(file)
        assert own.file_hash is None
        assert undo(file) == NAR
    before = [await keys_of(each) for each in (same, xz, plain)]
    await publisher.publish(narinfo)  # after a crash, again
    assert [await keys_of(each) for each in (same, xz, plain)] == before


@pytest.mark.parametrize("compression", ["xz", "none", "zstd"])
async def test_the_first_may_be_compressed_in_any_way(compression: str) -> None:
    first, other = shelf(compression=compression), shelf(compression="zstd")
    narinfo = await stored(first, compression)
    await Publisher([first, other], log, NIX_STORE).publish(narinfo)
    own = await narinfo_in(other)
    assert own is not None
    file = await other.objects.get(own.url)
    assert file is not None
    assert zstandard.ZstdDecompressor().decompressobj().decompress(file) == NAR


async def test_what_the_first_store_has_spoilt_goes_no_further() -> None:
    first, same, xz = shelf(), shelf(), shelf(compression="xz")
    narinfo = await stored(first)
    assert narinfo.file_bytes is not None
    await first.objects.delete(narinfo.url)
    await first.objects.put_if_absent(narinfo.url, compress("zstd", 1, NAR[:-8] + b"spoiled!"))
    publisher = Publisher([first, same, xz], log, NIX_STORE)
    with pytest.raises(OutsideError, match="other bytes"):
        await publisher.publish(narinfo)
    assert await keys_of(same) == set()
    assert await keys_of(xz) == set()


async def test_a_copy_that_was_cut_short_is_made_anew() -> None:
    first, other = shelf(), shelf()
    narinfo = await stored(first)
    await other.objects.put_if_absent(narinfo.url, b"cut short")
    await Publisher([first, other], log, NIX_STORE).publish(narinfo)
    assert await other.objects.get(narinfo.url) == await first.objects.get(narinfo.url)


async def test_a_store_that_is_down_holds_nothing_but_the_end_back() -> None:
    class Down(CloudObjects):
        is_down = True

        async def size(self, key: str) -> int | None:
            if self.is_down:
                raise OutsideError("down")
            return await super().size(key)

    down = replace(shelf(), objects=Down(MemoryStore(), "down"))
    first, last = shelf(), shelf()
    publisher = Publisher([first, down, last], log, NIX_STORE)
    narinfo = await stored(first)
    with pytest.raises(OutsideError, match="down"):
        await publisher.publish(narinfo)
    assert await narinfo_in(first) == await narinfo_in(last) == narinfo
    assert publisher.trouble == "finished steps wait to be published: down"
    assert isinstance(down.objects, Down)
    down.objects.is_down = False
    await publisher.publish(narinfo)
    assert await narinfo_in(down) == narinfo
    assert not publisher.trouble


async def test_listings_debug_info_and_encodings() -> None:
    one = shelf(
        has_listings=True,
        has_debug_info=True,
        narinfo_encoding="gzip",
        listing_encoding="zstd",
        log_encoding="xz",
    )
    publisher = Publisher([one], log, NIX_STORE)
    narinfo = await stored(one)
    await publisher.prepare()
    await publisher.publish(narinfo)
    await publisher.put_log(DRV)
    assert await narinfo_in(one) == narinfo  # read back with its encoding undone
    raw = await raw_of(one, f"{PATH.hash_part}.narinfo")
    assert parse(gzip.decompress(raw).decode(), NIX_STORE) == narinfo
    listing = await one.objects.get(f"{PATH.hash_part}.ls")
    assert listing is not None
    assert set(json.loads(listing)["root"]["entries"]) == {"lib", "noise", "zeros"}
    assert await one.objects.get(f"log/{DRV}") == b"one\ntwo\n"
    assert lzma.decompress(await raw_of(one, f"log/{DRV}")) == b"one\ntwo\n"
    name = "ab" + "c" * 38 + ".debug"
    found = await one.objects.get(f"debuginfo/{name}")
    assert found is not None
    assert json.loads(found) == {
        "archive": f"../{narinfo.url}",
        "member": f"lib/debug/.build-id/ab/{'c' * 38}.debug",
    }
    assert await one.objects.get("nix-cache-info") is not None


async def raw_of(shelf: Shelf, key: str) -> bytes:
    return b"".join([piece async for piece in shelf.objects.read(key)])


async def test_a_later_log_takes_the_place_of_an_earlier() -> None:
    one = shelf()
    await one.objects.put_if_absent(f"log/{DRV}", b"it failed")
    await Publisher([one], log, NIX_STORE).put_log(DRV)
    assert await one.objects.get(f"log/{DRV}") == b"one\ntwo\n"


def test_what_is_no_debug_info() -> None:
    for root in ({"type": "regular"}, {"type": "directory", "entries": {"lib": {"type": "x"}}}):
        assert list(debug_infos("nar/x", json.dumps({"root": root}).encode())) == []


async def test_a_store_that_was_added_later_is_filled() -> None:
    first, late = shelf(), shelf(compression="xz")
    narinfo = await stored(first)
    await Publisher([first], log, NIX_STORE).publish(narinfo)
    gone = StorePath.parse_base("2c" * 16 + "-gone")
    lost = replace(narinfo, info=replace(narinfo.info, path=gone), url="nar/lost.nar.zst")
    text = show(lost, NIX_STORE).encode()
    await first.objects.put_if_absent(f"{gone.hash_part}.narinfo", text)
    for _ in range(2):
        filled = await fill([first, late], NIX_STORE)
        assert filled.paths == 1
        (failure,) = filled.failures
        assert "lost.nar.zst" in failure
    own = await narinfo_in(late)
    assert own is not None
    assert own.compression == "xz"
    assert await late.objects.get(f"{gone.hash_part}.narinfo") is None


def test_filling_on_the_command_line(tmp_path: Path) -> None:
    async def prepare() -> None:
        objects = DirectoryObjects(tmp_path / "a")
        one = Shelf("a", objects, StoreOptions(), is_bucket=False)
        await Publisher([one], log, NIX_STORE).publish(await stored(one))

    asyncio.run(prepare())
    urls = [f"file://{tmp_path}/a", f"file://{tmp_path}/b?compression=none"]
    result = CliRunner().invoke(store, ["fill", *urls])
    assert result.exit_code == 0, result.output
    assert result.output == "1 path is in all 2 stores\n"
    (nar,) = (tmp_path / "b/nar").iterdir()
    assert nar.read_bytes() == NAR
