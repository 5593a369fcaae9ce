"""What operators turn while a farm of real processes works, and what a restart keeps of it."""

import json
import time
from collections.abc import Iterator

import pytest

from grange.client.models import PauseRequest, SubmitRequest
from grange.errors import PeerError
from grange.store.keys import SecretKey
from tests.integration.farm import Farm, running_farm

pytestmark = pytest.mark.peer

RULES = """\
[projects.few]
queued_max = 2
share = 2.0
priority = 7

[scheduling]
agents = "cores"
"""


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("knobs")
    (folder / "grange.toml").write_text(RULES)
    with running_farm(folder / "farm", "--config", folder / "grange.toml") as farm:
        yield farm


def restart(farm: Farm) -> None:
    assert farm.coordinator is not None
    farm.coordinator.kill()
    farm.start_coordinator()


def why(farm: Farm, build: str) -> str:
    return farm.grange("why", build).stdout


def test_a_paused_farm_begins_nothing_even_after_a_restart(farm: Farm) -> None:
    said = farm.grange("pause", "--reason", "the roof is wet")
    assert said.stdout == "the farm is paused: the roof is wet\n", said.stderr
    build = farm.submit(farm.step("dry", "echo > $out"))
    assert "the roof is wet" in why(farm, build.id)
    restart(farm)
    assert "the roof is wet" in why(farm, build.id)
    assert farm.client.build(build.id).outcome is None
    assert farm.grange("resume").stdout == "nothing is paused\n"
    farm.succeed(build)


def test_a_paused_project_waits_and_others_do_not(farm: Farm) -> None:
    farm.client.pause(PauseRequest(project="default", reason="too many"))
    drv = farm.step("waits", "echo > $out")
    build = farm.submit(drv)
    assert "Project default is paused (too many)." in why(farm, build.id)
    restart(farm)
    assert "too many" in farm.grange("projects").stdout
    other = farm.client.submit(SubmitRequest(drv_paths=[drv], project="other")).builds[0]
    farm.succeed(other)
    assert farm.finish(build).outcome == "succeeded", "what another project wants is built"
    assert farm.client.resume(PauseRequest(project="default")).projects == []


def test_a_paused_agent_gets_nothing(farm: Farm) -> None:
    agents = [agent.name for agent in farm.client.agents()]
    for name in agents:
        assert farm.grange("pause", "--agent", name).returncode == 0
    assert set(farm.agent_states().values()) == {"paused"}
    build = farm.submit(farm.step("later", "echo > $out"))
    assert "it is paused" in why(farm, build.id)
    for name in agents:
        assert farm.grange("resume", "--agent", name).returncode == 0
    farm.succeed(build)
    assert farm.grange("pause", "--agent", "nobody").returncode == 2


def test_a_project_may_not_have_more_builds_than_its_quota(farm: Farm) -> None:
    farm.client.pause(PauseRequest())
    drvs = [farm.step(f"few{i}", "echo > $out") for i in range(3)]
    for drv in drvs:
        farm.client.cancel(farm.submit(drv).id)  # so that the farm knows them
    request = SubmitRequest(drv_paths=drvs, project="few")
    with pytest.raises(PeerError, match=r"2 unfinished builds .* 3 more are too many"):
        farm.client.submit(request)
    ids = ["11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"]
    two = SubmitRequest(drv_paths=drvs[:2], ids=ids, project="few")
    builds = farm.client.submit(two).builds
    assert farm.client.submit(two).builds == builds, "saying it twice is harmless"
    with pytest.raises(PeerError, match="too many"):
        farm.client.submit(SubmitRequest(drv_paths=drvs[2:], project="few"))
    [few] = [each for each in farm.client.projects() if each.name == "few"]
    assert (few.queued, few.queued_max, few.share, few.priority) == (2, 2, 2.0, 7)
    farm.client.resume(PauseRequest())
    for build in builds:
        farm.succeed(build)
    [few] = [each for each in farm.client.projects() if each.name == "few"]
    assert few.queued == 0
    assert few.agent_s > 0


def test_priorities_go_up_and_down_and_stay_over_a_restart(farm: Farm) -> None:
    farm.client.pause(PauseRequest())
    build = farm.submit(farm.step("urgent", "echo > $out"))
    assert farm.grange("priority", build.id, "50").returncode == 0
    assert farm.client.build(build.id).priority == 50
    assert farm.grange("priority", build.id, "-5").returncode == 0
    restart(farm)
    assert farm.client.build(build.id).priority == -5
    farm.client.resume(PauseRequest())
    farm.succeed(build)
    assert farm.grange("priority", build.id, "1").returncode == 2, "it has ended"


def test_a_deferred_build_waits_over_a_restart(farm: Farm) -> None:
    drv = farm.step("later-on", "echo > $out")
    done = farm.grange(
        *("build", drv, "--store", farm.here.root, "--detach", "--json", "--defer-until", "+1h")
    )
    [build] = json.loads(done.stdout)["builds"]
    assert 3500 < build["not_before"] - time.time() < 3700
    assert "deferred: it begins in 60 min." in why(farm, build["id"])
    restart(farm)
    assert "deferred" in why(farm, build["id"])
    farm.client.cancel(build["id"])
    again = farm.client.retry(build["id"], time.time() + 3600)
    assert again.outcome is None
    assert "deferred" in why(farm, build["id"])
    farm.client.cancel(build["id"])
    farm.succeed(farm.client.retry(build["id"]))


def test_an_agent_that_demands_a_tag_builds_only_what_has_it(farm: Farm) -> None:
    farm.add_agent("picky", "--max-jobs", "1", "--mandatory-tag", "site=north")
    plain = farm.succeed(farm.submit(farm.step("plain", "echo > $out")))
    tagged = farm.succeed(farm.submit(farm.step("tagged", "echo > $out"), "site=north"))
    [attempt] = farm.attempts(plain)
    assert attempt.agent_name != "picky"
    [attempt] = farm.attempts(tagged)
    assert attempt.agent_name == "picky"


# --- By path -----------------------------------------------------------------------------------


GRAPH = """\
let below = step "below" {} "echo below > $out";
in step "top" { inherit below; } "echo $below > $out"
"""


def test_a_build_by_the_path_of_its_derivation_alone(
    farm: Farm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    drv = farm.drv(GRAPH)
    farm.succeed(farm.submit(drv))
    [key] = farm.client.status().public_keys
    folder = tmp_path_factory.mktemp("by-path")
    (folder / "grange.toml").write_text(
        f'[[derivation_sources]]\nurl = "{farm.url}/"\npublic_keys = ["{key}"]\n'
    )
    own = folder / "key"  # of another name than this host's: Nix knows keys by their names
    own.write_text(SecretKey.generate("other-1", b"o" * 32).show())
    options = ("--config", folder / "grange.toml", "--key-file", own)
    with running_farm(folder / "farm", *options) as other:
        done = other.grange("build", drv, "--by-path", "--json")
        assert done.returncode == 0, done.stderr
        [build] = json.loads(done.stdout)["builds"]
        assert build["outcome"] == "succeeded", "outputs are no business of this source"
        assert [step.name for step in other.client.build_steps(build["id"])] == ["top", "below"]
        answer = other.client.fetch_derivations([drv])
        assert (answer.derivations, answer.sources) == (0, 0)
        nowhere = drv.replace("top", "tip")
        with pytest.raises(PeerError, match="on none of the derivation sources"):
            other.client.fetch_derivations([nowhere])


def test_a_farm_without_sources_of_derivations_says_so(farm: Farm) -> None:
    done = farm.grange("build", farm.drv(GRAPH), "--by-path")
    assert done.returncode == 2
    assert "no derivation sources" in done.stderr
