"""Store paths: what names one, and what does not."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.store.path import BASE_PATTERN, NIX_STORE, StoreDir, StorePath, parse_name

HASH = "1rz4g4znpzjwh1xymhjpm42vipw92pr7"


@pytest.mark.parametrize("name", ["a", "hello-2.12", ".hidden", "...", "+-._?=", "A" * 211, "-"])
def test_names_nix_accepts(name: str) -> None:
    path = StorePath.parse_base(f"{HASH}-{name}")
    assert (path.hash_part, path.name) == (HASH, name)
    assert NIX_STORE.parse(NIX_STORE.show(path)) == path
    assert parse_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".-a", "..-", "A" * 212, "a/b", "a b", "é", "a\n"])
def test_names_nix_refuses(name: str) -> None:
    with pytest.raises(PeerError):
        StorePath.parse_base(f"{HASH}-{name}")
    with pytest.raises(PeerError, match="cannot name a store path"):
        parse_name(name)
    quoted = f'"{HASH}-{name}"'
    assert re.fullmatch(f'"{BASE_PATTERN}"', quoted) is None


@pytest.mark.parametrize("part", [HASH[:-1], HASH + "1", "e" * 32, "A" * 32, ""])
def test_hash_parts_are_32_of_nix_base_32(part: str) -> None:
    with pytest.raises(PeerError, match="is not the base name of a store path"):
        StorePath.parse_base(f"{part}-a")


@pytest.mark.parametrize(
    "text",
    [f"/gnu/store/{HASH}-a", f"/nix/store/{HASH}-a/b", f"/nix/store//{HASH}-a", f"{HASH}-a", ""],
)
def test_a_path_lies_directly_in_its_directory(text: str) -> None:
    with pytest.raises(PeerError):
        NIX_STORE.parse(text)


def test_the_directory_is_a_value() -> None:
    guix = StoreDir("/gnu/store")
    assert guix.show(guix.parse(f"/gnu/store/{HASH}-a")) == f"/gnu/store/{HASH}-a"


@given(st.text())
def test_junk_raises_only_peer_errors(junk: str) -> None:
    for text in (junk, f"/nix/store/{junk}", f"/nix/store/{HASH}-{junk}"):
        try:
            assert NIX_STORE.show(NIX_STORE.parse(text)) == text
        except PeerError:
            continue
