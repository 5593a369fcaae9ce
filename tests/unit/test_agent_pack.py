"""Packing the file system gives the archive of the same tree in memory, or says why not."""

import os
from pathlib import Path

import pytest

from grange.agent.pack import BUFFER_BYTES, nar_bytes, pack
from grange.errors import OutsideError
from grange.store.nar import DEPTH_MAX, Directory, File, Symlink, Tree, nar_of_tree


def write(path: bytes, tree: Tree) -> None:
    match tree:
        case File(contents, is_executable):
            Path(os.fsdecode(path)).write_bytes(contents)
            os.chmod(path, 0o755 if is_executable else 0o644)
        case Symlink(target):
            os.symlink(target, path)
        case Directory(entries):
            os.mkdir(path)
            for name in sorted(entries, reverse=True):
                write(path + b"/" + name, entries[name])


def packed(path: Path) -> bytes:
    chunks = [bytes(chunk) for chunk in pack(str(path))]
    assert all(0 < len(chunk) <= BUFFER_BYTES for chunk in chunks)
    nar = b"".join(chunks)
    assert nar_bytes(str(path)) == len(nar)
    return nar


@pytest.mark.parametrize(
    "tree",
    [
        File(b""),
        File(b"x" * 9, is_executable=True),
        Symlink(b"no/where"),
        Directory({}),
        Directory({b"d": Directory({b"d": Directory({})}), b"e": Symlink(b"."), b"f": File(b"f")}),
        Directory({b"a": Directory({}), b"a-": File(b""), b"a.b": File(b""), b"B": File(b"")}),
        Directory({"ü".encode(): File(b"1"), b"\xff\xfe": File(b"2"), b" \n": Symlink(b"\xff")}),
        Directory({b"%05d" % number: File(b"%d" % number) for number in range(6000)}),
    ],
    ids=["empty", "executable", "symlink", "directory", "nested", "order", "bytes", "many"],
)
def test_packs_the_tree(tmp_path: Path, tree: Tree) -> None:
    write(os.fsencode(tmp_path / "top"), tree)
    assert packed(tmp_path / "top") == nar_of_tree(tree)


@pytest.mark.parametrize("around", [-97, -96, -95, -1, 0, 1])
@pytest.mark.parametrize("buffers", [1, 2])
def test_packs_files_that_end_where_the_buffer_does(
    tmp_path: Path, buffers: int, around: int
) -> None:
    """The contents of a lone file begin at byte 96."""
    contents = os.urandom(buffers * BUFFER_BYTES + around)
    (tmp_path / "file").write_bytes(contents)
    assert packed(tmp_path / "file") == nar_of_tree(File(contents))


def test_only_the_owner_makes_a_file_executable(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    for mode, is_executable in [(0o744, True), (0o655, False), (0o500, True), (0o444, False)]:
        path.chmod(mode)
        assert packed(path) == nar_of_tree(File(b"", is_executable))


def test_does_not_follow_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    assert packed(tmp_path) == nar_of_tree(
        Directory({b"loop": Symlink(os.fsencode(tmp_path))}),
    )


@pytest.mark.parametrize("name", ["pipe", "directory/pipe"])
def test_refuses_other_kinds_of_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(OutsideError, match="pipe is a device, socket or pipe"):
        packed(tmp_path)
    with pytest.raises(OutsideError, match="pipe is a device, socket or pipe"):
        nar_bytes(str(tmp_path / name))


def test_says_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match=r"cannot pack .*gone"):
        packed(tmp_path / "gone")
    with pytest.raises(OutsideError, match=r"cannot pack .*gone"):
        nar_bytes(str(tmp_path / "gone"))


@pytest.mark.parametrize("change", [-BUFFER_BYTES, -1, 1, BUFFER_BYTES])
def test_refuses_a_file_that_changes_its_size(tmp_path: Path, change: int) -> None:
    path = tmp_path / "file"
    size = 3 * BUFFER_BYTES
    path.write_bytes(bytes(size))
    chunks = pack(str(tmp_path))
    next(chunks)
    os.truncate(path, size + change)
    with pytest.raises(OutsideError, match="file changed its size"):
        list(chunks)


@pytest.mark.parametrize("size", [5, BUFFER_BYTES - 96], ids=["small", "ends with the buffer"])
@pytest.mark.parametrize("change", [-5, -1, 1])
def test_refuses_a_file_that_changes_its_size_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, change: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    open_file = os.open

    def change_then_open(file: bytes, flags: int) -> int:
        os.truncate(path, size + change)
        return open_file(file, flags)

    monkeypatch.setattr(os, "open", change_then_open)
    with pytest.raises(OutsideError, match="file changed its size"):
        list(pack(str(path)))


def test_a_file_that_became_a_symlink_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    (tmp_path / "other").write_bytes(b"67890")
    open_file = os.open

    def swap_then_open(file: bytes, flags: int) -> int:
        path.unlink()
        path.symlink_to("other")
        return open_file(file, flags)

    monkeypatch.setattr(os, "open", swap_then_open)
    with pytest.raises(OutsideError, match=r"cannot pack .*file"):
        list(pack(str(path)))


def test_refuses_what_the_reader_would(tmp_path: Path) -> None:
    (tmp_path / "/".join("d" * (DEPTH_MAX - 1))).mkdir(parents=True)
    packed(tmp_path)
    (tmp_path / "/".join("d" * DEPTH_MAX)).mkdir()
    with pytest.raises(OutsideError, match="too deep"):
        packed(tmp_path)


def test_closes_its_file_when_abandoned(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * BUFFER_BYTES))
    chunks = pack(str(path))
    next(chunks)
    open_now = os.listdir("/proc/self/fd")
    chunks.close()  # type: ignore[attr-defined]  # a generator, which callers need not know
    assert len(os.listdir("/proc/self/fd")) == len(open_now) - 1
