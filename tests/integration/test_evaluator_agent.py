"""Images of a farm whose coordinator has no Nix: an agent evaluates, and is replaced."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.integration.evaluating import repository
from tests.integration.farm import Farm, running_farm, until

pytestmark = pytest.mark.peer

PACKAGES: Final = Path(__file__).parents[1] / "packages"
CONFIG: Final = """\
[images]
wait_s = 1
precompute = "never"

[images.sources.set]
path = "{packages}"

[images.sources.empty]
git = "{repository}"

[images.evaluation]
here = false
timeout_s = 120
"""
EVALUATES: Final = ("--max-jobs", "2", "--feature", "grange-eval")


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("agent")
    repository(folder / "set", "{ system, ... }: { cacert = throw ''none''; }")
    config = folder / "farm.toml"
    config.write_text(CONFIG.format(packages=PACKAGES, repository=folder / "set"))
    with running_farm(folder / "farm", "--config", config, agents=()) as farm:
        farm.add_agent("first", *EVALUATES)
        yield farm


def pulled(farm: Farm, name: str, tag: str = "latest") -> httpx.Response:
    """The answer to who asks again as long as it is to wait."""

    def answer() -> httpx.Response | None:
        url = f"{farm.url}/v2/{name}/manifests/{tag}"
        said = httpx.get(url, trust_env=False, timeout=60)
        return None if said.status_code in (429, 503) else said

    return until(answer, f"{name} should be answered", *farm.agents.values())


def test_an_agent_evaluates_what_its_farm_makes_images_of(farm: Farm) -> None:
    said = pulled(farm, "greeting/python3packages.pyyaml")
    assert said.status_code == 200, said.text
    assert len(said.json()["layers"]) > 4
    wrong = pulled(farm, "greeting/aborting")
    assert wrong.status_code == 404
    assert "'aborting gives up'" in wrong.text
    unknown = pulled(farm, "empty/hello", "releas")
    assert unknown.status_code == 404
    assert "no branch or tag 'releas'" in unknown.text


def test_an_agent_that_offers_no_evaluations_gets_none(farm: Farm) -> None:
    farm.add_agent("plain")
    state = farm.root / "agents" / "plain" / "state"
    uuid, password = [(state / name).read_text().strip() for name in ("agent-id", "password")]
    said = httpx.post(
        f"{farm.url}/api/v1/evaluations/take",
        json={"evaluator": "plain", "wait_s": 0},
        auth=(uuid, password),
        trust_env=False,
    )
    assert said.status_code == 403, said.text
    assert "does not offer the feature grange-eval" in said.text


def test_another_agent_goes_on_where_one_was_killed(farm: Farm) -> None:
    farm.agents.pop("first").kill()
    farm.add_agent("second", *EVALUATES)
    said = pulled(farm, "htop")
    assert said.status_code == 200, said.text


def test_an_agent_that_is_told_to_stop_stops_evaluating(farm: Farm) -> None:
    process = farm.add_agent("third", *EVALUATES)
    until(lambda: "evaluates packages of images" in process.log, "it should evaluate", process)
    process.stop()
    farm.agents.pop("third")
    assert process.popen.returncode == 0, process.log
    assert "Traceback" not in process.log
