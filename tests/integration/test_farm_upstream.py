"""A farm that takes from another farm what that one has built."""

from collections.abc import Iterator

import pytest

from grange.store.keys import SecretKey
from tests.integration.farm import Farm, running_farm

pytestmark = pytest.mark.peer

GRAPH = """\
let
  below = step "below" {} "echo below > $out";
  middle = step "middle" { inherit below; } "echo $below > $out";
in step "top" { inherit middle; } "echo $middle > $out"
"""
ABOVE = f'let old = {GRAPH}; in step "above" {{ inherit old; }} "echo $old > $out"'


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("upstream")
    key = folder / "key"  # of another name than this host's: Nix knows keys by their names
    key.write_text(SecretKey.generate("upstream-1", b"u" * 32).show())
    with running_farm(folder / "farm", "--key-file", key) as farm:
        farm.succeed(farm.submit(farm.drv(GRAPH)))
        yield farm


def test_what_an_upstream_has_is_not_built(
    upstream: Farm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    [key] = upstream.client.status().public_keys
    root = tmp_path_factory.mktemp("downstream") / "farm"
    with running_farm(root, "--substituter", upstream.url, key) as farm:
        cached = farm.submit(farm.drv(GRAPH))
        assert cached.outcome == "cached"
        assert farm.narinfo(cached.outputs["out"]).status_code == 200
        above = farm.succeed(farm.submit(farm.drv(ABOVE)))
        built = [step for step in farm.client.build_steps(above.id) if step.attempt is not None]
        assert [step.name for step in built] == ["above"], "the graph is pruned at its inputs"
        keys = " ".join([*farm.client.status().public_keys, key])
        code, errors = farm.nix_copy(above.outputs["out"], to=root / "third", keys=keys)
        assert code == 0, errors
        closure = (root / "third/nix/store").glob("*-below")
        assert [path.read_text() for path in closure] == ["below\n"]


def test_an_upstream_with_a_wrong_key_is_not_believed(
    upstream: Farm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    [key] = upstream.client.status().public_keys
    wrong = key.partition(":")[0] + ":" + "bXlzdGVyaW91cyBrZXkgb2YgMzIgYnl0ZXMgaGVyZSE="
    root = tmp_path_factory.mktemp("distrustful") / "farm"
    with running_farm(root, "--substituter", upstream.url, wrong) as farm:
        build = farm.succeed(farm.submit(farm.drv(GRAPH)))
        steps = farm.client.build_steps(build.id)
        assert {step.name for step in steps} == {"top", "middle", "below"}
        assert all(len(farm.client.attempts(step.id)) == 1 for step in steps)
        assert farm.coordinator is not None
        assert "signature" in farm.coordinator.log, "the operator is told"


def test_an_upstream_that_is_gone_costs_nothing_but_its_paths(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("alone") / "farm"
    key = "gone-1:bXlzdGVyaW91cyBrZXkgb2YgMzIgYnl0ZXMgaGVyZSE="
    with running_farm(root, "--substituter", "http://127.0.0.1:9", key) as farm:
        farm.succeed(farm.submit(farm.drv(GRAPH)))
