"""Images of a whole farm from its file on: evaluated beside the coordinator, written to archives,
read anew."""

import json
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from grange.client.image_models import GcRequest, MakeAnswer, MakeRequest
from grange.client.images import ImageClient
from tests.certificates import Authority
from tests.integration.farm import GRANGE, Farm, make_farm, until

pytestmark = pytest.mark.peer

PACKAGES: Final = Path(__file__).parents[1] / "packages"

CONFIG: Final = """\
[tls]
certificate = "server.pem"
key = "server.key"

[access]
anonymous = "none"

[images]
fresh_s = 0
anonymous_pulls = true

[images.evaluation]
here = true
store = "eval"

[images.sources.main]
path = "packages"
"""

MORE: Final = """
[images.sources.more]
path = "packages"
overlays = ["more.nix"]
"""

OVERLAY: Final = "final: previous: { greeting = previous.hello; }\n"


class HttpsFarm(Farm):
    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.http_port}"


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    """Only its clients and its agent know who signed its certificate: itself does not."""
    authority = Authority(tmp_path)
    authority.issue("farm.example", ("127.0.0.1",), "server")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    config = tmp_path / "farm.toml"
    config.write_text(CONFIG)
    shutil.copytree(PACKAGES, tmp_path / "packages")
    farm = make_farm(tmp_path / "farm", "--config", config, kind=HttpsFarm)
    try:
        farm.start_coordinator()
        farm.add_agent("one", "--ca", str(authority.file), "--max-jobs", "2")
        yield farm
    finally:
        farm.stop()
        for folder in (tmp_path / "farm", tmp_path / "eval"):
            shutil.rmtree(folder, ignore_errors=True)


def made(client: ImageClient, name: str) -> MakeAnswer:
    def ask() -> MakeAnswer | None:
        answer = client.make_image(MakeRequest(name=name))
        return None if answer.state == "pending" else answer

    answer = until(ask, f"{name} should be made")
    assert answer.state == "ready", answer
    return answer


def archived(farm: Farm, ca: Path, name: str, path: Path) -> Any:
    """What `grange image build` prints."""
    done = subprocess.run(
        [GRANGE, "image", "build", name, "-o", f"docker-archive:{path}", "--json"],
        env={**farm.environment, "SSL_CERT_FILE": str(ca)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_farm_makes_images_that_its_file_tells_of(farm: Farm, tmp_path: Path) -> None:
    hello = MakeRequest(name="shell/hello")
    with ImageClient(farm.url, token_file=farm.admin_token) as client:
        before = client.explain_image(hello)
        assert (before.is_made, before.commit, before.layers) == (False, "", [])
        archive = tmp_path / "hello.tar"
        docker = archived(farm, tmp_path / "test authority.pem", "shell/hello", archive)
        with tarfile.open(archive) as read:
            assert read.getnames()[0] == "manifest.json"
        oci = made(client, "main/shell/hello")
        assert (oci.name, oci.commit) == ("shell/hello", docker["commit"])
        assert oci.digest != docker["digest"], "the forms of two families"
        after = client.explain_image(hello)
        assert (after.is_made, after.digest) == (True, oci.digest)
        assert all(layer.is_known for layer in after.layers)
        anyone = httpx.get(f"{farm.url}/v2/shell/hello/manifests/latest")
        assert anyone.headers["docker-content-digest"] == oci.digest
        assert httpx.get(f"{farm.url}/api/v1/images").status_code == 401
        assert {each.family for each in client.images()} == {"oci", "docker"}
        assert client.collect_images(GcRequest(is_dry=True)).blobs == 0

        add_a_source(farm, tmp_path)
        assert made(client, "more/greeting").name == "more/greeting"
        assert "greeting" in client.explain_image(MakeRequest(name="more/greeting")).packages

        assert farm.coordinator is not None
        farm.coordinator.signal(signal.SIGTERM)
        assert farm.coordinator.popen.wait(60) == 0
        farm.start_coordinator()
        assert made(client, "shell/hello").digest == oci.digest


def add_a_source(farm: Farm, folder: Path) -> None:
    """And tell the farm, which reads its file anew."""
    (folder / "more.nix").write_text(OVERLAY)
    (folder / "farm.toml").write_text(CONFIG + MORE)
    coordinator = farm.coordinator
    assert coordinator is not None
    coordinator.signal(signal.SIGHUP)
    until(
        lambda: "the farm file was read anew" in coordinator.log,
        "the file should be read anew",
        coordinator,
    )
    assert "holds from the next start" not in coordinator.log
