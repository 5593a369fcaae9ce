"""A farm whose cache lies in a bucket and a mirror, read by stock Nix without the farm."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from grange.store.path import NIX_STORE, StorePath
from tests.integration.farm import Farm, make_farm
from tests.moto_s3 import BUCKET, CREDENTIALS, moto_s3

GRAPH = """
let large = step "large" {} ''
  echo from large
  $b head -c 6000000 /dev/urandom > $out
'';
in step "top" { inherit large; } ''
  echo from top
  $b mkdir $out
  $b ln -s $large $out/large
''
"""


class S3Farm(Farm):
    @property
    def environment(self) -> dict[str, str]:
        return super().environment | CREDENTIALS


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_s3() as url:
        yield url


@pytest.fixture
def farm(moto: str, tmp_path: Path) -> Iterator[S3Farm]:
    """With a bucket to read from, and a directory beside it that wants another compression."""
    root = tmp_path / "farm"
    options = "scheme=http&write-nar-listing=true&log-compression=zstd"
    made = make_farm(
        root,
        *("--store", f"s3://{BUCKET}?{options}&endpoint={moto.removeprefix('http://')}"),
        *("--store", f"file://{root}/mirror?compression=xz&compression-level=1"),
        kind=S3Farm,
    )
    assert isinstance(made, S3Farm)
    try:
        made.start_coordinator()
        made.add_agent("one")
        yield made
    finally:
        made.stop()
        shutil.rmtree(root, ignore_errors=True)


def nix(farm: Farm, *arguments: str | Path) -> str:
    environment = farm.environment | {"XDG_CACHE_HOME": str(farm.root / "nix-cache")}
    done = subprocess.run(
        ["nix", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stock_nix_reads_the_bucket_and_its_mirror_without_the_farm(
    farm: S3Farm, moto: str
) -> None:
    drv = farm.drv(GRAPH)
    build = farm.succeed(farm.submit(drv))
    steps = {step.name: step for step in farm.client.build_steps(build.id)}
    out = NIX_STORE.show(StorePath.parse_base(Path(steps["top"].outputs["out"]).name))
    keys = " ".join(farm.client.status().public_keys)
    hash_part = NIX_STORE.parse(out).hash_part
    farm.stop()

    checks = ["--option", "require-sigs", "true", "--option", "trusted-public-keys", keys]
    bucket, mirror = f"{moto}/{BUCKET}", f"file://{farm.root}/mirror"
    for number, store in enumerate((bucket, mirror)):
        into = farm.root / f"there-{number}"
        nix(farm, "copy", "--from", store, "--to", into, out, *checks)
        nix(farm, "store", "verify", "--store", into, "--recursive", "--no-trust", out)
        large = into / "nix/store" / Path(steps["large"].outputs["out"]).name
        assert large.stat().st_size == 6_000_000
    assert "from top" in nix(farm, "log", "--store", bucket, out)

    listing = httpx.get(f"{bucket}/{hash_part}.ls", trust_env=False).json()
    assert set(listing["root"]["entries"]) == {"large"}
    narinfo = httpx.get(f"{bucket}/{hash_part}.narinfo", trust_env=False).text
    assert "Compression: zstd" in narinfo
    assert "Compression: xz" in (farm.root / f"mirror/{hash_part}.narinfo").read_text()
    assert not any(key.startswith("incoming/") for key in _keys(bucket))


def _keys(bucket: str) -> list[str]:
    import re

    answer = httpx.get(
        bucket,
        params={"list-type": "2"},
        headers={"Authorization": "AWS4-HMAC-SHA256 Credential=AKMOTO/20260101/us-east-1/s3/x"},
        trust_env=False,
    )
    assert answer.status_code == httpx.codes.OK
    return re.findall("<Key>(.*?)</Key>", answer.text)
