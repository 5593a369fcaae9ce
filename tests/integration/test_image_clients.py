"""Images by the tools people have: skopeo pulls them from a whole farm, umoci unpacks, they run."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard

from tests.integration.farm import Farm, Process, running_farm, until
from tests.integration.image_pulls import (
    DOCKER,
    HELLO,
    OCI,
    copy,
    digest,
    digests,
    manifest,
    pulled_meanwhile,
    run,
    skopeo,
    unpack,
    url,
    write_config,
)
from tests.ports import free_port

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("images")
    with running_farm(folder / "farm", "--config", write_config(folder)) as farm:
        yield farm


# --- One farm, and everything that pulls from it ------------------------------------------------


def test_skopeo_pulls_an_image_that_nobody_built_and_umoci_makes_a_root_that_runs(
    farm: Farm, tmp_path: Path
) -> None:
    copy(farm, HELLO, f"dir:{tmp_path}/pulled")
    body = (tmp_path / "pulled/manifest.json").read_bytes()
    assert (digest(body), json.loads(body)) == manifest(farm, HELLO)
    for layer in digests(json.loads(body)):
        blob = tmp_path / "pulled" / layer.removeprefix("sha256:")
        assert digest(blob.read_bytes()) == layer
    skopeo("copy", f"dir:{tmp_path}/pulled", f"oci:{tmp_path}/layout:hello")
    root = unpack(tmp_path / "layout", "hello", tmp_path / "bundle")
    assert run(root, "/bin/hello", "image") == "Hello, image!\n"
    assert run(root, "/bin/bash", "-c", "LANG=de hello; whoami") == "Hallo, world!\nroot\n"
    assert run(root, "/usr/bin/env", "echo", "found") == "found\n"
    check_files(root)


def check_files(root: Path) -> None:
    """All entries are there as images of packages have them, directories too."""
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert run(root, "/bin/cat", "/etc/ssl/certs/ca-bundle.crt").startswith("-----BEGIN")
    assert "root:x:0:0" in (root / "etc/passwd").read_text()
    store = root / "nix/store"
    for folder, names, files in os.walk(store):
        for name in (*names, *files):
            found = os.lstat(os.path.join(folder, name))
            assert (found.st_uid, found.st_gid, int(found.st_mtime)) == (0, 0, 1), (folder, name)
            if not stat.S_ISLNK(found.st_mode):
                assert stat.S_IMODE(found.st_mode) in (0o444, 0o555), (folder, name)


def test_skopeo_inspects_an_image(farm: Farm) -> None:
    pinned, said = manifest(farm, HELLO)
    shown = json.loads(skopeo("inspect", "--tls-verify=false", url(farm, HELLO)))
    assert shown["Digest"] == pinned
    assert shown["Layers"] == digests(said)
    assert (shown["Os"], shown["Architecture"]) == ("linux", "amd64")
    assert "SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt" in shown["Env"]
    assert shown["Labels"]["grange.packages"]
    assert len(shown["Labels"]["org.opencontainers.image.revision"]) == 40
    assert "latest" in shown["RepoTags"]
    config = skopeo("inspect", "--config", "--tls-verify=false", url(farm, HELLO))
    assert len(json.loads(config)["rootfs"]["diff_ids"]) == len(digests(said))


def test_order_of_packages_does_not_matter_and_digests_pin(farm: Farm, tmp_path: Path) -> None:
    first, _ = manifest(farm, "shell/git/hello")
    assert manifest(farm, "shell/hello/git")[0] == first
    copy(farm, "shell/git/hello", f"dir:{tmp_path}/pinned", reference=f"@{first}")
    assert digest((tmp_path / "pinned/manifest.json").read_bytes()) == first


def test_an_archive_for_docker_has_what_the_manifest_says(farm: Farm, tmp_path: Path) -> None:
    copy(farm, HELLO, f"docker-archive:{tmp_path}/hello.tar:farm/hello:latest")
    with tarfile.open(tmp_path / "hello.tar") as archive:

        def member(name: str) -> bytes:
            opened = archive.extractfile(name)
            assert opened is not None
            return opened.read()

        [image] = json.loads(member("manifest.json"))
        assert image["RepoTags"] == ["docker.io/farm/hello:latest"]
        diff_ids = json.loads(member(image["Config"]))["rootfs"]["diff_ids"]
        assert [digest(member(layer)) for layer in image["Layers"]] == diff_ids


def test_docker_is_given_its_own_types_and_the_same_layers(farm: Farm, tmp_path: Path) -> None:
    _, oci = manifest(farm, HELLO)
    pinned, docker = manifest(farm, HELLO, accept=DOCKER)
    assert docker["mediaType"] == DOCKER
    assert digests(docker) == digests(oci)
    assert {layer["mediaType"] for layer in docker["layers"]} == {
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    }
    copy(farm, HELLO, f"dir:{tmp_path}/pinned", reference=f"@{pinned}")
    assert digest((tmp_path / "pinned/manifest.json").read_bytes()) == pinned
    copy(farm, HELLO, f"dir:{tmp_path}/made", "--format", "v2s2")
    assert json.loads((tmp_path / "made/manifest.json").read_text())["mediaType"] == DOCKER


def test_the_farm_is_a_mirror_of_names_of_another_registry(farm: Farm, tmp_path: Path) -> None:
    address = f"127.0.0.1:{farm.http_port}"
    mirrored = tmp_path / "registries.conf"
    mirrored.write_text(
        '[[registry]]\nlocation = "elsewhere.invalid"\n[[registry.mirror]]\n'
        f'location = "{address}"\ninsecure = true\n'
    )
    source = f"docker://elsewhere.invalid/{HELLO}"
    options = ["--registries-conf", str(mirrored), "copy", "--preserve-digests", "--all"]
    skopeo(*options, source, f"dir:{tmp_path}/pulled")
    pinned, _ = manifest(farm, HELLO)
    assert digest((tmp_path / "pulled/manifest.json").read_bytes()) == pinned
    # As containerd asks a mirror.
    for method in ("HEAD", "GET"):
        asked = f"{farm.url}/v2/{HELLO}/manifests/latest?ns=elsewhere.invalid"
        answer = httpx.request(method, asked, trust_env=False, headers={"accept": OCI})
        assert answer.headers["docker-content-digest"] == pinned


def test_after_a_change_only_what_changed_is_fetched_again(farm: Farm, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    copy(farm, HELLO, f"oci:{layout}:before")
    before, said = manifest(farm, HELLO)
    had = {each.name for each in (layout / "blobs/sha256").iterdir()}
    greeting = farm.root.parent / "packages/greetings/en"
    # At once, for the set may be read at any time.
    (tmp_path / "en").write_text("Good morning\n")
    (tmp_path / "en").replace(greeting)
    until(lambda: manifest(farm, HELLO)[0] != before, "the change should be seen")
    after, said_now = manifest(farm, HELLO)
    copy(farm, HELLO, f"oci:{layout}:after", reference=f"@{after}")
    new = {each.name for each in (layout / "blobs/sha256").iterdir()} - had
    changed = set(digests(said_now)) - set(digests(said))
    assert len(changed) == 4, "the greetings, both outputs of the program, and links"
    assert len(new) == len(changed) + 2, "and a manifest with its config"
    root = unpack(layout, "after", tmp_path / "after")
    assert run(root, "/bin/hello") == "Good morning, world!\n"
    copy(farm, HELLO, f"dir:{tmp_path}/pinned", reference=f"@{before}")


def test_what_cannot_be_pulled_is_told_to_who_pulls(farm: Farm, tmp_path: Path) -> None:
    for name, told in {
        "shell/helo": "did you mean hello?",
        "secretsauce": "secretSauce' is unfree",
        "shell/Hello": "invalid reference format",  # which the client says itself
    }.items():
        command = ["skopeo", "copy", "--src-tls-verify=false", url(farm, name), "dir:none"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert told in done.stderr, name


def test_archives_of_the_command_line_are_read_by_others(farm: Farm, tmp_path: Path) -> None:
    _, said = manifest(farm, HELLO)
    for kind in ("oci-archive", "docker-archive"):
        done = farm.grange("image", "build", HELLO, "-o", f"{kind}:{tmp_path}/{kind}")
        assert done.returncode == 0, done.stderr
        config = json.loads(skopeo("inspect", "--config", f"{kind}:{tmp_path}/{kind}"))
        skopeo("copy", f"{kind}:{tmp_path}/{kind}", f"oci:{tmp_path}/layout:{kind}")
        root = unpack(tmp_path / "layout", kind, tmp_path / f"{kind}-bundle")
        assert run(root, "/bin/hello").endswith(", world!\n")
        assert len(config["rootfs"]["diff_ids"]) == len(digests(said))


# --- A registry beside the farm ---------------------------------------------------------------


@contextlib.contextmanager
def registry(farm: Farm, folder: Path) -> Iterator[str]:
    """Where `grange registry` serves the farm's images."""
    address = f"127.0.0.1:{free_port()}"
    arguments: list[str | Path] = ["registry", "--listen", address, "--coordinator", farm.url]
    arguments += ["--database", farm.state_dir / "journal.db", "--token-file", farm.admin_token]
    arguments += ["--store", farm.state_dir / "cache"]
    process = Process("registry", arguments, folder, farm.environment)

    def answers() -> bool:
        try:
            return httpx.get(f"http://{address}/v2/", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(answers, "the registry should answer", process)
        yield address
    finally:
        process.stop()


def test_a_registry_beside_the_farm_serves_what_was_collected_and_when_the_farm_is_gone(
    farm: Farm, tmp_path: Path
) -> None:
    with registry(farm, tmp_path) as address:

        def pull(reference: str, folder: str) -> Path:
            source = f"docker://{address}/shell/htop{reference}"
            skopeo("copy", "--src-tls-verify=false", source, f"dir:{tmp_path}/{folder}")
            return tmp_path / folder

        new = pull(":latest", "new")
        pinned = digest((new / "manifest.json").read_bytes())
        assert pinned == manifest(farm, "shell/htop")[0], "made by the farm"
        collect_deeply(farm)
        assert farm.coordinator is not None
        farm.coordinator.kill()
        again = pull(f"@{pinned}", "again")
        assert contents(again) == contents(new), "made again of what the cache has"
        farm.start_coordinator()
        farm.await_agent("one")


def collect_deeply(farm: Farm) -> None:
    """All segments of layers go, as they would some days later."""
    images = farm.state_dir / "cache/images"
    segments = [each for each in (images / "segments").rglob("*") if each.is_file()]
    for segment in segments:
        os.utime(segment, (1, 1))
    done = farm.grange("image", "gc", "--deep", "--json")
    assert done.returncode == 0, done.stderr
    assert segments
    assert not any(segment.exists() for segment in segments)


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


# --- Two farms ----------------------------------------------------------------------------------


def test_another_installation_killed_in_the_middle_comes_to_the_same_digests(
    farm: Farm, tmp_path: Path
) -> None:
    config = write_config(tmp_path, precompute="never")
    shutil.rmtree(tmp_path / "packages")
    shutil.copytree(farm.root.parent / "packages", tmp_path / "packages")
    with running_farm(tmp_path / "farm", "--config", config, agents=()) as other:
        kill_while_it_builds(other, HELLO)
        other.add_agent("one")
        kill_while_layers_are_made(other, HELLO)
        assert manifest(other, HELLO) == manifest(farm, HELLO)
        assert manifest(other, HELLO, accept=DOCKER) == manifest(farm, HELLO, accept=DOCKER)
        copy(other, HELLO, f"oci:{tmp_path}/layout:hello")
        assert run(unpack(tmp_path / "layout", "hello", tmp_path / "bundle"), "/bin/hello")
        restart_with_zstd(other, tmp_path)
        check_zstd(other, manifest(farm, HELLO)[1], tmp_path)


def kill_and_start(farm: Farm) -> None:
    assert farm.coordinator is not None
    farm.coordinator.kill()
    farm.start_coordinator()
    for agent in farm.agents:
        farm.await_agent(agent)


def kill_while_it_builds(farm: Farm, name: str) -> None:
    with pulled_meanwhile(farm, name):
        until(farm.client.builds, "packages should be built")
        kill_and_start(farm)


def kill_while_layers_are_made(farm: Farm, name: str) -> None:
    segments = farm.state_dir / "cache/images/segments"
    made = False
    while not made and not segments.exists():
        with pulled_meanwhile(farm, name) as pulled:
            until(lambda: segments.exists() or pulled.done(), "layers should be made")
            if segments.exists():
                kill_and_start(farm)
            made = pulled.result()


def restart_with_zstd(farm: Farm, folder: Path) -> None:
    write_config(folder, zstd=True, precompute="upload")
    assert farm.coordinator is not None
    farm.coordinator.stop()
    farm.start_coordinator()


def check_zstd(farm: Farm, gzipped: dict[str, Any], folder: Path) -> None:
    """Clients that take OCI's types get zstd, of the same archives; others go on as they were."""
    _, said = manifest(farm, HELLO)
    assert {layer["mediaType"] for layer in said["layers"]} == {
        "application/vnd.oci.image.layer.v1.tar+zstd"
    }
    assert said["config"] == gzipped["config"], "which names the archives"
    copy(farm, HELLO, f"dir:{folder}/zstd")
    diff_ids = json.loads((folder / "zstd" / hexadecimal(said["config"])).read_bytes())
    root = folder / "zstd-root"
    root.mkdir()
    for layer, diff_id in zip(said["layers"], diff_ids["rootfs"]["diff_ids"], strict=True):
        packed = (folder / "zstd" / hexadecimal(layer)).read_bytes()
        with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as reader:
            archive = reader.read()
        assert digest(archive) == diff_id
        subprocess.run(["tar", "-x", "-p", "-C", str(root)], input=archive, check=True)
    assert run(root, "/bin/hello")
    _, docker = manifest(farm, HELLO, accept=DOCKER)
    assert digests(docker) == digests(gzipped)


def hexadecimal(descriptor: dict[str, Any]) -> str:
    text: str = descriptor["digest"]
    return text.removeprefix("sha256:")
