"""What Nix says it would build, and what those derivations ask for."""

import base64
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.buildbot.unbuilt import (
    ask_of,
    features_of,
    fetch_command,
    read_fetched,
    read_plan,
)
from grange.errors import PeerError
from grange.store.derivation import Derivation, Output, unparse
from grange.store.path import NIX_STORE, StoreDir, StorePath

BASES = "0123456789abcdfghijklmnpqrsvwxyz"
DRVS = st.lists(
    st.sampled_from(BASES).map(lambda char: StorePath(f"{char * 32}-a.drv")), max_size=9
)
HEADS = ["these {n} derivations will be built:", "these derivations will be built:"]


def drv_text(name: str, store: StoreDir, **env: str) -> bytes:
    out = {"out": Output(store.parse(f"{store.root}/{'1' * 32}-{name}"), "", "")}
    return unparse(Derivation(name, out, {}, (), "x86_64-linux", "/bin/sh", (), env), store)


@given(DRVS, st.sampled_from(HEADS), st.booleans())
def test_a_plan_is_what_is_built_and_not_what_is_fetched(
    drvs: list[StorePath], head: str, is_warned: bool
) -> None:
    lines = ["warning: the substituter is slow"] if is_warned else []
    if drvs:
        lines.append(head.format(n=len(drvs)))
        lines += [f"  {NIX_STORE.show(drv)}" for drv in drvs]
    fetched = f"  {NIX_STORE.root}/{'2' * 32}-b.drv"
    lines += ["these 2 paths will be fetched (0.10 MiB download, 0.50 MiB unpacked):", fetched]
    assert read_plan("\n".join(lines), NIX_STORE) == tuple(drvs)


def test_one_derivation_has_words_of_its_own() -> None:
    drv = f"{'0' * 32}-hello.drv"
    text = f"this derivation will be built:\n  {NIX_STORE.root}/{drv}\n"
    assert read_plan(text, NIX_STORE) == (drv,)
    assert read_plan("", NIX_STORE) == ()


@pytest.mark.parametrize(
    "text",
    [
        "would build:\n  /nix/store/x.drv\n",
        "error: something\n",
        "these 2 derivations will be built:\n  /gnu/store/" + "0" * 32 + "-a.drv\n",
        "these 2 derivations will be built:\n  /nix/store/" + "0" * 32 + "-a\n",
    ],
)
def test_words_that_are_not_known_are_not_taken_for_nothing_to_build(text: str) -> None:
    assert read_plan(text, NIX_STORE) is None


@given(st.text(max_size=300))
def test_any_text_is_a_plan_or_none(text: str) -> None:
    read_plan(text, NIX_STORE)
    read_fetched(text, NIX_STORE)


@pytest.fixture
def store(tmp_path: Path) -> StoreDir:
    return StoreDir(str(tmp_path))


def fetch(root: str, listed: str) -> subprocess.CompletedProcess[str]:
    command = fetch_command(root)
    return subprocess.run(command, input=listed, capture_output=True, text=True, check=False)


def test_a_worker_sends_what_has_features_and_the_root(store: StoreDir) -> None:
    texts = {
        "plain": drv_text("plain", store),
        "kvm": drv_text("kvm", store, requiredSystemFeatures="kvm", long="x" * 9_000),
        "root": drv_text("root", store),
    }
    paths = {}
    for number, (name, text) in enumerate(texts.items()):
        paths[name] = store.parse(f"{store.root}/{BASES[number] * 32}-{name}.drv")
        Path(store.show(paths[name])).write_bytes(text)
    listed = "".join(f"{store.show(path)}\n" for path in paths.values())
    ran = fetch(store.show(paths["root"]), listed)
    assert ran.returncode == 0, ran.stderr
    assert max(map(len, ran.stdout.splitlines())) < 4_000, "workers cut longer lines"
    found = read_fetched(ran.stdout, store)
    assert found == {paths[name]: texts[name] for name in ("root", "kvm")}
    assert features_of(found, store) == ("kvm",)
    assert read_fetched(ran.stdout.replace("grange-end\n", ""), store) is None


def test_a_worker_that_lacks_a_derivation_says_so(store: StoreDir) -> None:
    missing = f"{store.root}/{'0' * 32}-gone.drv"
    ran = fetch(missing, "")
    assert ran.returncode != 0
    assert read_fetched(ran.stdout, store) is None


def test_what_is_garbled_is_no_derivation() -> None:
    path = f"{NIX_STORE.root}/{'0' * 32}-a.drv"
    garbled = base64.b64encode(b"Derive(requiredSystemFeatures").decode()
    assert read_fetched(f"grange-drv {path}\n*{garbled}\ngrange-end\n", NIX_STORE) is None
    found = read_fetched(f"grange-drv {path}\n{garbled}\ngrange-end\n", NIX_STORE)
    assert found is not None
    with pytest.raises(PeerError):
        features_of(found, NIX_STORE)


def test_the_first_system_that_builders_have_counts() -> None:
    ask = ask_of([None, "builtin", "i686-linux", "x86_64-linux"], ["kvm"], ["big"], "found")
    assert ask is not None
    assert (ask.system, ask.features) == ("i686-linux", ("big", "kvm"))
    assert ask_of([None, "builtin", ""], [], [], "found") is None
