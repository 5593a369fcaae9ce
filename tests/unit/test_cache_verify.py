"""A wrong byte never gets a right signature: every lie about an upload is found."""

import os
from collections.abc import Iterable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from grange.cache.receive import verify
from grange.cache.signing import derivation_narinfo, nar_key, publish
from grange.cache.unpack import PIECE_BYTES_MAX, Unpacker
from grange.cache.verify import (
    Candidates,
    Claims,
    NarVerifier,
    Verified,
    candidates_of,
    check_claims,
)
from grange.errors import PeerError
from grange.store.content import ContentAddress, Method
from grange.store.hash import Hash
from grange.store.keys import SecretKey, TrustedKeys
from grange.store.nar import Directory, File, Symlink, nar_of_tree, single_file_nar, string
from grange.store.narinfo import fingerprint
from grange.store.outputs import fixed_output_path, text_path
from grange.store.path import NIX_STORE, StorePath

OWN = StorePath.parse_base("0a" * 16 + "-own")
DEP = StorePath.parse_base("1b" * 16 + "-dep")
UNUSED = StorePath.parse_base("2c" * 16 + "-unused")
STRANGER = StorePath.parse_base("3d" * 16 + "-stranger")
CLOSURE = candidates_of([DEP, UNUSED])


def zstd(data: bytes, *, level: int = 3, write_checksum: bool = False) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=write_checksum).compress(data)


def claims_of(nar: bytes, *references: StorePath, address: ContentAddress | None = None) -> Claims:
    return Claims(OWN, Hash.of("sha256", nar), len(nar), references, address)


NAR = single_file_nar(b"uses " + DEP.encode() + b" and itself, " + OWN.encode())
HONEST = claims_of(NAR, DEP, OWN)


def judge(
    claims: Claims,
    nar: bytes,
    candidates: Candidates | None = CLOSURE,
    chunk_bytes: int = 1 << 20,
) -> Verified:
    check_claims(claims, candidates)
    verifier = NarVerifier(claims, candidates)
    file = zstd(nar)
    for start in range(0, len(file), chunk_bytes):
        verifier.feed(file[start : start + chunk_bytes])
    return verifier.finish()


def with_nar(**changes: object) -> Claims:
    known: dict[str, object] = {
        "path": HONEST.path,
        "nar_hash": HONEST.nar_hash,
        "nar_bytes": HONEST.nar_bytes,
        "references": HONEST.references,
    }
    return Claims(**(known | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 20])
def test_an_honest_upload(chunk_bytes: int) -> None:
    verified = judge(HONEST, NAR, chunk_bytes=chunk_bytes)
    file = zstd(NAR)
    assert verified.references == (OWN, DEP)
    assert verified.nar_hash == Hash.of("sha256", NAR)
    assert verified.file_hash == Hash.of("sha256", file)
    assert verified.file_bytes == len(file)
    assert verified.listing is not None
    assert b'"type":"regular"' in verified.listing


def test_an_uncompressed_upload() -> None:
    assert verify(HONEST, CLOSURE, NAR, "none").file_hash == HONEST.nar_hash


@pytest.mark.parametrize("cut", [1, 8, 16, len(NAR) // 2, len(NAR)])
def test_a_nar_that_ends_early(cut: int) -> None:
    with pytest.raises(PeerError, match=f"{OWN} is refused: .*ends early"):
        judge(HONEST, NAR[:-cut])
    with pytest.raises(PeerError, match="ends early"):
        judge(claims_of(NAR[:-cut] or b"\0", DEP, OWN), NAR[:-cut])


@pytest.mark.parametrize("cut", [1, 4, 20])
def test_a_file_that_ends_early(cut: int) -> None:
    for has_checksum in (False, True):
        file = zstd(NAR, write_checksum=has_checksum)
        with pytest.raises(PeerError, match="the zstd stream ends early"):
            verify(HONEST, CLOSURE, file[:-cut], "zstd")
    with pytest.raises(PeerError, match="the zstd stream ends early"):
        verify(HONEST, CLOSURE, b"", "zstd")


def test_a_lie_about_the_hash() -> None:
    with pytest.raises(PeerError, match=r"its NAR hash is sha256:.*, not sha256:"):
        judge(with_nar(nar_hash=Hash.of("sha256", b"")), NAR)


@given(st.data())
def test_any_changed_byte_is_found(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(NAR) - 1))
    change = data.draw(st.integers(1, 255))
    changed = bytearray(NAR)
    changed[at] ^= change
    with pytest.raises(PeerError, match="refused"):
        judge(HONEST, bytes(changed))


def test_a_lie_about_the_size() -> None:
    with pytest.raises(PeerError, match=f"larger than the {len(NAR) - 8} bytes claimed"):
        judge(with_nar(nar_bytes=len(NAR) - 8), NAR)
    with pytest.raises(PeerError, match="ends early, after"):
        judge(with_nar(nar_bytes=len(NAR) + 8), NAR)


@pytest.mark.parametrize("size", [2**63, 2**64, 2**40 + 1, 0, -1])
def test_claims_of_impossible_sizes(size: int) -> None:
    with pytest.raises(PeerError, match=f"a NAR of {size} bytes"):
        judge(with_nar(nar_bytes=size), NAR)


def test_a_hidden_reference() -> None:
    with pytest.raises(PeerError, match=f"it refers to {DEP} without saying so"):
        judge(claims_of(NAR, OWN), NAR)


def test_a_hidden_reference_to_itself() -> None:
    with pytest.raises(PeerError, match=f"it refers to {OWN} without saying so"):
        judge(claims_of(NAR, DEP), NAR)


def test_a_hidden_reference_in_a_name_or_target() -> None:
    for tree in (
        Directory({DEP.hash_part.encode(): File(b"")}),
        Symlink(NIX_STORE.show(DEP).encode()),
    ):
        nar = nar_of_tree(tree)
        with pytest.raises(PeerError, match=f"it refers to {DEP} without saying so"):
            judge(claims_of(nar), nar)
        assert judge(claims_of(nar, DEP), nar).references == (DEP,)


def test_an_invented_reference() -> None:
    with pytest.raises(PeerError, match=f"it claims to refer to {UNUSED}, which it does not"):
        judge(claims_of(NAR, DEP, OWN, UNUSED), NAR)


def test_a_reference_outside_the_closure() -> None:
    nar = single_file_nar(STRANGER.encode())
    with pytest.raises(PeerError, match=f"it refers to {STRANGER}, which is neither in the"):
        judge(claims_of(nar, STRANGER), nar)


def test_a_reference_under_another_name() -> None:
    """The hash part occurs in the NAR, but the path claimed is not the one in the closure."""
    renamed = StorePath.parse_base(f"{DEP.hash_part}-renamed")
    with pytest.raises(PeerError, match="neither in the closure"):
        judge(claims_of(NAR, renamed, OWN), NAR)


def test_a_reference_claimed_twice() -> None:
    with pytest.raises(PeerError, match="name a path twice"):
        judge(claims_of(NAR, DEP, DEP, OWN), NAR)


def _entry(name: bytes) -> bytes:
    node = b"".join(map(string, (b"(", b"type", b"regular", b"contents", b"", b")")))
    return b"".join(map(string, (b"entry", b"(", b"name", name, b"node"))) + node + string(b")")


def _directory(names: Iterable[bytes]) -> bytes:
    head = b"".join(map(string, (b"nix-archive-1", b"(", b"type", b"directory")))
    return head + b"".join(map(_entry, names)) + string(b")")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ([b".."], "is no name"),
        ([b"."], "is no name"),
        ([b"a/b"], "is no name"),
        ([b"a\0"], "is no name"),
        ([b""], "a name is empty"),
        ([b"a", b"a"], "unsorted"),
        ([b"b", b"a"], "unsorted"),
    ],
)
def test_names_that_could_do_harm(names: list[bytes], what: str) -> None:
    nar = _directory(names)
    with pytest.raises(PeerError, match=f"{OWN} is refused: .*{what}"):
        judge(claims_of(nar), nar)
    good = _directory([b"a", b"b"])
    judge(claims_of(good), good)


def test_a_bomb_is_met_piece_by_piece() -> None:
    bomb = zstd(bytes(1 << 30))
    verifier = NarVerifier(HONEST, CLOSURE)
    with pytest.raises(PeerError, match="larger than the"):
        verifier.feed(bomb[: HONEST.file_bytes_max])
    pieces = Unpacker().feed(bomb)
    assert max(len(next(pieces)) for _ in range(20)) <= PIECE_BYTES_MAX


def test_a_bomb_in_many_chunks_is_met_piece_by_piece() -> None:
    bomb = zstd(bytes(64 << 20))
    unpacker = Unpacker()
    chunks = [bomb[at : at + 1000] for at in range(0, len(bomb), 1000)]
    sizes = [len(piece) for chunk in chunks for piece in unpacker.feed(chunk)]
    unpacker.finish()
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= PIECE_BYTES_MAX


def test_a_huge_window() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    file = compressor.compress(NAR) + compressor.flush()
    with pytest.raises(PeerError, match="window of 134217728 bytes is larger"):
        verify(HONEST, CLOSURE, file, "zstd")


def test_level_19_is_taken() -> None:
    compressor = zstandard.ZstdCompressor(level=19).compressobj()
    file = compressor.compress(NAR) + compressor.flush()
    assert verify(HONEST, CLOSURE, file, "zstd").file_bytes == len(file)


@pytest.mark.parametrize(
    "file",
    [
        b"this is not zstd at all, but text",
        bytes(100),
        NAR[: len(NAR) // 2],
        b"\x50\x2a\x4d\x18\x10\0\0\0" + bytes(16),  # a frame to be skipped
        zstd(NAR)[:20] + bytes(50),
        zstd(NAR)[:12] + b"\xff" * 60,
    ],
)
def test_garbage_instead_of_zstd(file: bytes) -> None:
    with pytest.raises(PeerError, match=f"{OWN} is refused"):
        verify(HONEST, CLOSURE, file, "zstd")


def test_something_behind_the_frame() -> None:
    for more in (b"x", zstd(b"more"), zstd(NAR)):
        with pytest.raises(PeerError, match="behind the end of the zstd frame"):
            verify(HONEST, CLOSURE, zstd(NAR) + more, "zstd")


def test_a_wrong_checksum() -> None:
    file = bytearray(zstd(NAR, write_checksum=True))
    file[-1] ^= 1
    with pytest.raises(PeerError, match="zstd is damaged"):
        verify(HONEST, CLOSURE, bytes(file), "zstd")


def test_a_file_much_larger_than_its_nar() -> None:
    with pytest.raises(PeerError, match="bytes came for a NAR of"):
        verify(HONEST, CLOSURE, b"\0" * (HONEST.file_bytes_max + 1), "zstd")


@given(st.binary(max_size=300), st.integers(1, 50))
def test_junk_is_refused_with_a_typed_error(junk: bytes, chunk_bytes: int) -> None:
    verifier = NarVerifier(HONEST, CLOSURE)
    file = zstd(NAR)[:12] + junk

    def feed() -> None:
        for start in range(0, len(file), chunk_bytes):
            verifier.feed(file[start : start + chunk_bytes])
        verifier.finish()

    with pytest.raises(PeerError):
        feed()


@given(st.integers(200, 3 << 20), st.integers(1, 5), st.booleans(), st.integers(1, 1 << 17))
def test_whatever_zstd_packs_is_unpacked(
    size: int, level: int, has_checksum: bool, chunk_bytes: int
) -> None:
    data = (os.urandom(5000) + bytes(size))[:size]
    file = zstd(data, level=level, write_checksum=has_checksum)
    unpacker = Unpacker()
    chunks = [file[at : at + chunk_bytes] for at in range(0, len(file), chunk_bytes)]
    assert b"".join(piece for chunk in chunks for piece in unpacker.feed(chunk)) == data
    unpacker.finish()


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
def test_a_flat_fixed_output(algorithm: str) -> None:
    nar = single_file_nar(b"fetched")
    address = ContentAddress(Method.FLAT, Hash.of(algorithm, b"fetched"))
    assert judge(claims_of(nar, address=address), nar).address == address
    wrong = ContentAddress(Method.FLAT, Hash.of(algorithm, b"expected"))
    with pytest.raises(PeerError, match="its content hash is"):
        judge(claims_of(nar, address=wrong), nar)


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
def test_a_recursive_fixed_output(algorithm: str) -> None:
    nar = nar_of_tree(Directory({b"a": File(b"fetched"), b"b": File(b"", is_executable=True)}))
    address = ContentAddress(Method.NAR, Hash.of(algorithm, nar))
    assert judge(claims_of(nar, address=address), nar).address == address
    wrong = ContentAddress(Method.NAR, Hash.of(algorithm, b""))
    with pytest.raises(PeerError, match="its content hash is"):
        judge(claims_of(nar, address=wrong), nar)


@pytest.mark.parametrize(
    "nar",
    [
        single_file_nar(b"x", executable=True),
        nar_of_tree(Directory({b"a": File(b"x")})),
        nar_of_tree(Directory({})),
        nar_of_tree(Symlink(b"x")),
    ],
)
def test_a_flat_output_is_a_plain_file(nar: bytes) -> None:
    address = ContentAddress(Method.FLAT, Hash.of("sha256", b"x"))
    with pytest.raises(PeerError, match="must be a single file that is not executable"):
        judge(claims_of(nar, address=address), nar)


def test_a_tree_cannot_pass_for_a_flat_file_that_follows_in_it() -> None:
    nar = nar_of_tree(Directory({b"a": File(b"fetched")}))
    address = ContentAddress(Method.FLAT, Hash.of("sha256", b"fetched"))
    with pytest.raises(PeerError, match="must be a single file"):
        judge(claims_of(nar, address=address), nar)


KEYS = [SecretKey.generate(f"farm-{n}", bytes([n]) * 32) for n in (1, 2)]


def test_every_key_signs() -> None:
    narinfo = publish(judge(HONEST, NAR), UNUSED, KEYS, NIX_STORE)
    text = fingerprint(narinfo.info, NIX_STORE)
    assert len(narinfo.info.signatures) == 2
    for key, signature in zip(KEYS, narinfo.info.signatures, strict=True):
        assert TrustedKeys.of([key.public]).signer(text, [signature]) is not None
    assert narinfo.url == f"nar/{narinfo.file_hash and narinfo.file_hash.base32()}.nar.zst"
    assert narinfo.info.references == (OWN, DEP)
    assert narinfo.info.deriver == UNUSED


def test_a_content_address_is_published_only_where_the_path_follows_from_it() -> None:
    nar = single_file_nar(DEP.encode())
    address = ContentAddress(Method.NAR, Hash.of("sha256", nar))
    path = fixed_output_path("x", address.hash, NIX_STORE, recursive=True)

    def published(*references: StorePath) -> ContentAddress | None:
        claims = Claims(path, Hash.of("sha256", nar), len(nar), references, address)
        verified = judge(claims, nar, CLOSURE if references else {})
        return publish(verified, None, KEYS, NIX_STORE).info.content_address

    assert published() == address
    assert published(DEP) is None


def test_a_derivation_is_published_as_text() -> None:
    aterm = b"Derive(...)"
    path = text_path("x.drv", Hash.of("sha256", aterm), [DEP], NIX_STORE)
    narinfo = derivation_narinfo(path, aterm, [DEP], KEYS, NIX_STORE)
    assert narinfo.info.content_address == ContentAddress(Method.TEXT, Hash.of("sha256", aterm))
    assert narinfo.info.nar_hash == narinfo.file_hash == Hash.of("sha256", single_file_nar(aterm))


def test_an_uncompressed_file_has_another_suffix() -> None:
    assert nar_key(verify(HONEST, CLOSURE, NAR, "none")).endswith(".nar")
