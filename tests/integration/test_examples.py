"""The example set: evaluated and built by Nix itself, without a farm, in a private store."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from grange.cli.instantiate import instantiate
from grange.client.closure import StorePlace, read_closure
from grange.errors import PeerError
from grange.store.derivation import parse
from grange.store.path import NIX_STORE, StorePath

pytestmark = pytest.mark.peer

EXAMPLES = Path(__file__).parents[2] / "examples"
NIX_CONFIG = "build-users-group =\nsandbox = false\nsubstitute = false\nmax-jobs = 8\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A chroot store of this module; what is in it must be made writable to be removed."""
    store = tmp_path_factory.mktemp("store")
    yield store
    for directory, names, _ in os.walk(store):
        for each in (directory, *(f"{directory}/{name}" for name in names)):
            if not os.path.islink(each):
                os.chmod(each, 0o700)


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIX_CONFIG", NIX_CONFIG)


def evaluate(store: Path, *attributes: str) -> list[StorePath]:
    paths = instantiate(str(EXAMPLES), attributes, [], str(store))
    return [NIX_STORE.parse(path) for path in paths]


def test_the_set_is_large_and_varied(store: Path) -> None:
    place = StorePlace(NIX_STORE, f"{store}/nix/store")
    closure = read_closure(evaluate(store), place)
    drvs = [
        parse(node.aterm, path.name.removesuffix(".drv"), NIX_STORE)
        for path, node in closure.drvs.items()
    ]
    assert len(drvs) >= 40
    assert any(len(drv.outputs) == 3 for drv in drvs)
    assert any(output.hash for drv in drvs for output in drv.outputs.values())
    assert max(len(drv.input_drvs) for drv in drvs) >= 16
    assert "broken" not in {drv.name for drv in drvs}


def test_all_of_it_builds_and_runs(store: Path) -> None:
    [hello] = evaluate(store, "hello")
    assert len(evaluate(store)) == 8
    command = ["nix-store", "--store", str(store), "--realise"]
    built = subprocess.run(
        [*command, NIX_STORE.show(hello)], capture_output=True, text=True, check=True
    )
    assert "Hello from a farm: 16 leaves, link 12." in built.stderr
    support = subprocess.run(
        [*command, *map(NIX_STORE.show, evaluate(store, "support"))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    nix_support = Path(f"{store}{support.stdout.strip()}/nix-support")
    assert {each.name for each in nix_support.iterdir()} == {
        "hydra-build-products", "hydra-metrics", "hydra-release-name"
    }  # fmt: skip


def test_what_is_meant_to_fail_fails(store: Path) -> None:
    [wanting] = evaluate(store, "failing")
    command = ["nix-store", "--store", str(store), "--realise", NIX_STORE.show(wanting)]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "configure: error: no compiler found" in failed.stderr


def test_an_expression_that_does_not_evaluate_is_the_persons(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PeerError, match="could not evaluate"):
        evaluate(store, "nonsense")
    assert "attribute 'nonsense'" in capfd.readouterr().err
