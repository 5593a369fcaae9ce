"""A farm that collects a bucket and a mirror of it: everything of a path goes, and only that."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from grange.errors import OutsideError
from grange.store.path import NIX_STORE
from tests import fake_s3
from tests.integration.farm import Farm, make_farm, until

pytestmark = pytest.mark.peer

RULES = """\
[retention]
keep = { last = 1, days = 0 }
unreferenced_days = 0
promise_s = 0
grace_s = 0
orphan_hours = 0
logs_days = LOGS_DAYS
"""
OPTIONS = "write-nar-listing=true&write-debug-info=true"
INFO = "lib/debug/.build-id"


class BucketFarm(Farm):
    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {
            "AWS_ACCESS_KEY_ID": fake_s3.KEY,
            "AWS_SECRET_ACCESS_KEY": fake_s3.SECRET,
        }

    @property
    def mirror(self) -> Path:
        return self.root / "mirror"

    def mirrored(self) -> set[str]:
        """The keys in the mirror."""
        files = [path for path in self.mirror.rglob("*") if path.is_file()]
        keys = {str(path.relative_to(self.mirror)) for path in files}
        return {key for key in keys if not key.startswith(".incoming")}

    def thing(self, version: str, size: int = 0) -> str:
        """A derivation with debug information whose build id is of this version."""
        folder, rest = f"{int(version):02x}", "a" * 38
        return self.step(
            f"thing-{version}",
            f"""
            echo log of {version}
            $b mkdir -p $out/{INFO}/{folder}
            echo {version} > $out/{INFO}/{folder}/{rest}.debug
            $b head -c {size} /dev/urandom > $out/noise
            """,
        )


@pytest.fixture
def s3() -> Iterator[fake_s3.FakeS3]:
    with fake_s3.fake_s3_apart() as s3:
        yield s3


@pytest.fixture
def farm(s3: fake_s3.FakeS3, tmp_path: Path) -> Iterator[BucketFarm]:
    root = tmp_path / "farm"
    config = tmp_path / "farm.toml"
    config.write_text(RULES.replace("LOGS_DAYS", "0"))
    made = make_farm(
        root,
        *("--store", f"s3://{fake_s3.BUCKET}?{OPTIONS}&endpoint={s3.url}"),
        *("--store", f"file://{root}/mirror?{OPTIONS}&compression=xz&compression-level=1"),
        *("--config", config),
        kind=BucketFarm,
    )
    assert isinstance(made, BucketFarm)
    try:
        made.start_coordinator()
        made.add_agent("one")
        yield made
    finally:
        made.stop()
        shutil.rmtree(root, ignore_errors=True)


def keys_of(farm: BucketFarm, s3: fake_s3.FakeS3, drv: str, out: str) -> tuple[set[str], set[str]]:
    """All that belongs to a path, in the bucket and in the mirror."""
    part = NIX_STORE.parse(out).hash_part
    said = s3.data(f"{part}.narinfo").decode(), (farm.mirror / f"{part}.narinfo").read_text()
    bucket, mirror = [text.partition("URL: ")[2].partition("\n")[0] for text in said]
    both = {f"{part}.narinfo", f"{part}.ls"}
    for key in s3.held():
        if key.startswith("debuginfo/") and json.loads(s3.data(key))["archive"] == f"../{bucket}":
            both.add(key)
    listing = {f"{bucket}.ls"} & s3.held()
    return both | {bucket, f"log/{Path(drv).name}"} | listing, both | {mirror}


def is_whole(s3: fake_s3.FakeS3, farm: BucketFarm) -> bool:
    """Whether each narinfo has its NAR, in both stores."""
    held = s3.held()
    texts = [(s3.data(key).decode(), held) for key in held if key.endswith(".narinfo")]
    mirrored = farm.mirrored()
    texts += [(path.read_text(), mirrored) for path in farm.mirror.glob("*.narinfo")]
    return all(t.partition("URL: ")[2].partition("\n")[0] in keys for t, keys in texts)


@pytest.mark.parametrize("size", [0, 6_000_000])
def test_all_that_belongs_to_a_path_goes_from_all_stores(
    farm: BucketFarm, s3: fake_s3.FakeS3, size: int
) -> None:
    """A small one, and one that went straight to the bucket."""
    old, new = farm.thing("1", size), farm.thing("2", size)
    first, second = [farm.succeed(farm.submit(drv)).outputs["out"] for drv in (old, new)]
    gone, stays = keys_of(farm, s3, old, first), keys_of(farm, s3, new, second)
    for each in (*gone, *stays):
        assert [key for key in each if key.startswith("debuginfo/")]
    assert gone[0] | stays[0] <= s3.held()
    assert gone[1] | stays[1] <= farm.mirrored()
    foreign = {"log/" + "0" * 32 + "-foreign.drv", "debuginfo/" + "f" * 40, "readme.txt"}
    for key in foreign:
        s3.store(key, b'{"archive": "../nar/other.nar.xz"}')
    farm.client.collect()
    assert not gone[0] & s3.held()
    assert not gone[1] & farm.mirrored()
    assert stays[0] | foreign <= s3.held()
    assert stays[1] <= farm.mirrored()
    # Again, as new: nothing remembers what was there before.
    farm.succeed(farm.submit(old))
    assert f"log/{Path(old).name}" in s3.held()
    assert is_whole(s3, farm)


def test_a_bucket_that_fails_half_way_is_collected_by_the_next(
    farm: BucketFarm, s3: fake_s3.FakeS3
) -> None:
    paths = []
    for number in range(1, 4):
        drv = farm.thing(str(number))
        paths.append((drv, farm.succeed(farm.submit(drv)).outputs["out"]))
    keys = [keys_of(farm, s3, drv, out) for drv, out in paths]
    told: list[str] = []
    while True:  # each gets a little farther, whatever it was at when the bucket refused
        budget = 3

        def refuse(method: str, key: str) -> int:
            nonlocal budget
            is_deletion = method in ("DELETE", "POST") and not key.startswith("incoming/")
            if is_deletion:
                budget -= 1
            return int(httpx.codes.FORBIDDEN) if is_deletion and budget < 0 else 0

        s3.faults = fake_s3.Faults(refuse=refuse)
        try:
            farm.client.collect()
        except OutsideError as error:
            told.append(str(error))
        else:
            break
        finally:
            assert is_whole(s3, farm)
        assert len(told) < 40, "it comes to an end"
    assert len(told) > 2
    assert all("does not let us delete" in text for text in told)
    metrics = farm.get("/metrics").text
    assert f'grange_collections_total{{outcome="failed"}} {len(told)}.0' in metrics
    assert 'call="delete"' in metrics
    for bucket, mirror in keys[:-1]:
        assert not bucket & s3.held()
        assert not mirror & farm.mirrored()
    assert keys[-1][0] <= s3.held()
    assert keys[-1][1] <= farm.mirrored()
    code, errors = farm.nix_copy(paths[-1][1], to=farm.root / "third")
    assert code == 0, errors


def test_a_log_of_a_failure_stays_as_long_as_its_attempt(
    farm: BucketFarm, s3: fake_s3.FakeS3
) -> None:
    drv = farm.step("broken", "echo why it failed; exit 1")
    assert farm.finish(farm.submit(drv)).outcome == "build failed"
    key = f"log/{Path(drv).name}"
    until(lambda: key in s3.held(), "the log should be put")
    farm.client.collect()
    assert key in s3.held()
