"""Images of a farm whose cache lies in a bucket: layers are put together of objects there."""

from pathlib import Path

import httpx
import pytest

from tests.integration.farm import running_farm, until
from tests.integration.image_pulls import HELLO, copy, run, skopeo, unpack, write_config
from tests.integration.test_farm_stores import S3Farm
from tests.moto_s3 import BUCKET, moto_s3

pytestmark = pytest.mark.peer


def segments(moto: str) -> set[str]:
    """The keys of all segments in the bucket."""
    answer = httpx.get(f"{moto}/{BUCKET}", params={"prefix": "images/segments/"}, trust_env=False)
    assert answer.status_code == 200, answer.text
    return {each.partition("</Key>")[0] for each in answer.text.split("<Key>")[1:]}


def test_layers_are_made_and_made_again_in_a_bucket(tmp_path: Path) -> None:
    with moto_s3() as moto:
        store = f"s3://{BUCKET}?scheme=http&endpoint={moto.removeprefix('http://')}"
        options = ["--config", str(write_config(tmp_path)), "--store", store]
        with running_farm(tmp_path / "farm", *options, kind=S3Farm) as farm:
            copy(farm, HELLO, f"dir:{tmp_path}/first")
            made = segments(moto)
            assert made
            for key in made:
                httpx.delete(f"{moto}/{BUCKET}/{key}", trust_env=False).raise_for_status()
            copy(farm, HELLO, f"dir:{tmp_path}/second")
            until(lambda: made <= segments(moto), "segments made again should be put")
        first, second = [
            {each.name: each.read_bytes() for each in (tmp_path / name).iterdir()}
            for name in ("first", "second")
        ]
        assert first == second
        skopeo("copy", f"dir:{tmp_path}/second", f"oci:{tmp_path}/layout:hello")
        assert run(unpack(tmp_path / "layout", "hello", tmp_path / "bundle"), "/bin/hello")
