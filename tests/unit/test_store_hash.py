"""Hashes: every spelling of Nix reads back, and equals what Nix prints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.store.hash import (
    DIGEST_BYTES,
    Hash,
    base32_decode,
    base32_encode,
    compress_hash,
    new_hasher,
)

HASHES = st.sampled_from(sorted(DIGEST_BYTES)).flatmap(
    lambda algorithm: st.binary(
        min_size=DIGEST_BYTES[algorithm], max_size=DIGEST_BYTES[algorithm]
    ).map(lambda digest: Hash(algorithm, digest))
)


def test_spellings_are_those_of_nix() -> None:
    """Printed by ``nix hash file`` with --base16, --base32 and --sri for a file that holds "a"."""
    digest = Hash.of("sha256", b"a")
    assert digest.base16() == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert digest.base32() == "1fs8xspqaxw0p5r4wz0lz3pqd9sdvhirmcriqbxcmg8vr89835ya"
    assert digest.nix() == f"sha256:{digest.base32()}"
    assert digest.sri() == "sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs="


@given(HASHES)
def test_every_spelling_reads_back(digest: Hash) -> None:
    algorithm = digest.algorithm
    for text in (digest.nix(), digest.sri(), f"{algorithm}:{digest.base16()}"):
        assert Hash.parse(text) == digest
        assert Hash.parse(text, algorithm) == digest
    for text in (digest.base16(), digest.base32(), digest.sri().partition("-")[2]):
        assert Hash.parse(text, algorithm) == digest


@given(st.binary(max_size=70))
def test_base_32_reads_back(data: bytes) -> None:
    text = base32_encode(data)
    assert len(text) == (len(data) * 8 + 4) // 5
    assert base32_decode(text, len(data)) == data


def test_base_32_has_one_spelling() -> None:
    text = base32_encode(bytes(16))
    for other in ("z" + text[1:], text[1:], "0" + text, "e" + text[1:], text.upper() + "é"):
        with pytest.raises(PeerError, match="is not 16 bytes in Nix base 32"):
            base32_decode(other, 16)


@given(st.binary(max_size=70), st.integers(1, 40))
def test_folding_is_byte_wise_exclusive_or(digest: bytes, length: int) -> None:
    expected = bytearray(length)
    for index, byte in enumerate(digest):
        expected[index % length] ^= byte
    assert compress_hash(digest, length) == expected


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        ("", None),
        ("sha256", None),
        ("blake3:00", None),
        ("00" * 32, None),
        ("00" * 31, "sha256"),
        ("sha1:" + "00" * 20, "sha256"),
        ("sha256:" + "zz" * 32, None),
        ("sha256-" + "A" * 43, None),
        ("sha256-" + "!" * 44, None),
        ("sha256:" + "00" * 31 + "  ", None),
        ("sha256:sha256:" + "00" * 32, None),
    ],
)
def test_other_texts_are_refused(text: str, algorithm: str | None) -> None:
    with pytest.raises(PeerError):
        Hash.parse(text, algorithm)


@given(st.sampled_from(["", "sha256:", "sha512-", "md5:"]), st.text(max_size=70))
def test_junk_raises_only_peer_errors(prefix: str, junk: str) -> None:
    with pytest.raises(PeerError):
        Hash.parse(f"{prefix}{junk}!")


@pytest.mark.parametrize("algorithm", DIGEST_BYTES)
def test_hashers_have_the_sizes_stated(algorithm: str) -> None:
    assert new_hasher(algorithm).digest_size == DIGEST_BYTES[algorithm]
