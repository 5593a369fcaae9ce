"""What people hand in that is forged, broken or impossible: refused with a reason, never stored."""

import os
import shutil
from collections.abc import Iterator
from hashlib import sha256
from uuid import uuid4

import httpx
import pytest
import zstandard

from grange.store.derivation import parse
from grange.store.hash import Hash
from grange.store.nar import nar_of_text
from grange.store.outputs import derivation_path
from grange.store.path import NIX_STORE
from tests.integration.farm import Farm, running_farm

pytestmark = pytest.mark.peer

NOBODY = "/nix/store/" + "0" * 32 + "-nobody.drv"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with running_farm(tmp_path_factory.mktemp("input") / "farm") as farm:
        farm.succeed(farm.submit(farm.step("honest", "echo honest > $out")))  # brings the source
        yield farm


def frame(path: str, aterm: bytes) -> bytes:
    name = path.rpartition("/")[2].encode()
    return len(name).to_bytes(2, "big") + name + len(aterm).to_bytes(4, "big") + aterm


def post(farm: Farm, *frames: bytes) -> httpx.Response:
    body = zstandard.compress(b"".join(frames))
    return farm.post("/api/v1/derivations", content=body)


def refused(farm: Farm, answer: httpx.Response, *paths: str) -> str:
    """The reason; nothing of it is known to the farm."""
    assert answer.status_code == 400, answer.text
    assert answer.json()["fault"] == "request"
    assert farm.client.lacking(paths).derivations == list(paths)
    for path in paths:
        assert farm.narinfo(path).status_code == 404
    return str(answer.json()["error"])


def fresh(farm: Farm, name: str, attributes: str = "{}") -> tuple[str, bytes]:
    """A derivation that the farm has not seen: its path and text."""
    path = farm.step(name, f"echo {uuid4()} > $out", attributes)
    return path, (farm.here.root / path.lstrip("/")).read_bytes()


def path_of(aterm: bytes, name: str) -> str:
    """Where Nix would keep a derivation of this text."""
    return NIX_STORE.show(derivation_path(parse(aterm, name, NIX_STORE), NIX_STORE))


def output_of(aterm: bytes, name: str) -> str:
    output = parse(aterm, name, NIX_STORE).outputs["out"].path
    assert output is not None
    return NIX_STORE.show(output)


def test_an_output_path_that_belongs_to_another_is_refused(farm: Farm) -> None:
    _, theirs = fresh(farm, "same-name")
    _, mine = fresh(farm, "same-name")
    own, others = output_of(mine, "same-name"), output_of(theirs, "same-name")
    forged = mine.replace(own.encode(), others.encode())
    path = path_of(forged, "same-name")
    reason = refused(farm, post(farm, frame(path, forged)), path)
    assert NIX_STORE.parse(others) in reason
    assert "from what it says follows" in reason


def test_a_derivation_under_another_path_is_refused(farm: Farm) -> None:
    other, _ = fresh(farm, "own-path")
    _, aterm = fresh(farm, "own-path")
    assert "own-path" in refused(farm, post(farm, frame(other, aterm)), other)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda aterm: aterm[: len(aterm) // 2],
        lambda aterm: aterm + b"x",
        lambda aterm: b"",
        lambda aterm: b"Derive(" * 10_000,
        lambda aterm: b"[" * 100_000,
        lambda aterm: aterm.replace(b'"sh"', b'"s\\'),
        lambda aterm: os.urandom(1000),
    ],
    ids=["truncated", "longer", "empty", "nested", "brackets", "quote", "noise"],
)
def test_what_is_no_derivation_is_refused(farm: Farm, spoil: object) -> None:
    assert callable(spoil)
    path, aterm = fresh(farm, "spoilt")
    assert "spoilt" in refused(farm, post(farm, frame(path, spoil(aterm))), path)


def test_what_is_no_batch_is_refused(farm: Farm) -> None:
    path, aterm = fresh(farm, "batch")
    whole = frame(path, aterm)
    assert "end early" in refused(farm, post(farm, whole[:-1]), path)
    name = path.rpartition("/")[2].encode()
    huge = len(name).to_bytes(2, "big") + name + (1 << 31).to_bytes(4, "big")
    assert "is most" in refused(farm, post(farm, huge), path)
    plain = farm.post("/api/v1/derivations", content=whole)
    assert "zstd" in refused(farm, plain, path)
    bomb = zstandard.compress(bytes(100 << 20))
    answer = farm.post("/api/v1/derivations", content=bomb)
    assert "MiB" in refused(farm, answer)


def test_one_bad_derivation_spoils_its_batch(farm: Farm) -> None:
    good, good_text = fresh(farm, "good")
    bad, bad_text = fresh(farm, "bad")
    refused(farm, post(farm, frame(good, good_text), frame(bad, bad_text[:-1])), good, bad)
    assert post(farm, frame(good, good_text)).json() == {"added": 1}


def test_inputs_must_be_known_and_cycles_cannot_be(farm: Farm) -> None:
    path = farm.drv(
        f'let below = step "below" {{}} "echo {uuid4()} > $out"; '
        'in step "upper" { inherit below; } "echo > $out"'
    )
    aterm = (farm.here.root / path.lstrip("/")).read_bytes()
    [below] = [NIX_STORE.show(each) for each in parse(aterm, "upper", NIX_STORE).input_drvs]
    reason = refused(farm, post(farm, frame(path, aterm)), path)
    assert below.rpartition("/")[2] in reason
    # Two that need each other: neither can come before the other.
    upper = path.rpartition("/")[2].encode()
    text = aterm.replace(below.rpartition("/")[2].encode(), upper)
    assert upper.decode() in refused(farm, post(farm, frame(path, text)), path)
    lower = aterm.replace(below.encode(), path.encode())
    both = frame(below, lower), frame(path, aterm)
    assert "which the farm does not have" in refused(farm, post(farm, *both), path, below)


def test_an_unknown_derivation_is_no_build(farm: Farm) -> None:
    answer = farm.post("/api/v1/builds", json={"drv_paths": [NOBODY]})
    assert answer.status_code == 400
    assert "nobody.drv" in answer.json()["error"]
    for path in ("/nix/store/short", "/tmp/x.drv", "/nix/store/" + "e" * 32 + "-x.drv", ""):
        answer = farm.post("/api/v1/builds", json={"drv_paths": [path]})
        assert answer.status_code == 400, path


def test_a_system_that_nobody_has_waits_and_says_so(farm: Farm) -> None:
    build = farm.submit(farm.step("alien", "echo > $out", '{ system = "m68k-linux"; }'))
    assert build.outcome is None
    [why] = farm.client.why_build(build.id)
    assert why.answer == (
        "No agent can build it: it asks for system m68k-linux. "
        "It fails in 24 h unless one that can joins."
    )
    assert any("m68k-linux" in line for line in why.details)
    assert farm.client.cancel(build.id).outcome == "cancelled"


def source_claim(path: str, nar: bytes, address: Hash) -> dict[str, object]:
    return {
        "path": path,
        "nar_hash": Hash("sha256", sha256(nar).digest()).nix(),
        "nar_bytes": len(nar),
        "references": [],
        "content_address": f"fixed:r:{address.nix()}",
    }


def test_a_source_must_follow_from_its_content(farm: Farm) -> None:
    nar = nar_of_text(b"a source")
    own = Hash("sha256", sha256(nar).digest())
    wrong = "/nix/store/" + "0" * 32 + "-source"
    answer = farm.post("/api/v1/sources", json=[source_claim(wrong, nar, own)])
    assert answer.status_code == 400
    assert "source" in answer.json()["error"]
    info = farm.here.root / "a-source"
    info.write_bytes(b"a source")
    right = farm.here.run("nix-store", "--add", str(info)).strip()
    [grant] = farm.post("/api/v1/sources", json=[source_claim(right, nar, own)]).json()
    other = nar_of_text(b"a sauce!")
    for body in (other, nar[:-8], b""):
        refusal = httpx.put(grant["url"], content=zstandard.compress(body), trust_env=False)
        assert refusal.is_client_error, refusal.text
    assert farm.narinfo(right).status_code == 404
    stored = httpx.put(grant["url"], content=zstandard.compress(nar), trust_env=False)
    assert stored.status_code == 201, "a broken upload may be tried again"
    assert farm.narinfo(right).status_code == 200


def test_a_source_that_the_client_no_longer_has_is_named(farm: Farm) -> None:
    lost = f'builtins.toFile "lost" "{uuid4()}"'
    drv = farm.step("needs-lost", "echo > $out", f"{{ lost = {lost}; }}")
    aterm = (farm.here.root / drv.lstrip("/")).read_bytes()
    [source] = [s for s in parse(aterm, "needs-lost", NIX_STORE).input_srcs if s.name == "lost"]
    bare = farm.root / "bare"
    (bare / "nix/store").mkdir(parents=True)
    shutil.copy(farm.here.root / drv.lstrip("/"), bare / "nix/store")
    done = farm.grange("build", "--store", bare, drv)
    assert done.returncode == 2
    assert str(source) in done.stderr
    assert "is not in the store of this machine any more" in done.stderr
    assert farm.client.lacking([drv]).derivations == [drv]


def test_after_all_that_the_farm_builds(farm: Farm) -> None:
    farm.succeed(farm.submit(farm.step("after", "echo after > $out")))
