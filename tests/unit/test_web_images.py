"""What requests for images may say: whatever it is, they mean an image or are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from grange.client.image_models import MakeRequest
from grange.oci.names import Digest, ImageName
from grange.oci.refusal import RefusedError
from grange.ports import ImageRequest
from grange.web.images import request_of

SOURCES = ["main", "ours.more"]
MEANT = ["main", "ours.more", "shell", "arm64", "hello", "git", "a.b", "1password"]
ODD = ["entrypoint.sh", "user.1.2", "user.", "..", "", "A", "%2e", "é", "x" * 300]
PARTS = st.sampled_from([*MEANT, *ODD])
NAMES = st.lists(PARTS, max_size=6).map("/".join) | st.text(max_size=30)
BODIES = st.fixed_dictionaries(
    {"name": NAMES},
    optional={
        "tag": st.sampled_from(["latest", "v1", "a" * 129, ".", "sha256-" + "0" * 64, "x.sig"])
        | st.text(max_size=10),
        "system": st.sampled_from(["", "x86_64-linux", "aarch64-linux", "i686-linux"]),
        "family": st.sampled_from(["oci", "docker", "x"]),
        "compression": st.sampled_from(["gzip", "zstd", "none"]),
        "entrypoint": st.lists(st.text(max_size=5), max_size=3),
        "command": st.lists(st.text(max_size=5), max_size=3),
        "user": st.text(max_size=5) | st.sampled_from(["root", "1:2", "a b"]),
        "wait_s": st.floats(),
    },
)


@given(BODIES)
def test_anything_is_an_image_or_is_refused(body: dict[str, object]) -> None:
    try:
        wanted = MakeRequest.model_validate(body)
        request = request_of(wanted, SOURCES)
    except (RefusedError, ValidationError):
        return
    assert isinstance(request, ImageRequest)
    if set(SOURCES).isdisjoint(request.name.packages):
        assert request.name.source != SOURCES[0], "that is what names without a source mean"
    assert [*request.wish.entrypoint, *request.wish.command] == wanted.entrypoint + wanted.command
    again = request_of(wanted.model_copy(update={"name": request.name.show()}), SOURCES)
    assert again.name == request.name


@pytest.mark.parametrize(
    ("system", "is_arm64"), [("", True), ("x86_64-linux", False), ("aarch64-linux", True)]
)
def test_a_system_that_is_said_comes_before_that_of_the_name(system: str, is_arm64: bool) -> None:
    wanted = MakeRequest.model_validate({"name": "arm64/hello", "system": system})
    name: ImageName = request_of(wanted, SOURCES).name
    assert name.is_arm64 is is_arm64


def test_a_digest_is_no_tag() -> None:
    wanted = MakeRequest(name="hello", tag=str(Digest.parse("sha256:" + "0" * 64)))
    with pytest.raises(RefusedError):
        request_of(wanted, SOURCES)
