"""Paths in and out of a real daemon's store: import, path infos, NARs, roots and garbage."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from grange.daemon import Daemon, DaemonError, DaemonGone, GcAction, Options
from grange.daemon.body import Nar
from grange.errors import OperatorError, PeerError
from grange.store.hash import Hash
from grange.store.nar import nar_of_text
from grange.store.narinfo import PathInfo
from grange.store.path import NIX_STORE, StorePath
from tests.peers import NixStore, busybox_nar, import_busybox, instantiate

pytestmark = pytest.mark.peer

PROTOCOLS = {"2.8": (1, 34), "2.26": (1, 38)}
NOWHERE = StorePath("00000000000000000000000000000000-nowhere")


@pytest.fixture
async def daemon(nix_store: NixStore) -> AsyncIterator[Daemon]:
    async with await nix_store.connect() as daemon:
        yield daemon


def made_up(letter: str, *references: StorePath, text: bytes = b"") -> tuple[PathInfo, bytes]:
    """A path that no derivation made, with its NAR."""
    nar = nar_of_text(text or letter.encode())
    path = StorePath.parse_base(letter * 32 + "-" + letter)
    return PathInfo(path, Hash.of("sha256", nar), len(nar), tuple(sorted(references))), nar


async def test_handshake(nix_store: NixStore, daemon: Daemon) -> None:
    assert daemon.protocol == PROTOCOLS[nix_store.nix]
    assert daemon.nix_version.startswith(nix_store.nix + ".")
    assert daemon.trusted is (None if daemon.protocol < (1, 35) else True)
    await daemon.prove_trust()
    assert not daemon.is_broken


async def test_imports_several_paths_and_tells_them_as_they_were(daemon: Daemon) -> None:
    first = made_up("a")
    info, nar = made_up("b", first[0].path, StorePath("b" * 32 + "-b"))
    signature = "key-1:" + "A" * 86 + "=="
    info = replace(info, deriver=StorePath("d" * 32 + "-b.drv"), signatures=(signature,))
    third = made_up("c", first[0].path, info.path, text=b"x" * 300_000)

    async def in_crumbs() -> AsyncIterator[bytes]:
        for start in range(0, len(nar), 7):
            yield nar[start : start + 7]
            yield b""

    paths: list[tuple[PathInfo, Nar]] = [first, (info, in_crumbs()), third]
    await daemon.add_multiple_to_store(paths, check_signatures=False)
    expected = {each.path: each for each, _ in paths}
    assert await daemon.query_path_infos([*expected, NOWHERE]) == expected
    assert await daemon.query_path_info(info.path) == info
    assert await daemon.query_valid_paths([NOWHERE, *expected]) == expected.keys()
    assert await daemon.query_closure([third[0].path]) == expected


async def test_paths_that_are_there_already_do_no_harm(nix_store: NixStore, daemon: Daemon) -> None:
    """Their NARs are not looked at, but must be skipped to the byte."""
    paths = [made_up(letter, text=letter.encode() * 300_000) for letter in "abcdf"]
    await daemon.add_multiple_to_store(paths[::2], check_signatures=False)
    await daemon.add_multiple_to_store(paths, check_signatures=False)
    assert await daemon.query_closure([info.path for info, _ in paths]) == {
        info.path: info for info, _ in paths
    }


async def test_two_that_import_the_same_at_once(nix_store: NixStore, daemon: Daemon) -> None:
    paths = [made_up(letter, text=letter.encode() * 300_000) for letter in "abcdf"]
    async with await nix_store.connect() as other:
        await asyncio.gather(
            daemon.add_multiple_to_store(paths, check_signatures=False),
            other.add_multiple_to_store(paths, check_signatures=False),
        )
        for each in (daemon, other):
            assert len(await each.query_closure([info.path for info, _ in paths])) == 5


async def test_importing_nothing(daemon: Daemon) -> None:
    await daemon.add_multiple_to_store([])
    assert await daemon.query_path_infos([]) == {}


async def test_hundreds_of_path_infos_keep_their_order(daemon: Daemon) -> None:
    paths = [made_up("a"), made_up("b")]
    await daemon.add_multiple_to_store(paths, check_signatures=False)
    absent = [StorePath(f"{number:032}-absent") for number in range(1, 300)]
    asked = [*absent[:100], paths[1][0].path, *absent[100:], paths[0][0].path]
    infos = await daemon.query_path_infos(asked)
    assert infos == {info.path: info for info, _ in paths}


@pytest.mark.parametrize("text", [b"short", b"x" * 5_000_000])
async def test_a_wrong_nar_hash_is_refused(daemon: Daemon, text: bytes) -> None:
    info, nar = made_up("a", text=text)
    lying = replace(info, nar_hash=Hash.of("sha256", b"else"))
    after = made_up("b", text=text)
    with pytest.raises(DaemonError, match="hash mismatch") as caught:
        await daemon.add_multiple_to_store([(lying, nar), after], check_signatures=False)
    assert "\x1b" not in str(caught.value)
    assert await daemon.query_valid_paths([info.path, after[0].path]) == set()


async def test_references_come_first(daemon: Daemon) -> None:
    first = made_up("a")
    second = made_up("b", first[0].path)
    with pytest.raises(DaemonError, match="not valid"):
        await daemon.add_multiple_to_store([second, first], check_signatures=False)
    assert second[0].path not in await daemon.query_valid_paths([second[0].path])


async def test_a_signature_is_wanted_unless_we_say_otherwise(daemon: Daemon) -> None:
    paths = [made_up("a")]
    with pytest.raises(DaemonError, match="signature"):
        await daemon.add_multiple_to_store(paths)
    await daemon.add_multiple_to_store(paths, check_signatures=False)


@pytest.mark.parametrize("change", [-8, 8])
async def test_a_nar_of_another_length_is_its_giver_s_fault(daemon: Daemon, change: int) -> None:
    info, nar = made_up("a", text=b"x" * 100_000)
    lying = replace(info, nar_bytes=info.nar_bytes + change)
    with pytest.raises(PeerError, match="bytes than its path info says"):
        await daemon.add_multiple_to_store([(lying, nar)], check_signatures=False)
    assert daemon.is_broken
    with pytest.raises(DaemonGone, match="closed"):
        await daemon.query_path_info(info.path)


async def test_a_nar_without_end_is_not_followed(daemon: Daemon) -> None:
    info, nar = made_up("a")
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 100:
            taken += 1
            yield nar

    with pytest.raises(PeerError, match="more bytes"):
        await daemon.add_multiple_to_store([(info, endless())], check_signatures=False)
    assert taken == 2


async def test_an_error_of_the_stream_comes_through(daemon: Daemon) -> None:
    info, nar = made_up("a")

    async def interrupted() -> AsyncIterator[bytes]:
        yield nar[:10]
        raise ConnectionResetError("the cache went away")

    with pytest.raises(ConnectionResetError, match="went away"):
        await daemon.add_multiple_to_store([(info, interrupted())], check_signatures=False)
    assert daemon.is_broken


async def test_nar_from_path(nix_store: NixStore, daemon: Daemon) -> None:
    path = await import_busybox(daemon)
    digest = hashlib.sha256()
    async for piece in daemon.nar_from_path(path):
        digest.update(piece)
    assert digest.digest() == hashlib.sha256(busybox_nar()).digest()
    assert (nix_store.physical_path(path) / "bin/sh").is_symlink()

    with pytest.raises(DaemonError, match="not valid"):
        await anext(daemon.nar_from_path(NOWHERE))
    assert not daemon.is_broken
    async with aclosing(daemon.nar_from_path(path)) as pieces:
        await anext(pieces)
    assert daemon.is_broken


async def test_text_of_a_derivation_is_added_where_nix_would(
    nix_store: NixStore, daemon: Daemon
) -> None:
    expression = 'derivation { name = "x"; system = "s"; builder = "b"; }'
    path = instantiate(expression, nix_store)
    text = nix_store.physical_path(path).read_bytes()
    info = await daemon.add_to_store("x.drv", "text:sha256", text)
    assert info.path == path
    assert info == await daemon.query_path_info(path)
    again = await daemon.add_to_store("y", "text:sha256", text, [path])
    assert again.references == (path,)


async def test_ensure_path(daemon: Daemon) -> None:
    await daemon.set_options(Options())
    info, nar = made_up("a")
    await daemon.add_multiple_to_store([(info, nar)], check_signatures=False)
    await daemon.ensure_path(info.path)
    with pytest.raises(DaemonError):
        await daemon.ensure_path(NOWHERE)
    assert not daemon.is_broken


async def test_a_closure_with_a_hole(daemon: Daemon) -> None:
    with pytest.raises(DaemonError, match="nowhere' is not valid"):
        await daemon.query_closure([NOWHERE])


async def test_garbage_is_what_nobody_holds(nix_store: NixStore) -> None:
    held, pinned, loose = made_up("a"), made_up("b"), made_up("c")
    dead = {pinned[0].path, loose[0].path}
    link = nix_store.root / "nix" / "result"
    seen = str(link) if nix_store.nix == "2.8" else "/nix/result"
    link.symlink_to(NIX_STORE.show(held[0].path))  # as seen in the store, also from outside it
    async with await nix_store.connect() as daemon:
        await daemon.add_multiple_to_store([held, pinned, loose], check_signatures=False)
        await daemon.add_indirect_root(seen)
        # what a connection touched is alive while it is open
        assert await daemon.collect_garbage(GcAction.RETURN_DEAD) == ((), 0)
    async with await nix_store.connect() as daemon, await nix_store.connect() as other:
        assert (seen, held[0].path) in await daemon.find_roots()
        paths, _ = await daemon.collect_garbage(GcAction.RETURN_DEAD)
        assert set(paths) == dead
        await other.add_temp_root(pinned[0].path)
        live, _ = await daemon.collect_garbage(GcAction.RETURN_LIVE)
        assert set(live) == {held[0].path, pinned[0].path}
        with pytest.raises(DaemonError, match="alive"):
            await daemon.collect_garbage(GcAction.DELETE_SPECIFIC, paths=[pinned[0].path])
        paths, freed_bytes = await daemon.collect_garbage()
        assert set(paths) == {loose[0].path}
        assert freed_bytes > 0
        await other.aclose()
        paths, _ = await daemon.collect_garbage(GcAction.DELETE_SPECIFIC, paths=[pinned[0].path])
        assert paths == (pinned[0].path,)
        assert not nix_store.physical_path(pinned[0].path).exists()
        assert nix_store.physical_path(held[0].path).exists()


async def test_collecting_stops_once_enough_is_freed(nix_store: NixStore) -> None:
    paths = [made_up(letter, text=letter.encode() * 1_000_000) for letter in "abcdf"]
    async with await nix_store.connect() as daemon:
        await daemon.add_multiple_to_store(paths, check_signatures=False)
    async with await nix_store.connect() as daemon:
        gone, freed_bytes = await daemon.collect_garbage(freed_bytes_max=1_500_000)
        assert 1_500_000 <= freed_bytes < 4_000_000
        assert 0 < len(gone) < len(paths)


async def test_a_permanent_root(nix_store: NixStore, daemon: Daemon) -> None:
    path = await import_busybox(daemon)
    link = "/nix/var/nix/gcroots/farm"
    if daemon.protocol < (1, 36):
        with pytest.raises(OperatorError, match=r"install Nix 2\.20"):
            await daemon.add_perm_root(path, link)
        return
    await daemon.add_perm_root(path, link)
    assert (link, path) in await daemon.find_roots()
