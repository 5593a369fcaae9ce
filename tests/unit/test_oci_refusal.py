"""The words of refusals."""

import json

from hypothesis import given
from hypothesis import strategies as st

from grange.oci.refusal import MESSAGE_CHARS_MAX, Code, RefusedError


def words_of(body: bytes) -> str:
    [error] = json.loads(body)["errors"]
    words: str = error["message"]
    return words


def test_what_a_builder_says_does_not_steer_the_terminal_of_who_pulls() -> None:
    said = "it failed:\n\x1b]0;title\x07\x1b[2J> \x01\x05no luck\r\x9b31m, \ud83d"
    error = RefusedError(Code.MANIFEST_UNKNOWN, said)
    assert str(error) == "it failed:\n ]0;title  [2J>   no luck  31m,  "
    assert words_of(error.body()) == str(error)


@given(st.text(max_size=3 * MESSAGE_CHARS_MAX))
def test_any_words_can_be_told(text: str) -> None:
    words = words_of(RefusedError(Code.DENIED, text).body())
    assert len(words) <= MESSAGE_CHARS_MAX
    assert all(char.isprintable() or char in "\n\t" for char in words)
