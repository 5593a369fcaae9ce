"""NARs compressed with xz, and files that only look so."""

import lzma
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.cache.receive import verify
from grange.cache.unpack import PIECE_BYTES_MAX, XzUnpacker, unpacker
from grange.cache.verify import Claims, NarVerifier
from grange.errors import PeerError
from grange.store.compression import (
    NAR_SUFFIXES,
    compress,
    compressor,
    decompress,
    nar_key_as,
)
from grange.store.hash import Hash
from grange.store.nar import single_file_nar
from grange.store.path import StorePath

NAR = single_file_nar(os.urandom(70_000) + bytes(70_000))
FILE = lzma.compress(NAR)
HONEST = Claims(StorePath.parse_base("0a" * 16 + "-out"), Hash.of("sha256", NAR), len(NAR), ())


def test_an_honest_upload() -> None:
    verified = verify(HONEST, {}, FILE, "xz")
    assert verified.compression == "xz"
    assert verified.file_bytes == len(FILE)


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_in_chunks_of_any_size(size: int) -> None:
    unpacked = XzUnpacker()
    chunks = [FILE[at : at + size] for at in range(0, len(FILE), size)]
    assert b"".join([piece for chunk in chunks for piece in unpacked.feed(chunk)]) == NAR
    unpacked.finish()


def test_a_bomb_is_met_piece_by_piece() -> None:
    bomb = lzma.compress(bytes(64 << 20))
    sizes = [len(piece) for piece in XzUnpacker().feed(bomb)]
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= PIECE_BYTES_MAX
    verifier = NarVerifier(HONEST, {}, "xz")
    with pytest.raises(PeerError, match="larger than the"):
        verifier.feed(bomb)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (FILE[:-5], "ends early"),
        (FILE[: len(FILE) // 2], "ends early"),
        (FILE + b"x", "behind the end"),
        (FILE + FILE, "behind the end"),
        (b"no xz at all, whatever it says", "damaged"),
        (lzma.compress(NAR, lzma.FORMAT_ALONE), "damaged"),
        (FILE[:1000] + bytes([FILE[1000] ^ 1]) + FILE[1001:], "out is refused"),
    ],
)
def test_what_is_not_one_whole_stream(file: bytes, said: str) -> None:
    with pytest.raises(PeerError, match=said):
        verify(HONEST, {}, file, "xz")


def test_a_dictionary_that_eats_memory() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 512 << 20}]
    file = lzma.compress(NAR, filters=filters)
    with pytest.raises(PeerError, match="damaged"):
        verify(HONEST, {}, file, "xz")


@given(junk=st.binary(max_size=200))
def test_junk_is_refused_with_a_typed_error(junk: bytes) -> None:
    with pytest.raises(PeerError):
        verify(HONEST, {}, FILE[:20] + junk, "xz")


def test_a_compression_nobody_knows() -> None:
    with pytest.raises(PeerError, match="'br' is not known"):
        unpacker("br")


@pytest.mark.parametrize("name", ["zstd", "xz", "gzip"])
def test_there_and_back(name: str) -> None:
    assert decompress(name, compress(name, 3, NAR)) == NAR
    stream = compressor(name, 3, threads=2)
    assert decompress(name, stream.compress(NAR) + stream.flush()) == NAR
    with pytest.raises(ValueError, match=f"not {name}"):
        decompress(name, b"certainly not this")


def test_names_of_the_same_nar_in_other_stores() -> None:
    for one in NAR_SUFFIXES:
        for other in NAR_SUFFIXES:
            key = nar_key_as(f"nar/x{NAR_SUFFIXES[one]}", other)
            assert key == f"nar/x{NAR_SUFFIXES[other]}"
    for key in ("y.narinfo", "nar/x.nar.zst.ls", "log/x.nar"):
        assert nar_key_as(key, "none") == key
