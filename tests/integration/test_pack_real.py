"""The packer, the reader and the listing against Nix itself."""

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from grange.agent.pack import nar_bytes, pack
from grange.store.nar import Listing, NarReader

pytestmark = pytest.mark.peer

NIX_CONFIG = "substituters =\nbuild-users-group =\nexperimental-features = nix-command"


@pytest.fixture(scope="module", autouse=True)
def nix() -> None:
    if shutil.which("nix-store") is None:
        assert "CI" not in os.environ, "CI must have Nix"
        pytest.skip("needs Nix: apt-get install nix-bin")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    draw = random.Random(1)
    top = tmp_path / "tree"
    for name in ("empty", "a", "a/b", "a/b/c", "a-b", "many", "ünïcode €"):
        (top / name).mkdir(parents=True)
    (top / "a.b").write_bytes(b"sorts between a-b and the entries of a")
    (top / "a/run").write_bytes(b"#!/bin/sh\n")
    (top / "a/run").chmod(0o755)
    (top / "a/others").write_bytes(b"executable for others only")
    (top / "a/others").chmod(0o655)
    (top / "a/b/nothing").write_bytes(b"")
    (top / "a/b/c/dangling").symlink_to("/no/such/place")
    (top / "a/b/c/up").symlink_to("..")
    (top / "ünïcode €/ß 'quoted' \"\\").write_bytes(b"x")
    for number in range(2000):
        (top / f"many/{number}").write_bytes(draw.randbytes(draw.randrange(3000)))
    (top / "big").write_bytes(draw.randbytes((5 << 20) + 3))
    return top


def nix_store(*arguments: str) -> bytes:
    return run("nix-store", *arguments)


def run(*command: str) -> bytes:
    environment = os.environ | {"NIX_CONFIG": NIX_CONFIG}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout


def check(path: Path) -> None:
    dump = nix_store("--dump", str(path))
    packed = b"".join(map(bytes, pack(str(path))))
    assert packed == dump
    assert nar_bytes(str(path)) == len(dump)
    digest = run("nix", "hash", "path", "--base16", "--type", "sha256", str(path))
    assert hashlib.sha256(packed).hexdigest() == digest.decode().strip()
    reader = NarReader()
    reader.feed(dump)
    reader.finish()


def test_packs_a_tree_as_nix_does(tree: Path) -> None:
    check(tree)
    for entry in tree.iterdir():
        check(entry)


def test_packs_names_that_are_no_utf_8_as_nix_does(tree: Path) -> None:
    for name in (b"\xff", b"\xfe\xff", b"caf\xe9", b"\x01", b"\xf0\x28"):
        Path(os.fsdecode(os.fsencode(tree) + b"/" + name)).write_bytes(name)
    os.symlink(b"caf\xe9", os.fsencode(tree) + b"/link\xe9")
    check(tree)


def test_lists_a_tree_as_nix_does(tree: Path, tmp_path: Path) -> None:
    store, cache = f"{tmp_path}/store", tmp_path / "cache"
    nix_command = ("nix", "--store", store)
    path = run(*nix_command, "store", "add-path", str(tree)).decode().strip()
    run(*nix_command, "copy", "--to", f"file://{cache}?write-nar-listing=true", path)
    (expected,) = cache.glob("*.ls")
    listing = Listing()
    reader = NarReader(listing)
    for chunk in pack(str(tree)):
        reader.feed(chunk)
    reader.finish()
    assert listing.json() == expected.read_bytes()
