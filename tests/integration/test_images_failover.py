"""Images of a farm with two coordinators: whoever is asked, and whoever is killed meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.farm import make_farm, until, wait_at
from tests.integration.test_farm_failover import SharedFarm
from tests.postgres import running_postgres

pytestmark = pytest.mark.peer

PACKAGES = """\
{ system ? "x86_64-linux", config ? { }, overlays ? [ ] }:
PRELUDE
let make = "$b mkdir -p $out/bin; echo $name > $out/bin/$name"; in {
  hello = step "hello" { } make;
  gated = step "gated" { } ''GATE
    ${make}'';
}
"""
CONFIG = """\
[images]
wait_s = 1
precompute = "never"

[images.sources.main]
path = "packages"
"""


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[SharedFarm]:
    config = tmp_path / "farm.toml"
    config.write_text(CONFIG)
    with running_postgres() as postgres:
        farm = make_farm(tmp_path / "farm")
        packages = tmp_path / "packages"
        packages.mkdir()
        text = PACKAGES.replace("PRELUDE", farm.prelude).replace("GATE", wait_at("gated"))
        (packages / "default.nix").write_text(text)
        shared: SharedFarm | None = None
        try:
            shared = SharedFarm(farm, postgres.new_database(), "--config", str(config))
            shared.add_agent("one")
            yield shared
        finally:
            farm.stop()
            if shared is not None:
                shared.stop()


def asked(url: str, name: str) -> httpx.Response:
    return httpx.get(f"{url}/v2/{name}/manifests/latest", trust_env=False, timeout=60)


def pulled(url: str, name: str) -> httpx.Response:
    """The answer of this coordinator, once the image is there and somebody leads."""

    def answer() -> httpx.Response | None:
        said = asked(url, name)
        return None if said.status_code in (429, 503) else said

    said = until(answer, f"{name} should be answered")
    assert said.status_code == 200, said.text
    return said


def test_an_image_is_made_though_its_leader_is_killed_while_a_standby_serves_it(
    shared: SharedFarm,
) -> None:
    farm = shared.farm
    farm.shut("gated")
    standby = shared.other.url

    def is_building() -> bool:
        said = asked(standby, "gated/hello")
        return said.status_code == 429 and "building gated" in said.text

    until(is_building, "the leader should make it for the standby")
    shared.lead.process.kill()
    shared.await_takeover()
    farm.open("gated")
    served = pulled(shared.lead.url, "gated/hello")
    [layer, *_] = served.json()["layers"]
    blob = httpx.get(f"{standby}/v2/gated/hello/blobs/{layer['digest']}", trust_env=False)
    assert len(blob.content) == layer["size"]
    builds = [each for each in farm.client.builds() if each.drv_path.endswith("-gated.drv")]
    assert len(farm.attempts(builds[0], "gated")) == 1  # the new leader waits for the same step
