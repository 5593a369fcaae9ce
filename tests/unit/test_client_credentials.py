"""Where a client finds its token, and whom it shows it to."""

from pathlib import Path

import httpx
import pytest

from grange.client import credentials
from grange.client.api import GrangeClient
from grange.client.credentials import authorization_for, use_token_file
from grange.errors import OperatorError, OutsideError

HERE = "http://127.0.0.1:7380"
FAR = "https://farm.example"
STATUS = '{"error": "no such thing", "fault": "request"}'


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any token."""
    for name in ("GRANGE_TOKEN", "GRANGE_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(credentials, "default_state_dir", lambda: tmp_path / "state")
    monkeypatch.setattr(credentials, "_told", None)
    return tmp_path


def kept(path: Path, token: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{token}\n")
    return path


def test_the_first_that_is_found_is_shown(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert authorization_for(HERE) is None
    kept(empty / "state/admin-token", "grange_own")
    assert authorization_for(HERE) == "Bearer grange_own"
    kept(empty / ".netrc", "machine 127.0.0.1 login me password grange_netrc").chmod(0o600)
    assert authorization_for(HERE) == "Basic bWU6Z3JhbmdlX25ldHJj"
    monkeypatch.setenv("GRANGE_TOKEN_FILE", str(kept(empty / "file", "grange_file")))
    assert authorization_for(HERE) == "Bearer grange_file"
    monkeypatch.setenv("GRANGE_TOKEN", "grange_variable")
    assert authorization_for(HERE) == "Bearer grange_variable"
    use_token_file(kept(empty / "told", "grange_told"))
    assert authorization_for(FAR) == "Bearer grange_told"


@pytest.mark.parametrize("url", [FAR, "http://192.0.2.1:7380", "http://127.0.0.1.evil.example"])
def test_no_other_machine_sees_this_ones_token(empty: Path, url: str) -> None:
    kept(empty / "state/admin-token", "grange_own")
    kept(empty / ".netrc", "default login me password grange_any").chmod(0o600)
    assert authorization_for(url) is None


@pytest.mark.parametrize("text", ["", "hunter2", "grange_a b\x07", "grange_é"])
def test_what_is_no_token_is_named_and_not_shown(
    empty: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    file = kept(empty / "file", text)
    monkeypatch.setenv("GRANGE_TOKEN_FILE", str(file))
    with pytest.raises(OperatorError, match="holds no token") as caught:
        authorization_for(HERE)
    assert str(file) in str(caught.value)
    assert not text or text not in str(caught.value)
    monkeypatch.setenv("GRANGE_TOKEN_FILE", str(empty / "none"))
    with pytest.raises(OperatorError, match="cannot be read"):
        authorization_for(HERE)


def redirecting(first: str, second: str, token: Path) -> tuple[GrangeClient, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if str(request.url).startswith(first):
            path = request.url.raw_path.decode()
            return httpx.Response(307, headers={"location": second + path})
        return httpx.Response(200, json=[])

    transport = httpx.MockTransport(answer)
    return GrangeClient(first, token_file=token, transport=transport), seen


def test_the_leader_is_shown_the_token_too(empty: Path) -> None:
    token = kept(empty / "file", "grange_x")
    client, seen = redirecting("http://a.example", "http://b.example", token)
    assert client.agents() == []
    assert [request.headers["authorization"] for request in seen] == ["Bearer grange_x"] * 2
    assert seen[1].url == "http://b.example/api/v1/agents"


def test_what_was_sealed_is_not_sent_on_in_the_clear(empty: Path) -> None:
    token = kept(empty / "file", "grange_x")
    client, seen = redirecting("https://a.example", "http://b.example", token)
    client.agents()
    assert "authorization" not in seen[1].headers


def test_a_circle_of_redirects_ends(empty: Path) -> None:
    token = kept(empty / "file", "grange_x")
    client, _ = redirecting("http://a.example", "http://a.example", token)
    with pytest.raises(OutsideError, match="in circles"):
        client.agents()


def test_a_body_goes_to_the_leader_whole(empty: Path) -> None:
    token = kept(empty / "file", "grange_x")
    client, seen = redirecting("http://a.example", "http://b.example", token)
    client.claim_sources([])
    assert (seen[1].method, seen[1].content) == ("POST", b"[]")
