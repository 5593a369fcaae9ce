"""Diff IDs found while uploads come in are those of layers, and never an upload's trouble."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from grange.cache.tokens import TokenKey
from grange.cache.uploads import STORED, Stored, Uploads, join_batch
from grange.cache.verify import Claims, NarVerifier, Verified
from grange.objects.directory import DirectoryObjects
from grange.oci.segments import ZSTD, LayerWriter
from grange.scheduler.facts import AttemptId
from grange.store.content import ContentAddress, Method
from grange.store.hash import Hash
from grange.store.nar import Directory, File, Symlink, Tree, nar_of_tree
from grange.store.path import NIX_STORE, StorePath
from grange.wire.messages import BuiltOutput

PATH = StorePath.parse_base("0a" * 16 + "-own")
NAMES = st.binary(min_size=1, max_size=120).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.builds(File, st.binary(max_size=2000), st.booleans())
    | st.builds(Symlink, st.binary(min_size=1, max_size=150).filter(lambda to: b"\0" not in to)),
    lambda inner: st.builds(Directory, st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=12,
)
LARGE = Directory({b"a": File(os.urandom(600_000)), b"b": File(b"x" * 777_777), b"c": File(b"")})


def layer_of(nar: bytes) -> str:
    """The diff ID, from the whole layer."""
    writer = LayerWriter(ZSTD)
    writer.start()
    writer.open(PATH)
    for _ in writer.feed(nar):
        pass
    writer.close()
    return writer.finish()[1].diff_id


def seen(nar: bytes, chunk_bytes: int) -> Verified:
    claims = Claims(PATH, Hash.of("sha256", nar), len(nar), ())
    verifier = NarVerifier(claims, None, "none", images_of=NIX_STORE)
    for start in range(0, len(nar), chunk_bytes):
        verifier.feed(nar[start : start + chunk_bytes])
    return verifier.finish()


@given(TREES, st.sampled_from([1, 13, 4096]))
def test_they_are_those_of_layers(tree: Tree, chunk_bytes: int) -> None:
    nar = nar_of_tree(tree)
    found = seen(nar, chunk_bytes).diff_id
    if b".wh." in nar:
        return  # such a name may be one that no layer has
    assert found == layer_of(nar)


@pytest.mark.parametrize("chunk_bytes", [70_000, 300_000, 1 << 30])
def test_large_files_are_hashed_where_they_lie(chunk_bytes: int) -> None:
    nar = nar_of_tree(LARGE)
    assert seen(nar, chunk_bytes).diff_id == layer_of(nar)


@pytest.mark.parametrize(
    "tree",
    [
        Directory({b".wh.other": File(b"")}),
        Directory({b"a": Directory({b".wh.d": Directory({b"x": File(b"y" * 300_000)})})}),
        Directory({b".wh.link": Symlink(b"x"), b"z": File(b"")}),
    ],
)
def test_what_no_layer_can_have_is_stored_without(tree: Tree) -> None:
    verified = seen(nar_of_tree(tree), 100)
    assert verified.diff_id is None
    assert verified.listing is not None


async def test_all_uploads_tell_them_where_they_are_wanted(tmp_path: Path) -> None:
    stored: list[Stored] = []

    class Clock:
        def wall_s(self) -> float:
            return 1_700_000_000.0

        def monotonic_s(self) -> float:
            return 0.0

    async def on_stored(items: object) -> None:
        stored.extend(items)  # type: ignore[arg-type]

    objects = DirectoryObjects(tmp_path)
    uploads = Uploads(objects, TokenKey(b"k" * 32), Clock(), on_stored, store_dir=NIX_STORE)
    trees: list[Tree] = [File(b"small"), LARGE, File(b"in a batch"), File(b"unwanted"), File(b"x")]
    nars = [nar_of_tree(tree) for tree in trees]
    verified: list[Verified] = []

    def token(number: int) -> str:
        path = StorePath.parse_base(f"{number:032}-out")
        output = BuiltOutput("out", path, Hash.of("sha256", nars[number]), len(nars[number]), ())
        # The last is a download, which images rarely have.
        fixed = ContentAddress(Method.NAR, output.nar_hash) if number == 4 else None
        url = uploads.grant(AttemptId(1), output, {}, fixed)
        return url.removeprefix("/upload/")

    async def body(data: bytes) -> AsyncIterator[bytes]:
        yield zstandard.compress(data)

    assert await uploads.put(token(3), body(nars[3]), None) == STORED
    uploads.want_diff_ids(verified.append)
    assert await uploads.put(token(0), body(nars[0]), None) == STORED
    assert await uploads.put(token(1), body(nars[1]), None) == STORED
    assert await uploads.put_batch(join_batch([(token(2), zstandard.compress(nars[2]))])) == [
        STORED
    ]
    assert await uploads.put(token(4), body(nars[4]), None) == STORED
    assert [each.path for each in verified] == [each.verified.path for each in stored[1:]]
    assert [each.diff_id is not None for each in verified] == [True, True, True, False]
    assert stored[0].verified.diff_id is None
