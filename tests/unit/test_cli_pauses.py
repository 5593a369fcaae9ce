"""`grange pause` and `grange pauses`."""

import json

import httpx
import pytest
from click.testing import CliRunner

from grange.cli import knobs
from grange.client.api import GrangeClient
from grange.client.models import PausedView, PausesView, ProjectView

PAUSED = PausesView(farm=None, projects=[PausedView(name="wbe", reason="")], agents=[])
WEB = ProjectView(
    name="web", share=1, priority=0, running=0, running_max=0, queued=0, queued_max=0, agent_s=0,
    use=0,
)  # fmt: skip


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a farm with the project web is asked."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if request.url.path.endswith("/projects"):
            return httpx.Response(200, json=[WEB.model_dump()])
        return httpx.Response(200, json=PAUSED.model_dump())

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(knobs, "GrangeClient", lambda url: GrangeClient(url, transport=transport))
    return asked


def test_what_is_paused_is_listed_without_changing_anything(farm: list[str]) -> None:
    shown = CliRunner().invoke(knobs.pauses, ["--url", "http://farm"])
    assert shown.stdout == "project wbe is paused\n"
    as_json = CliRunner().invoke(knobs.pauses, ["--url", "http://farm", "--json"]).stdout
    assert PausesView.model_validate(json.loads(as_json)) == PAUSED
    assert farm == ["GET /api/v1/pauses"] * 2


def test_a_project_that_nobody_knows_is_paused_with_a_word_of_doubt(farm: list[str]) -> None:
    doubted = CliRunner().invoke(knobs.pause, ["--url", "http://farm", "--project", "wbe"])
    assert "project wbe has no rule and no build here" in doubted.stderr
    known = CliRunner().invoke(knobs.pause, ["--url", "http://farm", "--project", "web"])
    assert (known.exit_code, known.stderr) == (0, "")
    assert farm.count("POST /api/v1/pause") == 2
