"""Keys: Nix's own pair works, nothing shows the secret, and no other signature passes."""

from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import OperatorError
from grange.store.keys import PublicKey, SecretKey, TrustedKeys

DATA = Path(__file__).parent / "data" / "narinfo"
SECRET = (DATA / "farm.example-1.secret").read_text()
PUBLIC = (DATA / "farm.example-1.public").read_text()
KEY = SecretKey.parse(SECRET)


def test_a_key_file_of_nix_is_read_and_shown() -> None:
    assert KEY.show() == SECRET
    assert KEY.public.show() == PUBLIC
    assert KEY.public == PublicKey.parse(PUBLIC + "\n")
    assert SecretKey.parse(SECRET + "\n") == KEY


@given(st.binary(min_size=32, max_size=32), st.text())
def test_what_a_key_signs_its_public_half_verifies(seed: bytes, text: str) -> None:
    key = SecretKey.generate("farm-1", seed)
    assert SecretKey.parse(key.show()) == key
    signature = key.sign(text)
    assert signature.startswith("farm-1:")
    assert key.public.verify(text, signature)
    assert not key.public.verify(text + " ", signature)
    assert not KEY.public.verify(text, signature.replace("farm-1", KEY.public.name))


def test_the_secret_stays_out_of_sight() -> None:
    seed = b64encode(KEY._seed).decode()[:20]
    for shown in (repr(KEY), str(KEY), f"{[KEY]}"):
        assert seed not in shown
        assert repr(KEY._seed) not in shown
    with pytest.raises(OperatorError) as error:
        SecretKey.parse(SECRET[:-8])
    assert seed not in str(error.value)
    assert KEY.public.name not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name:",
        SECRET.partition(":")[2],
        ":" + SECRET.partition(":")[2],
        PUBLIC,
        SECRET + "A",
        # The halves do not belong together.
        "name:" + b64encode(bytes(64)).decode(),
    ],
)
def test_other_texts_are_no_secret_keys(text: str) -> None:
    with pytest.raises(OperatorError, match="not a secret key"):
        SecretKey.parse(text)


@pytest.mark.parametrize("text", ["", "name", ":" + "A" * 43 + "=", SECRET, "a b" + PUBLIC, "n:é"])
def test_other_texts_are_no_public_keys(text: str) -> None:
    with pytest.raises(OperatorError, match="not a public key"):
        PublicKey.parse(text)


@pytest.mark.parametrize("name", ["a:b", "a b", "", " a", "a\n"])
def test_a_key_needs_a_usable_name(name: str) -> None:
    with pytest.raises(OperatorError):
        SecretKey.generate(name, bytes(32))


@given(st.text() | st.binary().map(lambda data: f"{KEY.public.name}:{b64encode(data).decode()}"))
def test_junk_is_no_signature(junk: str) -> None:
    assert not KEY.public.verify("text", junk)


def test_one_trusted_signature_suffices() -> None:
    old, new = SecretKey.generate("farm", bytes(32)), SecretKey.generate("farm", b"n" * 32)
    stranger = SecretKey.generate("stranger", b"s" * 32)
    trusted = TrustedKeys.parse(f"{PUBLIC} {old.public.show()}\n{new.public.show()}")
    for key in (KEY, old, new):
        assert trusted.signer("text", ["junk", stranger.sign("text"), key.sign("text")]) == (
            key.public
        )
    assert trusted.signer("text", [stranger.sign("text"), new.sign("other")]) is None
    assert trusted.signer("text", []) is None
    assert TrustedKeys.parse("").signer("text", [KEY.sign("text")]) is None
