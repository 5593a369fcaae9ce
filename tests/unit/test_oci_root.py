"""An image's root: packages' directories as one tree of links, the same for any order."""

import tarfile
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.oci.root import (
    ACCOUNTS,
    ENTRIES_MAX,
    Names,
    Root,
    names_of_listing,
    root_entries,
    root_layer,
)
from grange.oci.segments import ZSTD
from grange.oci.tar import END
from grange.store.nar import Directory, File, Listing, NarReader, Symlink, Tree, nar_of_tree
from grange.store.path import StorePath
from tests.unit.test_oci_tar import read_back, trees


def root(name: str, names: Names, digit: str = "0") -> Root:
    return Root(StorePath.parse_base(f"{digit * 32}-{name}"), names)


def target(name: str, place: str, digit: str = "0") -> str:
    return f"/nix/store/{digit * 32}-{name}/{place}"


def links(*roots: Root, files: dict[bytes, bytes] | None = None) -> dict[str, str]:
    """Every entry: a link's target, a file's contents, or a slash for a directory."""
    found = {}
    entries = read_back(root_entries(roots, files or {}) + END)
    for name, (kind, _, contents, link) in entries.items():
        assert isinstance(contents, bytes)
        assert isinstance(link, bytes)
        told = "/" if kind == tarfile.DIRTYPE else (link or contents).decode()
        found[name.decode(errors="surrogateescape")] = told
    return found


HELLO = root("hello", {b"bin": {b"hello": None}, b"share": {b"man": {b"man1": {b"h": None}}}})
COREUTILS = root(
    "coreutils",
    {b"bin": {b"env": None, b"ls": b"coreutils"}, b"share": {b"man": {}}, b"sbin": b"bin"},
)
ALWAYS = {".": "/", "tmp": "/"}


def test_packages_become_one_tree() -> None:
    assert links(HELLO, COREUTILS) == ALWAYS | {
        "bin": "/",
        "bin/env": target("coreutils", "bin/env"),
        "bin/hello": target("hello", "bin/hello"),
        "bin/ls": target("coreutils", "bin/ls"),
        "sbin": "/",
        "sbin/env": target("coreutils", "sbin/env"),
        "sbin/ls": target("coreutils", "sbin/ls"),
        "share": "/",
        "share/man": "/",
        "share/man/man1": target("hello", "share/man/man1"),
        "usr": "/",
        "usr/bin": "/",
        "usr/bin/env": target("coreutils", "bin/env"),
    }


def test_nothing_at_all_is_a_root_too() -> None:
    assert links() == ALWAYS
    entries = read_back(root_entries((), {}) + END)
    assert [mode for _, mode, _, _ in entries.values()] == [0o755, 0o1777]


def test_the_name_that_sorts_first_decides() -> None:
    first = root("a", {b"bin": {b"x": None, b"d": {b"in": None}}}, "9")
    second = root("b", {b"bin": {b"x": None, b"d": None}}, "1")
    third = root("c", {b"bin": None}, "0")
    expected = ALWAYS | {
        "bin": "/",
        "bin/d": target("a", "bin/d", "9"),
        "bin/x": target("a", "bin/x", "9"),
    }
    for order in permutations((first, second, third)):
        assert links(*order) == expected
    hiding = root("0", {b"bin": b"elsewhere"})
    assert links(first, hiding) == ALWAYS | {"bin": target("0", "bin")}


def test_what_images_have_of_their_own_is_not_linked() -> None:
    names = dict.fromkeys((b"dev", b"nix", b"nix-support", b"proc", b"sys", b"tmp", b"opt"), None)
    assert links(root("a", names)) == ALWAYS | {"opt": target("a", "opt")}


def test_files_come_before_packages() -> None:
    package = root("a", {b"etc": {b"passwd": None, b"ssl": {b"x": None}}})
    found = links(package, files={**ACCOUNTS, b"etc/ssl/own": b"mine"})
    assert found["etc/passwd"] == ACCOUNTS[b"etc/passwd"].decode()
    assert found["etc/ssl/x"] == target("a", "etc/ssl/x")
    assert found["etc/ssl/own"] == "mine"
    assert links(files={b"tmp/own": b"mine"})["tmp/own"] == "mine"
    assert links(root("a", {b"etc": None}), files={b"etc/own": b"mine"})["etc/own"] == "mine"


def test_env_is_where_a_package_has_it() -> None:
    own = root("a", {b"bin": {b"env": None}, b"usr": {b"bin": {b"env": None, b"x": None}}})
    assert links(own)["usr/bin/env"] == target("a", "usr/bin/env")
    odd = root("a", {b"bin": {b"env": None}, b"usr": b"/elsewhere"})
    assert links(odd)["usr"] == target("a", "usr")


def listing_of(tree: Tree) -> bytes | None:
    listing = Listing()
    reader = NarReader(listing)
    reader.feed(nar_of_tree(tree))
    reader.finish()
    return listing.json()


def names_of(tree: Tree) -> Names | bytes | None:
    match tree:
        case File():
            return None
        case Symlink(target):
            return target
        case Directory(entries):
            return {name: names_of(node) for name, node in entries.items()}


@given(trees, st.permutations(range(3)))
def test_any_listing_makes_a_root_in_any_order(tree: Tree, order: list[int]) -> None:
    listing = listing_of(tree)
    if listing is None:
        return  # not UTF-8
    names = names_of_listing(listing)
    told = names_of(tree)
    assert names == (told if isinstance(told, dict) else {})
    roots = [root("a", names), root("b", names), HELLO]
    assert links(*[roots[at] for at in order]) == links(*roots)


@pytest.mark.parametrize(
    "listing",
    [
        b"",
        b"[]",
        b"{}",
        b'{"root":7}',
        b'{"root":{"type":"socket"}}',
        b'{"root":{"type":"directory","entries":[]}}',
        b'{"root":{"type":"directory","entries":{"..":{"type":"regular"}}}}',
        b'{"root":{"type":"directory","entries":{"a/b":{"type":"regular"}}}}',
        b'{"root":{"type":"directory","entries":{"\\ud800":{"type":"regular"}}}}',
        b'{"root":' + b'{"type":"directory","entries":{"d":' * 300 + b"{}" + b"}" * 601,
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_malformed_listings_are_refused(listing: bytes) -> None:
    with pytest.raises(PeerError, match="malformed listing"):
        names_of_listing(listing)


def test_too_many_files_are_refused() -> None:
    names = {b"bin": {b"%d" % number: None for number in range(ENTRIES_MAX)}}
    with pytest.raises(PeerError, match="leave some packages out"):
        links(root("a", names))


def test_a_name_that_removes_others_is_refused() -> None:
    with pytest.raises(PeerError, match="would remove"):
        links(root("a", {b".wh.bin": None}))


def test_a_layer_of_it_says_what_it_is() -> None:
    blob, layer = root_layer(ZSTD, [HELLO, COREUTILS], ACCOUNTS)
    assert (blob, layer) == root_layer(ZSTD, [COREUTILS, HELLO], ACCOUNTS)
    assert layer.blob_bytes == len(blob)
    assert layer.tar_bytes == len(root_entries([HELLO, COREUTILS], ACCOUNTS) + END)
    # Images are named by it: where it changes on purpose, so must FORMAT_VERSION.
    assert (
        layer.diff_id == "sha256:8f690a9b54a4b3733bed77c99957b7c10ae2e82bf8aa8b80aaac64d47251de4e"
    )
