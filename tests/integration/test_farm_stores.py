"""A farm whose cache lies in a bucket and a mirror, read by stock Nix without the farm."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from grange.store.path import NIX_STORE, StorePath
from tests import fake_s3
from tests.integration.farm import Farm, running_farm, until
from tests.moto_s3 import BUCKET, CREDENTIALS, moto_s3

pytestmark = pytest.mark.peer

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


DEP = """
step "dep" {} ''
  echo building
  $b cat $b $b $b > $out
''"""


class S3Farm(Farm):
    @property
    def environment(self) -> dict[str, str]:
        return super().environment | CREDENTIALS


class FakeFarm(Farm):
    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {
            "AWS_ACCESS_KEY_ID": fake_s3.KEY,
            "AWS_SECRET_ACCESS_KEY": fake_s3.SECRET,
        }


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_s3() as url:
        yield url


@pytest.fixture
def farm(moto: str, tmp_path: Path) -> Iterator[S3Farm]:
    """With a bucket to read from, and a directory beside it that wants another compression."""
    root = tmp_path / "farm"
    options = "scheme=http&write-nar-listing=true&log-compression=zstd"
    stores = (
        *("--store", f"s3://{BUCKET}?{options}&endpoint={moto.removeprefix('http://')}"),
        *("--store", f"file://{root}/mirror?compression=xz&compression-level=1"),
    )
    with running_farm(root, *stores, kind=S3Farm) as farm:
        assert isinstance(farm, S3Farm)
        yield farm


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


@pytest.fixture
def s3() -> Iterator[fake_s3.FakeS3]:
    with fake_s3.fake_s3_apart() as s3:
        yield s3


@pytest.fixture
def on_fake(s3: fake_s3.FakeS3, tmp_path: Path) -> Iterator[Farm]:
    url = f"s3://{fake_s3.BUCKET}?endpoint={s3.url}"
    with running_farm(tmp_path / "farm", "--store", url, kind=FakeFarm) as farm:
        yield farm


def test_a_lost_object_is_built_again(on_fake: Farm, s3: fake_s3.FakeS3) -> None:
    """And a large one goes straight to the store, by a URL that was signed for it."""
    dep = on_fake.drv(DEP)
    build = on_fake.succeed(on_fake.submit(dep))
    (step,) = on_fake.client.build_steps(build.id)
    narinfo = on_fake.narinfo(step.outputs["out"]).text
    nar = narinfo.partition("URL: ")[2].partition("\n")[0]
    went = [key for method, key in s3.requests if key.startswith("incoming/") and method == "PUT"]
    assert len(went) == 1
    assert "log/" + Path(dep).name in s3.held()
    del s3.objects[nar]
    on_fake.agents.pop("one").stop()
    on_fake.add_agent("two")
    top = on_fake.drv(f"step \"top\" {{ dep = {DEP}; }} ''$b cp $dep $out''")
    on_fake.succeed(on_fake.submit(top))
    assert nar in s3.held()
    assert not [key for key in s3.held() if key.startswith("incoming/")]


def test_a_store_that_is_busy_or_gone_for_a_while_holds_builds_up_and_fails_none(
    on_fake: Farm, s3: fake_s3.FakeS3
) -> None:
    gone = set[str]()

    def refuse(method: str, key: str) -> int:
        """The first two requests of each kind to each folder."""
        for time in ("first", "second"):
            request = f"{time} {method} of {key.partition('/')[0]}"
            if request not in gone:
                gone.add(request)
                return int(httpx.codes.SERVICE_UNAVAILABLE)
        return 0

    s3.faults = fake_s3.Faults(refuse=refuse)
    build = on_fake.succeed(on_fake.submit(on_fake.drv(GRAPH)))
    steps = on_fake.client.build_steps(build.id)
    assert [len(on_fake.client.attempts(step.id)) for step in steps] == [1, 1]


def test_a_failed_builds_log_is_in_the_store_too(on_fake: Farm, s3: fake_s3.FakeS3) -> None:
    drv = on_fake.step("broken", "echo why it failed; exit 1")
    assert on_fake.finish(on_fake.submit(drv)).outcome == "build failed"
    key = "log/" + Path(drv).name
    until(lambda: key in s3.held(), "the log should be put")
    assert b"why it failed" in s3.data(key)
