"""Who pulls images of a farm: skopeo and umoci, plain HTTP, and the roots that come of it."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import httpx

from tests.integration.farm import Farm, until

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
OCI: Final = "application/vnd.oci.image.manifest.v1+json"
DOCKER: Final = "application/vnd.docker.distribution.manifest.v2+json"
HELLO: Final = "shell/hello"

CONFIG: Final = """\
[images]
fresh_s = 0
wait_s = 20
zstd = {zstd}
precompute = "{precompute}"

[images.sources.examples]
path = "packages"
"""


def write_config(folder: Path, *, zstd: bool = False, precompute: str = "idle") -> Path:
    """A farm's file in `folder`, with the package set beside it."""
    if not (folder / "packages").exists():
        shutil.copytree(EXAMPLES / "packages", folder / "packages")
    config = folder / "farm.toml"
    config.write_text(CONFIG.format(zstd=str(zstd).lower(), precompute=precompute))
    return config


def skopeo(*arguments: str) -> str:
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def url(farm: Farm, name: str, reference: str = ":latest") -> str:
    return f"docker://127.0.0.1:{farm.http_port}/{name}{reference}"


def copy(farm: Farm, name: str, target: str, *options: str, reference: str = ":latest") -> str:
    source = url(farm, name, reference)
    return skopeo("copy", "--src-tls-verify=false", *options, source, target)


def manifest(farm: Farm, name: str, accept: str = OCI, port: int = 0) -> tuple[str, dict[str, Any]]:
    """The manifest's digest and what it says, once the image is made; `port` is of another
    coordinator."""

    def asked() -> bytes | None:
        address = f"http://127.0.0.1:{port or farm.http_port}/v2/{name}/manifests/latest"
        answer = httpx.get(address, headers={"accept": accept}, trust_env=False, timeout=60)
        assert answer.status_code in (200, 429, 503), answer.text
        if answer.status_code != 200:
            assert int(answer.headers["retry-after"])
            return None
        assert answer.headers["content-type"] == accept
        assert answer.headers["docker-content-digest"] == digest(answer.content)
        return answer.content

    body = until(asked, f"{name} should be made")
    return digest(body), json.loads(body)


def digest(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


def digests(said: dict[str, Any]) -> list[str]:
    """Of the layers of a manifest, lowest first."""
    return [layer["digest"] for layer in said["layers"]]


def unpack(layout: Path, tag: str, bundle: Path) -> Path:
    command = ["umoci", "unpack", "--image", f"{layout}:{tag}", str(bundle)]
    subprocess.run(command, check=True, capture_output=True)
    return bundle / "rootfs"


def run(root: Path, *command: str) -> str:
    """What a program says that sees nothing but an image's root."""
    chroot = ["chroot", str(root), *command]
    done = subprocess.run(chroot, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def pulled_meanwhile(farm: Farm, name: str, port: int = 0) -> Iterator[Future[bool]]:
    """Somebody asks for an image within the block; whether it came, if the farm still lives."""

    def pull() -> bool:
        address = f"http://127.0.0.1:{port or farm.http_port}/v2/{name}/manifests/latest"
        try:
            return httpx.get(address, trust_env=False, timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(pull)
