"""Stores by URL: what is understood, what is refused and in which words."""

import sys
from datetime import timedelta
from pathlib import Path

import pytest

from grange.errors import OperatorError
from grange.objects.location import parse_location
from grange.objects.open import joined, open_shelves, open_store
from grange.ports import StoreOptions


def test_a_directory() -> None:
    location = parse_location("file:///var/Cache?compression=xz&compression-level=1")
    assert (location.kind, location.name) == ("file", "/var/Cache")
    assert location.options == StoreOptions(compression="xz", level=1)
    assert location.shown == "/var/Cache"


def test_every_option_of_hydra() -> None:
    location = parse_location(
        "s3://Bucket?region=eu-west-1&scheme=http&endpoint=minio:9000&profile=ci&compression=zstd"
        "&compression-level=9&parallel-compression=false&write-nar-listing=1&write-debug-info=true"
        "&secret-key=/a&secret-keys=/b,/c&narinfo-compression=gzip&ls-compression=zstd"
        "&log-compression=xz&buffer-size=16777216&presigned-url-expiry=600"
    )
    assert location.name == "Bucket"  # Hydra would make it small
    assert location.region == "eu-west-1"
    assert location.endpoint == "http://minio:9000"
    assert location.profile == "ci"
    assert location.options == StoreOptions(
        compression="zstd",
        level=9,
        is_parallel=False,
        has_listings=True,
        has_debug_info=True,
        narinfo_encoding="gzip",
        listing_encoding="zstd",
        log_encoding="xz",
    )
    assert location.key_files == (Path("/a"), Path("/b"), Path("/c"))
    assert location.part_bytes == 16 << 20
    assert location.expiry == timedelta(minutes=10)


def test_what_is_not_said() -> None:
    location = parse_location("s3://bucket")
    assert location.region == "us-east-1"
    assert location.endpoint == ""
    assert location.options == StoreOptions()
    assert location.single_put_bytes == 5 << 30
    assert parse_location("az://container?account=me").account == "me"
    assert parse_location("gs://bucket").kind == "gs"
    assert parse_location("s3://bucket?endpoint=http://[::1]:1/").endpoint == "http://[::1]:1"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/var/cache", "write file:///DIR, s3://BUCKET"),
        ("http://cache", "write file:///DIR, s3://BUCKET"),
        ("file://var/cache", "absolute path"),
        ("s3://", "the name of a bucket"),
        ("s3://bucket/folder", "at the top of its bucket"),
        ("s3://bucket?colour=red&size=1", "colour, size is not known; s3:// takes .*compression"),
        ("file:///x?region=a", "region is not known"),
        ("s3://bucket?region=a&region=b", "twice"),
        ("s3://bucket?compression=br", "compression is 'br': Grange writes zstd, xz, none"),
        ("s3://bucket?compression-level=20", "from 0 to 19"),
        ("s3://bucket?compression-level=0", "zstd has 1 to 19"),
        ("s3://bucket?compression=none&compression-level=1", "from 0 to 0"),
        ("s3://bucket?write-nar-listing=yes", "true or false"),
        ("s3://bucket?presigned-url-expiry=59", "from 60 to 86400"),
        ("s3://bucket?presigned-url-expiry=x", "from 60 to 86400"),
        ("s3://bucket?log-compression=br", "none, zstd, xz, gzip"),
        ("s3://bucket?endpoint=ftp://x", "http:// or https://"),
        ("s3://bucket?scheme=ftp", "http, https"),
    ],
)
def test_mistakes_are_named(url: str, said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        parse_location(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2@bucket",
        "s3://bucket?secret-access-key=hunter2",
        "s3://bucket?access-key-id=hunter2",
        "s3://bucket?session-token=hunter2",
        "az://container?sas-token=hunter2",
        "s3://bucket?endpoint=http://me:hunter2@host",
        "ftp://me:hunter2@host/?password=hunter2",
    ],
)
def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(OperatorError) as caught:
        parse_location(url)
    assert "hunter2" not in str(caught.value)


def test_a_bucket_without_credentials_says_where_they_are_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(
        OperatorError, match=r"set AWS_ACCESS_KEY_ID .* or give this machine a role"
    ):
        open_store(parse_location("s3://bucket"))
    with pytest.raises(OperatorError, match="profile"):
        open_store(parse_location("s3://bucket?profile=nobody"))


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [("s3://x", "boto3", "s3"), ("gs://x", "obstore.store", "gcs"), ("az://x", "obstore", "azure")],
)
def test_what_is_not_installed_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    for name in [name for name in sys.modules if name.startswith(("grange.objects", "obstore"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    from grange.objects.location import parse_location
    from grange.objects.open import open_store

    with pytest.raises(OperatorError, match=rf"not installed; pip install 'grange\[{extra}\]'"):
        open_store(parse_location(url))


def test_the_same_store_twice_is_a_mistake(tmp_path: Path) -> None:
    locations = [parse_location(f"file://{tmp_path}"), parse_location(f"file://{tmp_path}")]
    with pytest.raises(OperatorError, match="the same store twice"):
        open_shelves(locations)


async def test_what_is_deleted_goes_from_every_store_under_its_own_name(tmp_path: Path) -> None:
    urls = [f"file://{tmp_path}/a", f"file://{tmp_path}/b?compression=xz", f"file://{tmp_path}/c"]
    shelves = open_shelves([parse_location(url) for url in urls])
    names = ("nar/x.nar.zst", "nar/x.nar.xz", "nar/x.nar.zst")
    for shelf, name in zip(shelves, names, strict=True):
        await shelf.objects.put_if_absent(name, b"")
        await shelf.objects.put_if_absent("y.narinfo", b"")
    objects = joined(shelves)
    await objects.delete("nar/x.nar.zst")
    await objects.delete("y.narinfo")
    for shelf in shelves:
        assert [entry async for entry in shelf.objects.list()] == []
