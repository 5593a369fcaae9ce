"""From an image's name to its manifest, through a whole farm: evaluated, built, put together."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from grange.client.models import BuildView
from tests.integration.farm import Farm, running_farm, until, wait_at
from tests.integration.image_pulls import digest, skopeo

pytestmark = pytest.mark.peer

# What every image has, and packages that wait, fail, or need one another.
PACKAGES: Final = """\
{ system ? "x86_64-linux", config ? { }, overlays ? [ ] }:
PRELUDE
let make = "$b mkdir -p $out/bin; echo $name > $out/bin/$name"; in rec {
  cacert = step "cacert" { } make;
  iana-etc = step "iana-etc" { } make;
  hello = step "hello" { } make;
  library = step "library" { } make;
  gated = step "gated" { inherit library; } ''GATE
    ${make}'';
  flop = step "flop" { } "echo no luck today; exit 1";
  flopper = step "flopper" { inherit flop; } make;
  lost = step "lost" { } make;
  loser = step "loser" { inherit lost; } "${make}; echo $lost >> $out/bin/loser";
  stopped = step "stopped" { } ''STOP
    ${make}'';
  slow = step "slow" { } ''SLOW
    ${make}'';
  sourced = step "sourced" { text = builtins.path { name = "text"; path = ./text; }; }
    "$b cp $text $out";
  capitalLetters = step "capitals" { } make;
}
"""
CONFIG: Final = """\
[images]
wait_s = 1
precompute = "never"

[images.sources.main]
path = "packages"

[images.evaluation]
here = {here}

[retention]
keep = {{ last = 0, days = 0 }}
unreferenced_days = 0
promise_s = 0.001
"""


def write_config(folder: Path, *, here: bool) -> Path:
    config = folder / "farm.toml"
    config.write_text(CONFIG.format(here=str(here).lower()))
    return config


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("road")
    config = write_config(folder, here=True)
    with running_farm(folder / "farm", "--config", config) as farm:
        text = PACKAGES.replace("PRELUDE", farm.prelude).replace("GATE", wait_at("gated"))
        packages = folder / "packages"
        packages.mkdir()
        text = text.replace("STOP", wait_at("stopped")).replace("SLOW", wait_at("slow"))
        (packages / "default.nix").write_text(text)
        (packages / "text").write_text("a source\n")
        yield farm


def asked(farm: Farm, name: str, tag: str = "latest") -> httpx.Response:
    """One request, as a client makes it that gives up soon."""
    url = f"{farm.url}/v2/{name}/manifests/{tag}"
    return httpx.get(url, trust_env=False, timeout=60)


def pulled(farm: Farm, name: str, tag: str = "latest") -> httpx.Response:
    """The answer once it is another one than to wait."""

    def answer() -> httpx.Response | None:
        said = asked(farm, name, tag)
        return None if said.status_code == 429 else said

    return until(answer, f"{name} should be answered")


def manifest(farm: Farm, name: str) -> dict[str, Any]:
    said = pulled(farm, name)
    assert said.status_code == 200, said.text
    body: dict[str, Any] = said.json()
    return body


def error_of(said: httpx.Response) -> dict[str, Any]:
    [error] = said.json()["errors"]
    assert isinstance(error, dict)
    return error


def builds_of(farm: Farm, name: str) -> list[BuildView]:
    found = farm.client.builds(limit=100)
    return [each for each in found if each.drv_path.endswith(f"-{name}.drv")]


def test_many_pullers_of_one_new_image_wait_for_one_build_which_outlives_them(farm: Farm) -> None:
    farm.shut("gated")
    with ThreadPoolExecutor(12) as pool:
        answers = [*pool.map(lambda _: asked(farm, "gated/hello"), range(12))]
    assert {answer.status_code for answer in answers} == {429}
    for answer in answers:
        assert int(answer.headers["retry-after"]) >= 1
        assert error_of(answer)["code"] == "TOOMANYREQUESTS"

    def is_building() -> bool:
        return "building gated: " in error_of(asked(farm, "hello/gated"))["message"]

    until(is_building, "gated should be built")
    [build] = builds_of(farm, "gated")
    assert build.project == "images"
    assert error_of(asked(farm, "gated/hello"))["detail"]["builds"].count(build.id) == 1
    farm.open("gated")
    layers = manifest(farm, "gated/hello")["layers"]
    assert len(layers) == 5  # cacert, gated, hello, iana-etc and the root
    assert len(builds_of(farm, "gated")) == 1
    assert len(farm.attempts(farm.finish(build), "gated")) == 1


def test_a_client_that_is_told_to_wait_does_and_has_its_image(farm: Farm, tmp_path: Path) -> None:
    farm.shut("slow")
    before = told_to_wait(farm)
    with ThreadPoolExecutor(1) as pool:
        source = f"docker://127.0.0.1:{farm.http_port}/slow"
        copied = pool.submit(skopeo, "copy", "--src-tls-verify=false", source, f"dir:{tmp_path}")
        until(lambda: copied.done() or told_to_wait(farm) > before, "skopeo should be answered")
        farm.open("slow")
        copied.result()
    assert told_to_wait(farm) > before
    assert digest((tmp_path / "manifest.json").read_bytes()) == digest(asked(farm, "slow").content)


def told_to_wait(farm: Farm) -> float:
    """How many manifests were answered 429 since the coordinator started."""
    line = 'grange_registry_requests_total{status="429",what="manifest"} '
    found = [each for each in farm.get("/metrics").text.splitlines() if each.startswith(line)]
    return float(found[0].removeprefix(line)) if found else 0.0


def test_a_build_that_fails_is_told_with_its_log_and_what_to_do(farm: Farm) -> None:
    said = pulled(farm, "flopper")
    assert said.status_code == 404
    error = error_of(said)
    assert error["code"] == "MANIFEST_UNKNOWN"
    [build] = builds_of(farm, "flopper")
    words = error["message"]
    assert words.startswith("flopper cannot be built, because of flop: ")
    assert f"grange retry {build.id}" in words
    log = farm.get(error["detail"]["log"].removeprefix(farm.url))
    assert "no luck today" in log.text
    assert f"grange log {build.id}" in words
    assert "no luck today" in farm.grange("log", build.id).stdout
    # Another image with it in: it would fail as it did, and that is not tried.
    again = error_of(pulled(farm, "flopper/hello"))
    assert again["detail"] == error["detail"]
    assert len(builds_of(farm, "flopper")) == 1
    assert "because of" not in error_of(pulled(farm, "flop"))["message"]


def test_what_was_lost_of_the_cache_is_built_again(farm: Farm) -> None:
    manifest(farm, "hello")  # so that the packages are evaluated
    drv = farm.drv(f"(import {farm.root.parent}/packages {{ }}).loser")
    build = farm.succeed(farm.submit(drv))
    [loser] = build.outputs.values()
    references = farm.narinfo(loser).text.split("References: ")[1].split("\n")[0].split()
    [lost] = [each for each in references if each.endswith("-lost")]
    for path in (loser, f"/nix/store/{lost}"):
        url = farm.narinfo(path).text.split("URL: ")[1].split("\n")[0]
        [file] = (farm.state_dir).rglob(url.rpartition("/")[2])
        file.unlink()
    assert len(manifest(farm, "loser")["layers"]) == 5  # with lost, cacert, iana-etc and the root
    assert len(farm.attempts(build, "loser")) == 2
    assert len(farm.attempts(build, "lost")) == 2


def test_a_layer_that_nothing_can_be_made_of_again_is_built_anew(farm: Farm) -> None:
    before = manifest(farm, "loser")["layers"]
    drv = farm.drv(f"(import {farm.root.parent}/packages {{ }}).loser")
    build = farm.finish(farm.submit(drv))
    tries = len(farm.attempts(build, "loser"))
    [loser] = build.outputs.values()
    url = farm.narinfo(loser).text.split("URL: ")[1].split("\n")[0]
    for file in [url.rpartition("/")[2], *[each["digest"][7:] for each in before]]:
        for found in farm.state_dir.rglob(file):
            found.unlink()
    for segment in [*farm.state_dir.rglob("images/segments/*/*")]:
        segment.unlink()

    def are_there() -> bool:
        layers = manifest(farm, "loser")["layers"]
        return layers == before and all(is_there(farm, each["digest"]) for each in layers)

    assert not are_there()
    until(are_there, "the farm should build what is lost, and serve the same layers")
    assert len(farm.attempts(build, "loser")) == tries + 1


def is_there(farm: Farm, digest: str) -> bool:
    """Whether the blob comes, whole."""
    url = f"{farm.url}/v2/loser/blobs/{digest}"
    try:
        return httpx.get(url, trust_env=False, timeout=60).status_code == 200
    except httpx.RemoteProtocolError:
        return False


def test_a_build_that_is_cancelled_is_told_as_such(farm: Farm) -> None:
    farm.shut("stopped")
    assert asked(farm, "stopped").status_code == 429
    [build] = until(lambda: builds_of(farm, "stopped"), "it should be submitted")
    farm.client.cancel(build.id)
    error = error_of(pulled(farm, "stopped"))
    assert (error["code"], error["message"]) == (
        "MANIFEST_UNKNOWN",
        f"the build of stopped was cancelled (build {build.id}); it is built anew when the image "
        "is asked for again",
    )
    farm.open("stopped")


def test_an_image_whose_sources_were_collected_is_evaluated_and_built_anew(farm: Farm) -> None:
    first = manifest(farm, "sourced")
    dropped = farm.post("/api/v1/images/gc", json={"unused_s": 0}).json()
    assert dropped["images"]
    gone = farm.client.collect().paths
    for name in ("-sourced", "-text"):
        assert any(path.endswith(name) for path in gone), (name, gone)
    again = manifest(farm, "user.7/sourced")  # which is not in memory, as the first is
    assert again["layers"] == first["layers"]
    assert len(builds_of(farm, "sourced")) == 2
    assert farm.coordinator is not None
    assert "sourced is evaluated again: sources" in farm.coordinator.log


def test_a_known_commit_takes_no_evaluator(farm: Farm) -> None:
    known = manifest(farm, "hello")
    manifest(farm, "capitalletters")
    commit = pulled(farm, "hello").headers["grange-commit"]
    assert farm.coordinator is not None
    farm.coordinator.stop()
    write_config(farm.root.parent, here=False)
    farm.start_coordinator()
    assert manifest(farm, "hello") == known
    new = pulled(farm, "hello/capitalletters/loser", commit)
    assert new.status_code == 200, new.text
    # Nor is any NAR read for it, or any layer made but the one of links.
    metrics = farm.get("/metrics").text
    assert "grange_image_nar_bytes_total 0.0" in metrics
    assert 'grange_image_layers_total{kind="packages"} 0.0' in metrics
    assert 'grange_image_layers_total{kind="root"} 1.0' in metrics
    missing = error_of(pulled(farm, "helo"))
    assert (missing["code"], missing["message"]) == (
        "MANIFEST_UNKNOWN",
        "the package set has no 'helo' (did you mean hello?)",
    )
