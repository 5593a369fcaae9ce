"""Content addresses: paths that Nix computed follow from them, and others are refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.store.content import ContentAddress, Method, check_path, path_of
from grange.store.hash import DIGEST_BYTES, Hash
from grange.store.narinfo import PathInfo, parse
from grange.store.path import NIX_STORE, StorePath

DATA = Path(__file__).parent / "data" / "narinfo"
INFOS = [parse(file.read_text(), NIX_STORE).info for file in sorted(DATA.glob("*.narinfo"))]
ADDRESSED = [info for info in INFOS if info.content_address is not None]
OTHER = StorePath("a" * 32 + "-other")

HASHES = st.sampled_from(sorted(DIGEST_BYTES)).flatmap(
    lambda algorithm: st.binary(
        min_size=DIGEST_BYTES[algorithm], max_size=DIGEST_BYTES[algorithm]
    ).map(lambda digest: Hash(algorithm, digest))
)


def test_real_ones_are_of_every_form() -> None:
    forms = {info.content_address.method for info in ADDRESSED if info.content_address}
    assert forms == set(Method)


@pytest.mark.parametrize("info", ADDRESSED, ids=lambda info: info.path.name)
def test_the_paths_nix_chose_follow(info: PathInfo) -> None:
    assert info.content_address is not None
    check_path(info.path, info.content_address, info.references, NIX_STORE)
    found = path_of(info.content_address, info.path.name, info.references, NIX_STORE)
    assert found == info.path


@pytest.mark.parametrize("info", ADDRESSED, ids=lambda info: info.path.name)
def test_another_name_hash_or_reference_is_refused(info: PathInfo) -> None:
    address = info.content_address
    assert address is not None
    other_hash = ContentAddress(address.method, Hash.of("sha256", b"other"))
    renamed = StorePath(info.path + "x")
    with pytest.raises(PeerError, match="does not follow"):
        check_path(info.path, other_hash, info.references, NIX_STORE)
    with pytest.raises(PeerError, match="does not follow"):
        check_path(renamed, address, info.references, NIX_STORE)
    with pytest.raises(PeerError, match=r"does not follow|cannot have references"):
        check_path(info.path, address, (*info.references, OTHER), NIX_STORE)
    with pytest.raises(PeerError, match=r"does not follow|cannot refer to itself"):
        check_path(info.path, address, (*info.references, info.path), NIX_STORE)


def test_a_tree_may_refer_to_itself() -> None:
    address = ContentAddress(Method.NAR, Hash.of("sha256", b"tree"))
    path = path_of(address, "tree", (OTHER,), NIX_STORE, self_reference=True)
    check_path(path, address, (OTHER, path), NIX_STORE)
    with pytest.raises(PeerError, match="does not follow"):
        check_path(path, address, (OTHER,), NIX_STORE)


@given(st.sampled_from(Method), HASHES)
def test_showing_is_undone_by_parsing(method: Method, digest: Hash) -> None:
    address = ContentAddress(method, digest)
    if method is Method.TEXT and digest.algorithm != "sha256":
        with pytest.raises(PeerError):
            ContentAddress.parse(address.show())
    else:
        assert ContentAddress.parse(address.show()) == address


@given(st.sampled_from(["", "text:", "fixed:", "fixed:r:", "fixed:git:"]), st.text())
def test_junk_raises_only_peer_errors(prefix: str, junk: str) -> None:
    with pytest.raises(PeerError):
        ContentAddress.parse(f"{prefix}{junk}!")


def test_only_the_spelling_of_nix_is_read() -> None:
    digest = Hash.of("sha256", b"x")
    for spelling in (f"sha256:{digest.base16()}", digest.sri(), digest.base32()):
        with pytest.raises(PeerError):
            ContentAddress.parse(f"fixed:{spelling}")
