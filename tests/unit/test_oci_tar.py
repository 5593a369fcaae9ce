"""Layers from NARs: what goes in is what any tar reads back, and its bytes never change."""

import hashlib
import io
import subprocess
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.oci.tar import (
    END,
    PATH_BYTES_MAX,
    TarOfNar,
    directory,
    file_open,
    store_header,
    symlink,
)
from grange.store.nar import Directory, File, Symlink, Tree, nar_of_tree, single_file_nar
from grange.store.path import StoreDir, StorePath
from tests.unit.test_store_nar import trees as any_trees

# Names that remove others cannot be in a layer.
trees = any_trees.filter(lambda tree: b".wh." not in nar_of_tree(tree))
PATH = StorePath.parse_base("00kn3r1jra69s6gy5xdj9zzgxh2r13s1-hello-2.12")
ROOT = f"nix/store/{PATH}"
EXAMPLE = Directory(
    {
        b"bin": Directory({b"hello": File(b"#!/bin/sh\n", True)}),
        b"empty": Directory({}),
        b"lib": Symlink(b"share/" + b"l" * 101),
        b"share": Directory({b"d" * 120: Directory({b"n" * 200: File(b"x" * 513)})}),
        b"zero": File(b""),
    }
)


def tar_of(tree: Tree, cuts: list[int] | None = None) -> bytes:
    """The entries alone."""
    nar, tar = nar_of_tree(tree), TarOfNar(PATH)
    edges = [0, *sorted(cut % len(nar) for cut in cuts or []), len(nar)]
    pieces = [tar.feed(nar[start:end]) for start, end in pairwise(edges)]
    return b"".join([*pieces, tar.finish()])


def expected(tree: Tree, name: bytes) -> dict[bytes, tuple[object, ...]]:
    match tree:
        case File(contents, is_executable):
            return {name: (tarfile.REGTYPE, 0o555 if is_executable else 0o444, contents, b"")}
        case Symlink(target):
            return {name: (tarfile.SYMTYPE, 0o777, b"", target)}
        case Directory(entries):
            found: dict[bytes, tuple[object, ...]] = {name: (tarfile.DIRTYPE, 0o555, b"", b"")}
            for each, node in entries.items():
                found |= expected(node, name + b"/" + each)
            return found


def read_back(tar: bytes) -> dict[bytes, tuple[object, ...]]:
    """All entries, in their order; each with its contents or target."""
    found: dict[bytes, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
        for member in archive:
            assert (member.uid, member.gid, member.mtime) == (0, 0, 1)
            file = archive.extractfile(member) if member.isreg() else None
            contents = file.read() if file else b""
            name = member.name.encode(errors="surrogateescape")
            assert name not in found
            target = member.linkname.encode(errors="surrogateescape")
            found[name] = (member.type, member.mode, contents, target)
    return found


@given(trees, st.lists(st.integers(0, 1 << 20), max_size=4))
def test_a_tree_comes_back_however_its_nar_is_cut(tree: Tree, cuts: list[int]) -> None:
    tar = tar_of(tree, cuts)
    assert tar == tar_of(tree)
    assert read_back(tar + END) == expected(tree, ROOT.encode())


def test_names_and_targets_of_any_length_come_back() -> None:
    """Where ustar has room, where a prefix helps, and where records count one more digit."""
    entries, told = [], {}
    for length in (*range(1, 160), *range(240, 270), *range(970, 1010)):
        name = b"%04d/" % length + b"n" * length
        entries += [symlink(name, b"t" * length), directory(name + b"d")]
        told[name] = (tarfile.SYMTYPE, 0o777, b"", b"t" * length)
        told[name + b"d"] = (tarfile.DIRTYPE, 0o555, b"", b"")
        prefixed = b"p" * length + b"/" + b"n" * 60
        entries.append(directory(prefixed))
        told[prefixed] = (tarfile.DIRTYPE, 0o555, b"", b"")
    assert all(entry[-512] for entry in entries)  # not all readers take an empty name
    assert read_back(b"".join(entries) + END) == told


def test_parents_come_before_what_is_in_them() -> None:
    seen = set()
    for name in read_back(store_header() + tar_of(EXAMPLE) + END):
        if b"/" in name:
            assert name.rpartition(b"/")[0] in seen
        seen.add(name)
    assert {b".", b"nix", b"nix/store", f"{ROOT}/empty".encode()} <= seen


def test_the_bytes_are_these() -> None:
    """Images are named by them: where they change on purpose, so must FORMAT_VERSION."""
    archive = store_header() + tar_of(EXAMPLE) + END
    assert hashlib.sha256(archive).hexdigest() == (
        "706a8bff9366d8ad0a59006fccfc79a0e3709f952178ae7980717c44ba5caee8"
    )


def test_gnu_tar_unpacks_it(tmp_path: Path) -> None:
    archive = store_header() + tar_of(EXAMPLE) + END
    command = ["tar", "--extract", "--no-same-owner", "--directory", str(tmp_path)]
    done = subprocess.run(command, input=archive, check=True, capture_output=True)
    assert done.stderr == b""
    root = tmp_path / ROOT
    hello = root / "bin/hello"
    assert hello.read_bytes() == b"#!/bin/sh\n"
    assert hello.stat().st_mode & 0o111
    assert hello.stat().st_mtime == 1
    assert list((root / "empty").iterdir()) == []
    assert (root / "lib").readlink() == Path("share/" + "l" * 101)
    assert (root / "share" / ("d" * 120) / ("n" * 200)).read_bytes() == b"x" * 513
    (tmp_path / "nix").chmod(0o700)
    for each in [root, *root.rglob("*")]:
        if each.is_dir():
            each.chmod(0o700)  # or nobody but root could remove it


def test_a_root_may_be_a_file_or_a_symlink() -> None:
    for tree in (File(b"abc", True), Symlink(b"/etc")):
        assert read_back(tar_of(tree) + END) == expected(tree, ROOT.encode())


def test_another_store_directory() -> None:
    tar = TarOfNar(PATH, StoreDir("/gnu/store"))
    entries = tar.feed(nar_of_tree(File(b"a"))) + tar.finish()
    found = read_back(store_header(StoreDir("/gnu/store")) + entries + END)
    assert list(found) == [b".", b"gnu", b"gnu/store", f"gnu/store/{PATH}".encode()]


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 2**40])
def test_files_of_more_than_eight_gigabytes(size: int) -> None:
    with tarfile.open(fileobj=io.BytesIO(file_open(b"large", size) + bytes(512))) as archive:
        member = archive.next()
    assert member is not None
    assert (member.name, member.size) == ("large", size)


def test_a_refused_nar_gives_nothing_any_more() -> None:
    nar = bytearray(nar_of_tree(EXAMPLE) + bytes(10_000))
    nar[200] ^= 1
    tar = TarOfNar(PATH)
    with pytest.raises(PeerError):
        tar.feed(bytes(nar))
    with pytest.raises(AssertionError):
        tar.feed(b"")
    with pytest.raises(AssertionError):
        tar.finish()


@given(trees, st.data())
def test_a_nar_cut_short_is_refused(tree: Tree, data: st.DataObject) -> None:
    nar = nar_of_tree(tree)
    tar = TarOfNar(PATH)
    end = data.draw(st.integers(0, len(nar) - 1))
    with pytest.raises(PeerError):  # where it is seen depends on what is cut off
        assert tar.feed(nar[:end]) + tar.finish()


def test_a_name_that_removes_others_is_refused() -> None:
    for name in (b".wh.hello", b".wh..wh..opq"):
        with pytest.raises(PeerError, match="would remove"):
            tar_of(Directory({name: File(b"")}))
    assert len(read_back(tar_of(Directory({b".whale": File(b"")})) + END)) == 2


def test_a_path_that_nobody_can_unpack_is_refused() -> None:
    tree: Tree = File(b"")
    for _ in range(PATH_BYTES_MAX // 256 + 1):
        tree = Directory({b"d" * 255: tree})
    with pytest.raises(PeerError, match="nobody can unpack"):
        tar_of(tree)


def test_what_comes_out_is_in_proportion_to_what_goes_in() -> None:
    """A chunk of the tersest NAR that makes the longest entries."""
    tree: Tree = Directory({bytes([c, d]): Symlink(b"t") for c in b"abcdefgh" for d in b"abcdefgh"})
    for _ in range(PATH_BYTES_MAX // 256 - 1):
        tree = Directory({b"d" * 255: tree})
    assert len(tar_of(tree)) < 30 * len(nar_of_tree(tree))


def test_a_single_file_is_copied_whole() -> None:
    contents = bytes(range(256)) * 5000
    tar = TarOfNar(PATH)
    assert contents in tar.feed(single_file_nar(contents)) + tar.finish()
