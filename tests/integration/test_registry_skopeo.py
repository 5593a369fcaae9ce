"""skopeo before a registry: with a token, into every form it has."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from grange.oci.manifest import MANIFEST_TYPE, OCI_GZIP
from tests.registry_beside import SECRET, Around, beside, manifest_is_there
from tests.registry_place import COMMIT


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Around]:
    async with beside(tmp_path) as opened:
        yield opened


async def skopeo(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "skopeo", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.mark.peer
async def test_skopeo_pulls_with_a_token_into_every_form(around: Around) -> None:
    await manifest_is_there(around)
    source = f"docker://127.0.0.1:{around.port}/hello"
    shown = ["--creds", f"x:{SECRET}"]
    seen = json.loads(await skopeo("inspect", "--tls-verify=false", *shown, f"{source}:latest"))
    record = around.images[OCI_GZIP]
    layers = [each["digest"] for each in json.loads(record.manifest.body)["layers"]]
    assert (seen["Digest"], seen["Layers"]) == (record.manifest.digest, layers)
    assert seen["RepoTags"] == sorted(["latest", COMMIT])
    copy = ["copy", "--src-tls-verify=false", "--src-creds", f"x:{SECRET}"]
    pinned = f"{source}@{record.manifest.digest}"
    folder = around.folder
    await skopeo(*copy, pinned, f"dir:{folder}/dir")
    assert (folder / "dir/manifest.json").read_bytes() == record.manifest.body
    await skopeo(*copy, f"{source}:{COMMIT}", f"oci:{folder}/oci:hello")
    [entry] = json.loads((folder / "oci/index.json").read_text())["manifests"]
    assert entry["digest"] == record.manifest.digest
    await skopeo(*copy, f"{source}:latest", f"docker-archive:{folder}/hello.tar")
    assert (folder / "hello.tar").stat().st_size > 2 << 20
    await skopeo(*copy, "--format", "v2s2", f"{source}:latest", f"dir:{folder}/docker")
    said = json.loads((folder / "docker/manifest.json").read_text())
    assert said["mediaType"] in MANIFEST_TYPE.values()
    assert [each["digest"] for each in said["layers"]] == layers
