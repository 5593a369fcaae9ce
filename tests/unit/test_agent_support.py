"""nix-support is written by builds that nobody vouches for."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import grange.agent.support as support_module
from grange.agent.support import Parsed, has_support, parse_support
from grange.store.path import NIX_STORE, StorePath
from grange.wire.messages import Metric, NixSupport, Product

OUT = StorePath("0" * 32 + "-thing")
DEV = StorePath("1" * 32 + "-thing-dev")
OTHER = StorePath("2" * 32 + "-other")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store out of its usual place, with a directory output that has nix-support."""
    (tmp_path / "store" / OUT / "nix-support").mkdir(parents=True)
    return tmp_path / "store"


def read(store: Path, name: str = "out", path: StorePath = OUT) -> Parsed:
    return parse_support(name, path, (OUT, DEV), NIX_STORE, lambda p: f"{store}/{p}")


def write(store: Path, name: str, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    (store / OUT / "nix-support" / name).write_bytes(data)


def products(store: Path, *lines: str) -> Parsed:
    write(store, "hydra-build-products", "\n".join(lines))
    return read(store)


def test_a_directory_is_itself_the_product(store: Path) -> None:
    parsed = read(store)
    assert parsed.support.products == (
        Product(OUT, "", "nix-build", "", "", "", False, None, None),
    )
    (store / DEV).mkdir()
    (product,) = read(store, "dev", DEV).support.products
    assert (product.output, product.subtype) == (DEV, "dev")


def test_a_file_has_none(store: Path) -> None:
    (store / DEV).write_text("words")
    assert read(store, "dev", DEV) == Parsed(NixSupport(), ())
    assert not has_support(DEV, lambda p: f"{store}/{p}")
    assert has_support(OUT, lambda p: f"{store}/{p}")


def test_reads_everything(store: Path) -> None:
    (store / OUT / "doc").mkdir()
    (store / OUT / "a file.iso").write_bytes(b"image")
    write(store, "failed", "")
    write(store, "hydra-release-name", " thing-1.0:x@y \n")
    write(store, "hydra-metrics", "size 12.5 KiB\n\n count   -3e2\n")
    parsed = products(
        store,
        f"doc manual {NIX_STORE.show(OUT)}/doc index.html",
        f'file iso "{NIX_STORE.show(OUT)}/a file.iso"',
        f"nix-build none {NIX_STORE.show(OUT)}",
    )
    digest = hashlib.sha256(b"image").hexdigest()
    assert parsed.warnings == ()
    assert parsed.support.is_failed
    assert parsed.support.release_name == "thing-1.0:x@y"
    assert parsed.support.metrics == {"size": Metric(12.5, "KiB"), "count": Metric(-300.0, None)}
    assert parsed.support.products == (
        Product(OUT, "doc", "doc", "manual", "doc", "index.html", False, None, None),
        Product(OUT, "a file.iso", "file", "iso", "a file.iso", "", True, digest, 5),
        Product(OUT, "", "nix-build", "none", "", "", False, None, None),
    )


@pytest.mark.parametrize(
    "line",
    [
        "doc manual",
        "doc manual relative/path",
        "doc manual /etc/passwd",
        f"doc manual {NIX_STORE.show(OTHER)}/there",
        f"doc manual {NIX_STORE.show(OUT)}/absent",
        f"doc manual {NIX_STORE.show(OUT)}/nix-support/../doc",
        f"doc manual {NIX_STORE.show(OUT)}/./doc",
        f"doc manual {NIX_STORE.show(OUT)}//doc",
        f"doc manual {NIX_STORE.show(OUT)}/../{OTHER}/there",
        f"do;c manual {NIX_STORE.show(OUT)}/doc",
        f"doc manual {NIX_STORE.show(OUT)}/doc ../../x",
        f"doc manual {NIX_STORE.show(OUT)}/doc /etc",
        f"doc manual {NIX_STORE.show(OUT)}/doc index.html and more",
        f"x doc manual {NIX_STORE.show(OUT)}/doc y z",
        f"doc manual {NIX_STORE.show(OUT)}/to-etc",
        f"doc manual {NIX_STORE.show(OUT)}/up",
        f"doc manual {NIX_STORE.show(OUT)}/loop",
        f"doc manual {NIX_STORE.show(OUT)}/pipe",
        f"doc manual {NIX_STORE.show(OUT)}/beside",
    ],
)
def test_what_is_wrong_is_left_out_with_a_warning(store: Path, line: str) -> None:

    out = store / OUT
    (out / "doc").mkdir()
    (store / OTHER).mkdir()
    (store / OTHER / "there").write_text("words")
    (store.parent / "secret").write_text("words")
    (out / "to-etc").symlink_to("/etc/passwd")
    (out / "up").symlink_to("../../secret")
    (out / "beside").symlink_to("/nix/store/../../etc/passwd")
    (out / "loop").symlink_to("loop")
    os.mkfifo(out / "pipe")
    parsed = products(store, line, f"doc good {NIX_STORE.show(OUT)}/doc")
    assert [product.subtype for product in parsed.support.products] == ["good"]
    assert len(parsed.warnings) == 1
    assert "hydra-build-products" in parsed.warnings[0]


def test_symlinks_within_the_store_are_followed(store: Path) -> None:
    (store / OTHER).mkdir()
    (store / OTHER / "there").write_text("words")
    (store / OUT / "direct").symlink_to(f"/nix/store/{OTHER}/there")
    (store / OUT / "relative").symlink_to(f"../{OTHER}/there")
    (store / OUT / "through").symlink_to(f"/nix/store/{OTHER}")
    lines = [f"a b {NIX_STORE.show(OUT)}/{name}" for name in ("direct", "relative")]
    parsed = products(store, *lines, f"a b {NIX_STORE.show(OUT)}/through/there")
    assert [product.file_bytes for product in parsed.support.products] == [5, 5, 5]


@pytest.mark.parametrize("text", ["", "two words", "a/b", "x" * 300])
def test_release_names_are_plain(store: Path, text: str) -> None:
    write(store, "hydra-release-name", text)
    parsed = read(store)
    assert parsed.support.release_name is None
    assert len(parsed.warnings) == 1


@pytest.mark.parametrize("line", ["one", "x nan", "x inf", "x 1e999", "x 1 a b", "x 0x1", "; 1"])
def test_metrics_are_numbers(store: Path, line: str) -> None:
    write(store, "hydra-metrics", line)
    parsed = read(store)
    assert parsed.support.metrics == {}
    assert len(parsed.warnings) == 1


def test_nix_support_that_leads_out_is_not_read(store: Path) -> None:
    (store.parent / "outside").mkdir()
    (store.parent / "outside" / "hydra-release-name").write_text("stolen")
    (store / OUT / "nix-support").rmdir()
    (store / OUT / "nix-support").symlink_to(store.parent / "outside")
    parsed = read(store)
    assert parsed.support.release_name is None
    assert "out of the store" in parsed.warnings[0]


def test_files_are_read_to_a_bound(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support_module, "FILE_BYTES_MAX", 19)
    write(store, "hydra-metrics", "one 1\ntwo 2\nthree 3\nfour 4\n")
    parsed = read(store)
    assert set(parsed.support.metrics) == {"one", "two"}
    assert "first 19 bytes" in parsed.warnings[0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(max_size=300), st.sampled_from(["hydra-metrics", "hydra-release-name"]))
def test_junk_harms_nobody(store: Path, junk: bytes, name: str) -> None:
    write(store, name, junk)
    parsed = read(store)
    assert len(parsed.warnings) <= 20


_WORDS = st.sampled_from(
    ["doc", '"', "..", "/", NIX_STORE.show(OUT), "/nix-support", " ", "\t", "\x00", "é", "\n", "x"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(_WORDS, max_size=12).map("".join))
def test_every_product_lies_in_an_output(store: Path, text: str) -> None:
    for product in products(store, text).support.products:
        place = (store / product.output / product.sub_path).resolve()
        assert product.output in (OUT, DEV)
        assert place.is_relative_to(store / product.output)
        assert place.exists()
