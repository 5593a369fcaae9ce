"""NARs: what is written is read back, and nothing else is read at all."""

import hashlib
import json
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.store.nar import (
    CLOSE,
    DEPTH_MAX,
    DIRECTORY_OPEN,
    MAGIC,
    Directory,
    File,
    Listing,
    NarReader,
    Symlink,
    Tree,
    entry_open,
    nar_of_text,
    nar_of_tree,
    padding,
    regular_open,
    single_file_nar,
    string,
    symlink_node,
)

names = st.binary(min_size=1, max_size=12).filter(
    lambda name: not {b"/", b"\0"} & {bytes([c]) for c in name} and name not in (b".", b"..")
) | st.sampled_from([b"a", b"b", b"b-", b"...", b"n" * 255, "ünï".encode()])
targets = st.binary(min_size=1, max_size=20).filter(lambda target: b"\0" not in target)
trees: st.SearchStrategy[Tree] = st.recursive(
    st.builds(File, st.binary(max_size=40), st.booleans()) | st.builds(Symlink, targets),
    lambda nodes: st.builds(Directory, st.dictionaries(names, nodes, max_size=4)),
    max_leaves=12,
)


class Rebuilder:
    """A visitor that makes the tree again."""

    def __init__(self) -> None:
        self.top: dict[bytes, Any] = {}
        self.open: list[dict[bytes, Any]] = [self.top]
        self.file: list[Any] = []
        self.offsets: list[tuple[int, int]] = []

    def directory_opened(self, name: bytes) -> None:
        self.open.append({})
        self.open[-2][name] = self.open[-1]

    def directory_closed(self) -> None:
        self.open.pop()

    def symlink(self, name: bytes, target: bytes) -> None:
        self.open[-1][name] = Symlink(target)

    def regular(self, name: bytes, is_executable: bool, size: int, offset: int) -> None:
        self.open[-1][name] = self.file = [bytearray(), is_executable]
        self.offsets.append((offset, size))

    def contents(self, piece: memoryview) -> None:
        assert len(piece) > 0
        self.file[0].extend(piece)

    def tree(self) -> Tree:
        return self._tree(self.top[b""])

    def _tree(self, node: Any) -> Tree:
        match node:
            case [contents, is_executable]:
                return File(bytes(contents), is_executable)
            case dict():
                return Directory({name: self._tree(child) for name, child in node.items()})
            case _:
                assert isinstance(node, Symlink)
                return node


def read(nar: bytes, cuts: list[int] | None = None) -> Rebuilder:
    rebuilder = Rebuilder()
    reader = NarReader(rebuilder)
    edges = [0, *sorted(cuts or []), len(nar)]
    for start, stop in pairwise(edges):
        chunk = bytearray(nar[start:stop])
        reader.feed(memoryview(chunk))
        chunk[:] = b"\xff" * len(chunk)  # a caller may use its buffer again
    reader.finish()
    assert reader.nar_bytes == len(nar)
    return rebuilder


def refusal(nar: bytes) -> str:
    with pytest.raises(PeerError) as caught:
        read(nar)
    return str(caught.value)


def directory(*entries: bytes) -> bytes:
    return MAGIC + DIRECTORY_OPEN + b"".join(entry + CLOSE for entry in entries) + CLOSE


def file_node(contents: bytes = b"") -> bytes:
    pad = padding(len(contents))
    return regular_open(len(contents), is_executable=False) + contents + pad + CLOSE


# Writing


def test_the_writer_agrees_with_nix() -> None:
    """Digests by `nix hash path --base16 --type sha256` of Nix 2.8."""

    def sha256(nar: bytes) -> str:
        return hashlib.sha256(nar).hexdigest()

    plain = "10551daed7fa467d0b58826e7eb9a0f2af7d693de319f2ef775fffcda244b9f6"
    assert sha256(single_file_nar(b"hi\n")) == sha256(nar_of_text(b"hi\n")) == plain
    executable = "b55bce1ab38788765364491154df0c575a4959c247abcd0d2d24a6dba4b10da7"
    assert sha256(single_file_nar(b"hi\n", executable=True)) == executable
    empty = "77ac62e2629d8e45f624589c0c8bf99e24b3a722349bf1e79bc186008534e246"
    assert sha256(single_file_nar(b"")) == empty
    assert sha256(nar_of_tree(TREE)) == (
        "acfe95e36417c5bab09cfa82b78795a51f084804c0d87b17752595653a5534a3"
    )


TREE = Directory(
    {
        b"x": File(b"x", is_executable=True),
        b"d": Directory({b"sub": Directory({}), b"f": File(b"hi\n")}),
        b"empty": Directory({}),
        b"e": File(b""),
        b"l": Symlink(b"../y"),
    }
)


# Reading


@given(trees, st.data())
def test_a_tree_comes_back_however_it_is_cut(tree: Tree, data: st.DataObject) -> None:
    nar = nar_of_tree(tree)
    cuts = data.draw(st.lists(st.integers(0, len(nar)), max_size=8))
    whole, cut = read(nar), read(nar, cuts)
    assert whole.tree() == cut.tree() == tree
    assert whole.offsets == cut.offsets
    assert list(whole.top[b""]) == sorted(whole.top[b""]) if isinstance(tree, Directory) else True


def test_a_tree_comes_back_byte_by_byte() -> None:
    nar = nar_of_tree(TREE)
    assert read(nar, [*range(len(nar))]).tree() == TREE


def test_a_large_archive_in_chunks() -> None:
    tree = Directory({b"%04d" % i: File(b"c" * (i * 97 % 30000), i % 3 == 0) for i in range(300)})
    nar = nar_of_tree(tree)
    offsets = read(nar).offsets
    for chunk_bytes in (1000, 4096, 65536):
        cut = read(nar, [*range(0, len(nar), chunk_bytes)])
        assert cut.tree() == tree
        assert cut.offsets == offsets
        for offset, size in offsets:
            assert nar[offset : offset + size] == b"c" * size


def test_the_position_counts_from_the_start_whatever_the_chunks() -> None:
    nar = bytearray(nar_of_tree(Directory({b"%03d" % i: File(b"c" * 9000) for i in range(99)})))
    at = nar.index(string(b"070"))
    nar[at + 8] = ord("/")
    for chunk_bytes in (1000, 4096, 65536):
        with pytest.raises(PeerError, match=f"at byte {at}, b'/70' must not follow b'069'"):
            read(bytes(nar), [*range(0, len(nar), chunk_bytes)])


def test_what_ends_early_is_refused_wherever_it_ends() -> None:
    nar = nar_of_tree(TREE)
    for size in range(len(nar)):
        reason = refusal(nar[:size])
        assert "ends" in reason, reason
        assert f"at byte {size}," in reason


def test_what_ends_early_tells_nothing_false() -> None:
    nar = nar_of_tree(TREE)
    offsets = read(nar).offsets
    for size in range(len(nar)):
        rebuilder = Rebuilder()
        reader = NarReader(rebuilder)
        reader.feed(nar[:size])
        with pytest.raises(PeerError):
            reader.finish()
        assert rebuilder.offsets == offsets[: len(rebuilder.offsets)]


@given(trees, st.data())
def test_a_changed_byte_is_refused_or_makes_another_tree(tree: Tree, data: st.DataObject) -> None:
    """Whatever is accepted is the one archive of what was read."""
    nar = bytearray(nar_of_tree(tree))
    at = data.draw(st.integers(0, len(nar) - 1))
    nar[at] = data.draw(st.integers(0, 255))
    accept_only_canonical(bytes(nar))


TOKENS = [b"(", b")", b"type", b"regular", b"executable", b"contents", b"symlink", b"target"]
TOKENS += [b"directory", b"entry", b"name", b"node", b"", b"a", b"b"]
PARTS = [*map(string, TOKENS), entry_open(b"a"), entry_open(b"b"), DIRECTORY_OPEN, file_node(b"c")]
PARTS += [symlink_node(b"t"), CLOSE * 2, b"\0", b"\xff" * 8]


@given(st.lists(st.sampled_from(PARTS), max_size=12))
def test_junk_of_the_right_words_is_refused(parts: list[bytes]) -> None:
    accept_only_canonical(MAGIC + b"".join(parts))


@given(st.binary(max_size=200))
def test_junk_is_refused(junk: bytes) -> None:
    refusal(junk)
    refusal(MAGIC + junk)


def accept_only_canonical(nar: bytes) -> None:
    try:
        tree = read(nar).tree()
    except PeerError:
        return
    assert nar_of_tree(tree) == nar


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"", "a name is empty"),
        (b".", "b'.' is no name"),
        (b"..", "b'..' is no name"),
        (b"a/b", "b'a/b' is no name"),
        (b"/", "b'/' is no name"),
        (b"a\0", "is no name"),
        (b"n" * 256, "a name of 256 bytes"),
    ],
)
def test_names_that_no_file_has(name: bytes, reason: str) -> None:
    nar = directory(entry_open(name) + file_node())
    assert reason in refusal(nar)
    assert f"at byte {len(MAGIC + DIRECTORY_OPEN + entry_open(b'')) - 24}," in refusal(nar)


@pytest.mark.parametrize(("first", "second"), [(b"b", b"a"), (b"a", b"a"), (b"ab", b"a")])
def test_names_out_of_order(first: bytes, second: bytes) -> None:
    nar = directory(entry_open(first) + file_node(), entry_open(second) + file_node())
    assert f"{second!r} must not follow {first!r}" in refusal(nar)


def test_order_is_by_directory() -> None:
    inner = DIRECTORY_OPEN + entry_open(b"a") + file_node() + CLOSE + CLOSE
    nar = directory(entry_open(b"b") + inner, entry_open(b"c") + file_node())
    read(nar)
    nar = directory(entry_open(b"b") + inner, entry_open(b"b") + file_node())
    assert "must not follow" in refusal(nar)


def test_padding_must_be_zero() -> None:
    nar = bytearray(directory(entry_open(b"name") + symlink_node(b"target")))
    for text in (b"name\0", b"target\0"):
        at = nar.rindex(text) + len(text)
        nar[at] = 1
        assert "padding of a" in refusal(bytes(nar))
        nar[at] = 0
    nar = bytearray(single_file_nar(b"contents!"))
    nar[nar.index(b"!") + 7] = 1
    assert "zeros and ')' behind a file" in refusal(bytes(nar))


@pytest.mark.parametrize("behind", [b"\0", b"\0" * 8, CLOSE, MAGIC, b"x" * 9000])
def test_nothing_may_follow(behind: bytes) -> None:
    nar = nar_of_tree(TREE)
    assert f"at byte {len(nar)}, there are bytes behind the end" in refusal(nar + behind)
    with pytest.raises(PeerError):
        read(nar + behind, [len(nar)])


def test_the_kinds_of_node() -> None:
    open_ = MAGIC + string(b"(") + string(b"type")
    assert "a regular file, a symlink or a directory" in refusal(open_ + string(b"fifo") + CLOSE)
    no_contents = open_ + string(b"regular") + CLOSE
    assert "at byte 24, there should be a regular file" in refusal(no_contents)
    marked = open_ + b"".join(map(string, (b"regular", b"executable", b"1", b"contents", b"")))
    assert "there should be a regular file" in refusal(marked + CLOSE)
    no_node = MAGIC + DIRECTORY_OPEN + entry_open(b"a")[:-16] + file_node() + CLOSE + CLOSE
    assert "there should be 'node'" in refusal(no_node)
    assert "an entry or ')'" in refusal(MAGIC + DIRECTORY_OPEN + string(b"other"))
    assert "magic" in refusal(string(b"nix-archive-2") + file_node())


def test_an_entry_closes_its_own_parenthesis() -> None:
    assert "')'" in refusal(MAGIC + DIRECTORY_OPEN + entry_open(b"a") + file_node() + string(b"("))
    link = MAGIC + DIRECTORY_OPEN + entry_open(b"a") + symlink_node(b"t") + string(b"entry")
    assert "there should be ')'" in refusal(link)


@pytest.mark.parametrize("target", [b"", b"a\0b", b"t" * 4096])
def test_targets_that_no_symlink_has(target: bytes) -> None:
    assert "target" in refusal(MAGIC + symlink_node(target))


def test_the_longest_items_are_read() -> None:
    tree = Directory({b"n" * 255: Symlink(b"t" * 4095), b"o" * 255: Symlink(b"t" * 4095)})
    nar = nar_of_tree(tree)
    assert read(nar, [*range(0, len(nar), 7)]).tree() == tree


def test_directories_may_be_deep_but_not_deeper() -> None:
    tree: Tree = Directory({})
    for _ in range(DEPTH_MAX - 1):
        tree = Directory({b"d": tree})
    listing = Listing()
    reader = NarReader(listing)
    reader.feed(nar_of_tree(tree))
    reader.finish()
    text = listing.json()
    assert text is not None
    json.loads(text)  # a limit that json could not follow would be no limit
    assert "deep" in refusal(nar_of_tree(Directory({b"d": tree})))


# Sizes that are only claimed


def test_a_file_may_claim_all_but_more_than_there_is() -> None:
    opening = MAGIC + regular_open(2**63 - 1, is_executable=False)
    reader = NarReader()
    reader.feed(opening)
    for _ in range(10):
        reader.feed(bytes(1 << 16))
    with pytest.raises(PeerError, match=f"ends {2**63 - 1 - 10 * (1 << 16)} bytes before a file"):
        reader.finish()
    assert str(2**63) in refusal(MAGIC + regular_open(2**63, is_executable=False) + b"x" * 9000)
    assert "bytes" in refusal(MAGIC + regular_open(2**64 - 1, is_executable=True) + b"x" * 9000)


@pytest.mark.parametrize("claim", [256, 2**32, 2**63, 2**64 - 1])
def test_a_name_may_not_claim_more_than_a_name(claim: int) -> None:
    opening = MAGIC + DIRECTORY_OPEN + entry_open(b"a")[:-32]
    nar = opening + claim.to_bytes(8, "little") + bytes(9000)
    assert f"at byte {len(opening)}, a name of {claim} bytes" in refusal(nar)


def test_contents_are_not_kept() -> None:
    chunk = bytes(1 << 16)
    reader = NarReader(Listing())
    reader.feed(MAGIC + regular_open(64 << 20, is_executable=False))
    tracemalloc.start()
    for _ in range(1024):
        reader.feed(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    reader.feed(CLOSE)
    reader.finish()
    assert peak < 2 * len(chunk)


def test_entries_are_not_kept() -> None:
    entries = b"".join(entry_open(b"%06d" % i) + file_node() + CLOSE for i in range(20_000))
    nar = MAGIC + DIRECTORY_OPEN + entries + CLOSE
    chunks = [nar[at : at + 4096] for at in range(0, len(nar), 4096)]
    reader = NarReader()
    tracemalloc.start()
    for chunk in chunks:
        reader.feed(chunk)
    reader.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000


# Listings


def listing_of(nar: bytes, bytes_max: int = 1 << 20) -> bytes | None:
    listing = Listing(bytes_max)
    reader = NarReader(listing)
    reader.feed(nar)
    reader.finish()
    return listing.json()


def test_the_listing_is_the_one_of_nix() -> None:
    """As Nix 2.8 writes it with write-nar-listing=true, to the byte."""
    assert listing_of(nar_of_tree(TREE)) == (
        b'{"version":1,"root":{"type":"directory","entries":{"d":{"type":"directory","entries":'
        b'{"f":{"type":"regular","size":3,"narOffset":368},"sub":{"type":"directory","entries":{}}'
        b'}},"e":{"type":"regular","size":0,"narOffset":760},"empty":{"type":"directory",'
        b'"entries":{}},"l":{"type":"symlink","target":"../y"},"x":{"type":"regular","size":1,'
        b'"executable":true,"narOffset":1336}}}}'
    )
    assert listing_of(single_file_nar(b"ab")) == (
        b'{"version":1,"root":{"type":"regular","size":2,"narOffset":96}}'
    )


@given(trees)
def test_the_listing_has_the_shape_of_the_tree(tree: Tree) -> None:
    nar = nar_of_tree(tree)
    text = listing_of(nar)
    try:
        expected = shape(tree)
    except UnicodeDecodeError:
        assert text is None
        return
    assert text is not None
    assert without_offsets(json.loads(text), nar) == {"version": 1, "root": expected}


def shape(tree: Tree) -> dict[str, Any]:
    match tree:
        case File(contents, is_executable):
            mark = {"executable": True} if is_executable else {}
            return {"type": "regular", "size": len(contents), "contents": contents} | mark
        case Symlink(target):
            return {"type": "symlink", "target": target.decode()}
        case Directory(entries):
            children = {name.decode(): shape(child) for name, child in entries.items()}
            return {"type": "directory", "entries": children}


def without_offsets(node: Any, nar: bytes) -> Any:
    """The listing with the contents that lie where it says in place of the offset."""
    if isinstance(node, dict):
        node = {key: without_offsets(value, nar) for key, value in node.items()}
        if isinstance(offset := node.pop("narOffset", None), int):
            node["contents"] = nar[offset : offset + node["size"]]
    return node


def test_names_need_quoting_in_json() -> None:
    tree = Directory({b'a"\\\n\x01': Symlink(b'"'), "ü€😀".encode(): File(b"")})
    text = listing_of(nar_of_tree(tree))
    assert text is not None
    assert "ü€😀".encode() in text
    assert list(json.loads(text)["root"]["entries"]) == ['a"\\\n\x01', "ü€😀"]


@pytest.mark.parametrize(
    "tree", [Directory({b"\xff": File(b""), b"\xff\xff": File(b"")}), Symlink(b"\xc3")]
)
def test_what_json_cannot_say_has_no_listing(tree: Tree) -> None:
    assert listing_of(nar_of_tree(tree)) is None


def test_a_listing_is_bounded() -> None:
    nar = nar_of_tree(Directory({b"%d" % i: Directory({}) for i in range(100)}))
    text = listing_of(nar)
    assert text is not None
    assert listing_of(nar, bytes_max=len(text)) == text
    assert listing_of(nar, bytes_max=len(text) // 2) is None
