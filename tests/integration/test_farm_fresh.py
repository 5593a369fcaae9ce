"""A farm that trusts no store: what lies in an agent's store already is removed and built anew."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from grange.store.path import NIX_STORE
from tests.integration.farm import Farm, running_farm
from tests.peers import NixStore, instantiate

pytestmark = pytest.mark.peer

ANEW = "$b cat /proc/sys/kernel/random/uuid > $out"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("fresh")
    config = folder / "farm.toml"
    config.write_text('present_outputs = "delete"\n')
    with running_farm(folder / "farm", "--config", config) as farm:
        yield farm


def built_before(farm: Farm, agent: str, name: str, *options: str) -> Path:
    """The output of a step that somebody has built in the agent's store, outside the farm."""
    store = NixStore("2.8", farm.root / "agents" / agent / "store")
    expression = f"{farm.prelude}step \"{name}\" {{}} ''\n{ANEW}\n''"
    drv = NIX_STORE.show(instantiate(expression, store))
    store.run("nix-store", "--realise", drv, *options)
    [out] = store.run("nix-store", "--query", "--outputs", drv).split()
    return store.physical_path(NIX_STORE.parse(out))


def test_what_lies_there_is_built_anew(farm: Farm) -> None:
    there = built_before(farm, "one", "loose")
    before = there.read_text()
    build = farm.succeed(farm.submit(farm.step("loose", ANEW)))
    [attempt] = farm.attempts(build)
    assert (attempt.agent_name, attempt.outcome) == ("one", "succeeded")
    assert build.outputs["out"].endswith(there.name)
    assert there.read_text() != before


def test_what_cannot_be_removed_is_built_elsewhere(farm: Farm) -> None:
    root = farm.root / "kept"
    there = built_before(farm, "one", "kept", "--indirect", "--add-root", str(root))
    before = there.read_text()
    farm.add_agent("two", "--max-jobs", "1")
    build = farm.succeed(farm.submit(farm.step("kept", ANEW)))
    first, second = farm.attempts(build)
    assert (first.agent_name, first.outcome) == ("one", "output could not be removed")
    assert there.name in first.message
    assert (second.agent_name, second.outcome) == ("two", "succeeded")
    assert there.read_text() == before, "it is somebody's"
    shown = farm.grange("show", build.id).stdout
    assert "two" in shown
