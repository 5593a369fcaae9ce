"""How what makes images hangs in a farm: who is asked, and what becomes of a defect."""

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from grange import main_images
from grange.client.image_models import MakeAnswer, SourceSpec
from grange.errors import OperatorError, OutsideError
from grange.images.settings import ImageSettings, PackageSource
from grange.main_images import _is_evaluated_here, _kept_up, _LeadersMaker
from grange.oci.manifest import OCI_GZIP
from grange.oci.names import Tag, parse_name
from grange.ports import ImageRequest, Made, PackageSet

REQUEST = ImageRequest(parse_name("hello"), Tag("latest"), OCI_GZIP)
HERE = Made("sha256:" + "1" * 64, PackageSet("main", "5" * 64, "c" * 40))
SETTINGS = ImageSettings.of(
    PackageSource(SourceSpec(name="main", kind="path", location="/x"), "5" * 64)
)


class Here:
    async def make(self, _request: ImageRequest, _wait_s: float) -> Made:
        return HERE


async def test_whoever_leads_is_asked() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        made = MakeAnswer(state="ready", digest="sha256:" + "2" * 64, commit="d" * 40)
        return httpx.Response(200, json=made.model_dump())

    leader: list[Any] = [None]
    farm: Any = SimpleNamespace(
        is_leading=True,
        leadership=SimpleNamespace(leader=lambda: leader[0]),
        settings=SimpleNamespace(cache_url="http://here"),
    )
    here: Any = Here()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        maker = _LeadersMaker(farm, here, http, lambda: "Bearer x", lambda: SETTINGS)
        assert await maker.make(REQUEST, 5) == HERE
        assert asked == []
        farm.is_leading = False
        for nobody in (None, SimpleNamespace(url="http://here")):
            leader[0] = nobody
            with pytest.raises(OutsideError, match="no coordinator leads the farm just now"):
                await maker.make(REQUEST, 5)
        leader[0] = SimpleNamespace(url="http://there")
        made = await maker.make(REQUEST, 5)
    assert isinstance(made, Made)
    assert (made.digest, made.packages.commit) == ("sha256:" + "2" * 64, "d" * 40)
    [request] = asked
    assert str(request.url) == "http://there/api/v1/images/make"
    assert request.headers["authorization"] == "Bearer x"
    assert json.loads(request.content)["name"] == "hello"


async def test_a_defect_is_told_and_what_failed_begins_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(main_images, "AGAIN_S", 0.0)
    begun: list[int] = []
    runs_again = asyncio.Event()

    async def run() -> None:
        begun.append(1)
        if len(begun) == 1:
            raise ExceptionGroup("of a task group", [KeyError("no such thing")])
        runs_again.set()
        await asyncio.Event().wait()

    caplog.set_level(logging.ERROR)
    task = asyncio.create_task(_kept_up("the filler", run))
    await asyncio.wait_for(runs_again.wait(), 60)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert "the filler failed, and begins anew" in caplog.text
    assert "no such thing" in caplog.text


def test_packages_are_evaluated_where_nix_is_unless_the_file_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("grange.main_images.shutil.which", lambda _: "/bin/nix-instantiate")
    assert [_is_evaluated_here(each) for each in (None, True, False)] == [True, True, False]
    monkeypatch.setattr("grange.main_images.shutil.which", lambda _: None)
    assert [_is_evaluated_here(each) for each in (None, False)] == [False, False]
    with pytest.raises(OperatorError, match="no nix-instantiate on the PATH"):
        _is_evaluated_here(True)
