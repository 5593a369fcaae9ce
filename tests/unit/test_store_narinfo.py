"""Narinfos: Nix's own read, print and verify; everything malformed is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.store.content import ContentAddress, Method
from grange.store.hash import Hash
from grange.store.keys import PublicKey, SecretKey
from grange.store.narinfo import NARINFO_BYTES_MAX, NarInfo, PathInfo, fingerprint, parse, show
from grange.store.path import NIX_STORE, StoreDir, StorePath

DATA = Path(__file__).parent / "data" / "narinfo"
REAL = {file.stem: file.read_text() for file in sorted(DATA.glob("*.narinfo"))}
KEY = PublicKey.parse((DATA / "farm.example-1.public").read_text())
SECRET = SecretKey.parse((DATA / "farm.example-1.secret").read_text())
GREETING = REAL["hz6iqfankyklxrxfrh6n5fka8i3l58qb"]


@pytest.mark.parametrize("text", REAL.values(), ids=REAL)
def test_a_real_narinfo_prints_as_it_was_read(text: str) -> None:
    assert show(parse(text, NIX_STORE), NIX_STORE) == text


@pytest.mark.parametrize("text", REAL.values(), ids=REAL)
def test_a_real_signature_verifies_and_is_made_again(text: str) -> None:
    info = parse(text, NIX_STORE).info
    (signature,) = info.signatures
    assert KEY.verify(fingerprint(info, NIX_STORE), signature)
    assert SECRET.sign(fingerprint(info, NIX_STORE)) == signature
    for other in (
        replace(info, nar_bytes=info.nar_bytes + 8),
        replace(info, nar_hash=Hash.of("sha256", b"other")),
        replace(info, references=(*info.references, StorePath("a" * 32 + "-other"))),
        replace(info, path=StorePath(info.path + "x")),
    ):
        assert not KEY.verify(fingerprint(other, NIX_STORE), signature)
    assert not KEY.verify(fingerprint(info, StoreDir("/gnu/store")), signature)


def test_fields_are_what_nix_wrote() -> None:
    narinfo = parse(GREETING, NIX_STORE)
    assert narinfo.info.nar_bytes == 224
    assert [path.name for path in narinfo.info.references] == ["greeting", "note.txt"]
    assert narinfo.info.deriver == "3yfpi2i8ff875qsba9w8rq0l76l9lj03-greeting.drv"
    assert narinfo.info.content_address is None
    assert (narinfo.compression, narinfo.file_bytes) == ("zstd", 171)
    assert fingerprint(narinfo.info, NIX_STORE) == (
        "1;/nix/store/hz6iqfankyklxrxfrh6n5fka8i3l58qb-greeting;"
        "sha256:1nkkyajlgank8qdamxk3h6jdlk1sjqx2himmz9jbqkis97x5spqz;224;"
        "/nix/store/hz6iqfankyklxrxfrh6n5fka8i3l58qb-greeting,"
        "/nix/store/yj9bysnmxmh9p7gq4pb2lglmhd41w2yz-note.txt"
    )


def test_a_fingerprint_sorts_its_references() -> None:
    info = parse(GREETING, NIX_STORE).info
    backwards = replace(info, references=info.references[::-1])
    assert fingerprint(backwards, NIX_STORE) == fingerprint(info, NIX_STORE)


def test_unknown_keys_and_derivers_are_passed_over() -> None:
    text = GREETING.replace("Deriver: 3yf", "System: x86_64-linux\nDeriver: 3yf")
    assert parse(text, NIX_STORE) == parse(GREETING, NIX_STORE)
    deriver = "3yfpi2i8ff875qsba9w8rq0l76l9lj03-greeting.drv"
    unknown = parse(GREETING.replace(deriver, "unknown-deriver"), NIX_STORE)
    assert unknown.info.deriver is None


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        *[
            (f"{key}: ", f"X{key}: ", f"lacks {key}")
            for key in ("StorePath", "URL", "Compression", "NarHash", "NarSize", "References")
        ],
        *[
            (f"{key}: ", f"{key}: x\n{key}: ", f"'{key}' twice")
            for key in ("StorePath", "URL", "FileHash", "FileSize", "NarSize", "Deriver")
        ],
        *[
            ("NarSize: 224", f"NarSize: {size}", "NarSize is")
            for size in (
                "",
                "0",
                "-1",
                "+1",
                "1_0",
                "0x10",
                " 1",
                "1 ",
                "012",
                "²",
                2**63,
                "9" * 5000,
            )
        ],
        ("FileSize: 171", "FileSize: many", "FileSize is"),
        ("NarHash: sha256:", "NarHash: ", "not 'algorithm:digest'"),
        ("NarHash: sha256:", "NarHash: sha512:", "should be of algorithm sha256"),
        ("NarHash: sha256:1", "NarHash: sha256:", "not a sha256 digest"),
        ("FileHash: sha256:0", "FileHash: sha256:", "not a sha256 digest"),
        ("References: ", "References:  ", "not the base name"),
        ("References: ", "References: /nix/store/", "not the base name"),
        ("References: ", "References: hz6iqfankyklxrxfrh6n5fka8i3l58qb-greeting ", "path twice"),
        ("StorePath: /nix", "StorePath: /gnu", "not a path directly in"),
        ("Deriver: 3", "Deriver: e", "not the base name"),
        ("Sig: farm.example-1:", "Sig: ", "no 'name:base64'"),
        ("Sig: ", "CA: fixed:sha256:0\nSig: ", "not a sha256 digest"),
        ("URL: ", "URL: \nX: ", "URL is ''"),
        ("Compression: zstd", "Compression: z std", "not one word"),
        ("URL", "\nURL", "no 'Key: value'"),
        ("==\n", "==", "cut short"),
    ],
)
def test_malformed_narinfos_are_refused(old: str, new: str, complaint: str) -> None:
    assert old in GREETING
    with pytest.raises(PeerError) as error:
        parse(GREETING.replace(old, new), NIX_STORE)
    assert complaint in str(error.value)


def test_the_largest_sizes_are_read_and_long_texts_are_not() -> None:
    assert parse(GREETING.replace("224", str(2**63 - 1)), NIX_STORE).info.nar_bytes == 2**63 - 1
    with pytest.raises(PeerError, match="is not read"):
        parse(GREETING + f"X: {'x' * NARINFO_BYTES_MAX}\n", NIX_STORE)


DIGESTS = st.binary(min_size=32, max_size=32).map(lambda digest: Hash("sha256", digest))
BASE32 = st.text("0123456789abcdfghijklmnpqrsvwxyz", min_size=32, max_size=32)
PATHS = BASE32.map(lambda digest: StorePath(digest + "-name"))
SIZES = st.integers(1, 2**63 - 1)
INFOS = st.builds(
    PathInfo,
    PATHS,
    DIGESTS,
    SIZES,
    st.sets(PATHS, max_size=4).map(lambda paths: tuple(sorted(paths))),
    st.none() | PATHS,
    st.none() | st.builds(ContentAddress, st.sampled_from(Method), DIGESTS),
    st.lists(st.builds(SECRET.sign, st.text()), max_size=2).map(tuple),
)
NARINFOS = st.builds(
    NarInfo,
    INFOS,
    st.just("nar/x.nar"),
    st.sampled_from(["none", "zstd"]),
    st.none() | DIGESTS,
    st.none() | SIZES,
)


@given(NARINFOS)
def test_any_narinfo_survives_printing(narinfo: NarInfo) -> None:
    assert parse(show(narinfo, NIX_STORE), NIX_STORE) == narinfo


@given(st.text(), st.integers(0, len(GREETING)), st.integers(0, 8))
def test_spoilt_text_raises_only_peer_errors(junk: str, start: int, length: int) -> None:
    for text in (junk, GREETING[:start] + junk + GREETING[start + length :]):
        try:
            parse(text, NIX_STORE)
        except PeerError:
            continue
