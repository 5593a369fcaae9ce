"""An image of packages that only an upstream has: they are brought here first, and stay."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from grange.store.keys import SecretKey
from tests.integration.farm import Farm, running_farm, until

pytestmark = pytest.mark.peer

NAMES: Final = "cacert", "iana-etc", "hello"
PACKAGES: Final = """\
{ system ? "x86_64-linux", config ? { }, overlays ? [ ] }:
PRELUDE
let make = "$b mkdir -p $out/bin; echo $name > $out/bin/$name"; in rec {
  cacert = step "cacert" { } make;
  iana-etc = step "iana-etc" { } make;
  library = step "library" { } make;
  hello = step "hello" { inherit library; } "${make}; echo $library >> $out/bin/hello";
  own = step "own" { inherit hello; } "${make}; echo $hello >> $out/bin/own";
}
"""
CONFIG: Final = """\
[images]
wait_s = 1
precompute = "upload"

[images.sources.main]
path = "packages.nix"

[images.evaluation]
here = true
"""


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Farm]:
    key = tmp_path / "key"  # of another name than this host's: Nix knows keys by their names
    key.write_text(SecretKey.generate("upstream-1", b"u" * 32).show())
    with running_farm(tmp_path / "upstream", "--key-file", key) as farm:
        packages = PACKAGES.replace("PRELUDE", farm.prelude)
        builds = [farm.submit(farm.drv(f"(({packages}) {{ }}).{name}")) for name in NAMES]
        for build in builds:
            farm.succeed(build)
        yield farm


def manifest(farm: Farm, name: str) -> dict[str, Any]:
    def answer() -> httpx.Response | None:
        said = httpx.get(f"{farm.url}/v2/{name}/manifests/latest", trust_env=False, timeout=60)
        return None if said.status_code == 429 else said

    said = until(answer, f"{name} should be made")
    assert said.status_code == 200, said.text
    body: dict[str, Any] = said.json()
    return body


def metric(farm: Farm, line: str) -> float:
    text = farm.get("/metrics").text
    return next(float(each.rpartition(" ")[2]) for each in text.splitlines() if line in each)


def test_what_only_an_upstream_has_is_brought_here(upstream: Farm, tmp_path: Path) -> None:
    [key] = upstream.client.status().public_keys
    config = tmp_path / "farm.toml"
    config.write_text(CONFIG)
    options = ("--config", config, "--substituter", upstream.url, key)
    with running_farm(tmp_path / "farm", *options) as farm:
        (tmp_path / "packages.nix").write_text(PACKAGES.replace("PRELUDE", farm.prelude))
        layers = manifest(farm, "hello")["layers"]
        assert len(layers) == 5  # cacert, hello, iana-etc, library and the root
        assert all(build.outcome == "cached" for build in farm.client.builds(limit=10))
        # What is built on top of it has its layer before anyone asks.
        made = 'grange_image_filled_total{result="made"}'
        filled = metric(farm, made)
        own = farm.succeed(farm.submit(farm.drv(f"(import {tmp_path}/packages.nix {{ }}).own")))
        until(lambda: metric(farm, made) > filled, "own should have its layer")
        upstream.stop()
        for layer in layers:
            answer = farm.get(f"/v2/hello/blobs/{layer['digest']}")
            assert f"sha256:{sha256(answer.content).hexdigest()}" == layer["digest"]
        before = metric(farm, 'grange_image_segments_total{from="nar"}')
        assert len(manifest(farm, "own")["layers"]) == 6
        assert metric(farm, 'grange_image_segments_total{from="nar"}') == before
        assert "\nURL: nar/" in farm.narinfo(own.outputs["out"]).text
        found = json.loads(farm.grange("image", "gc", "--deep", "--dry-run", "--json").stdout)
        assert found["blobs"] == 0  # all are young
        assert found["kept_blobs"] >= 6
