"""Output paths: Nix's own derivations check, and no altered one does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from grange.errors import PeerError
from grange.store.closure import topological
from grange.store.derivation import Derivation, parse, unparse
from grange.store.hash import Hash
from grange.store.outputs import (
    Modulo,
    OutputKind,
    check,
    derivation_path,
    fixed_output_hash,
    fixed_output_path,
    kind_of,
    make_path,
    output_name,
    source_path,
    text_path,
)
from grange.store.path import NIX_STORE, StoreDir, StorePath

DATA = Path(__file__).parent / "data"


def load(folder: str) -> dict[StorePath, Derivation]:
    files = {StorePath(file.name): file.read_bytes() for file in DATA.glob(f"{folder}/*.drv")}
    return {
        path: parse(aterm, path.name.removesuffix(".drv"), NIX_STORE)
        for path, aterm in files.items()
    }


REAL = load("derivations")
ORDER = topological(REAL, lambda path: REAL[path].input_drvs)


def all_checked() -> dict[StorePath, Modulo]:
    modulo: dict[StorePath, Modulo] = {}
    for path in ORDER:
        check(REAL[path], path, NIX_STORE, modulo)
    return modulo


CHECKED = all_checked()


def one(name: str) -> tuple[StorePath, Derivation]:
    ((path, drv),) = ((path, drv) for path, drv in REAL.items() if drv.name == name)
    return path, drv


def test_all_real_derivations_check() -> None:
    assert len(CHECKED) == len(REAL) >= 25


def test_equal_outputs_make_equal_dependants() -> None:
    """Two roads to one fixed output: the dependants differ in their path, not in their outputs."""
    first, second = (path for path, drv in REAL.items() if drv.name == "flat-sha256")
    assert CHECKED[first] == CHECKED[second]
    left, right = (path for path, drv in REAL.items() if drv.name == "diamond")
    assert REAL[left].outputs == REAL[right].outputs
    assert CHECKED[left] == CHECKED[right]


@pytest.mark.parametrize("path", ORDER, ids=lambda path: path.name)
def test_a_derivation_not_read_from_text_checks_alike(path: StorePath) -> None:
    copy = replace(REAL[path])
    modulo = {known: CHECKED[known] for known in copy.input_drvs}
    assert check(copy, path, NIX_STORE, modulo) == CHECKED[path]
    assert modulo[path] == CHECKED[path]


def reasons(path: StorePath, address: Callable[[Derivation], StorePath]) -> list[str]:
    """Flip the lowest bit of every byte in turn; why each of these derivations is refused."""
    aterm = unparse(REAL[path], NIX_STORE)
    found = []
    for index in range(len(aterm)):
        flipped = aterm[:index] + bytes([aterm[index] ^ 1]) + aterm[index + 1 :]
        try:
            drv = parse(flipped, REAL[path].name, NIX_STORE)
            check(drv, address(drv), NIX_STORE, dict(CHECKED))
        except PeerError as error:
            found.append(str(error))
        else:
            pytest.fail(f"accepted {flipped!r}")
    return found


@pytest.mark.parametrize("path", ORDER, ids=lambda path: path.name)
def test_no_byte_may_change_under_its_path(path: StorePath) -> None:
    refused = reasons(path, lambda _: path)
    assert any("its path is" in reason for reason in refused)


@pytest.mark.parametrize(
    "path",
    [path for path in ORDER if kind_of(REAL[path]) is OutputKind.INPUT_ADDRESSED],
    ids=lambda path: path.name,
)
def test_no_byte_may_change_even_where_the_path_of_the_derivation_follows(path: StorePath) -> None:
    refused = reasons(path, lambda drv: derivation_path(drv, NIX_STORE))
    assert any("its output " in reason for reason in refused)
    assert any("environment variable" in reason for reason in refused)
    assert not any("its path is" in reason for reason in refused)


def refuse(drv: Derivation, complaint: str, modulo: dict[StorePath, Modulo] | None = None) -> None:
    known = dict(CHECKED) if modulo is None else modulo
    before = dict(known)
    with pytest.raises(PeerError, match=complaint):
        check(drv, derivation_path(drv, NIX_STORE), NIX_STORE, known)
    assert known == before


def test_a_fixed_output_is_held_to_its_path_its_hash_and_its_environment() -> None:
    _, drv = one("recursive-sha1")
    out = drv.outputs["out"]
    lie = StorePath("a" * 32 + "-recursive-sha1")
    env = {**drv.env, "out": NIX_STORE.show(lie)}
    refuse(replace(drv, env=env), "environment variable 'out'")
    refuse(replace(drv, outputs={"out": replace(out, path=lie)}, env=env), "its output 'out' is")
    refuse(replace(drv, outputs={"out": replace(out, hash="0" * 40)}), "its output 'out' is")
    refuse(replace(drv, outputs={"out": replace(out, hash=out.hash.upper())}), "lower-case base 16")
    refuse(replace(drv, outputs={"out": replace(out, hash="00")}), "is not sha1")
    refuse(replace(drv, outputs={"out": replace(out, hash_algo="sha1")}), "its output 'out' is")
    refuse(replace(drv, outputs={"out": replace(out, hash_algo="git:sha1")}), "does not know")
    env = {**drv.env, "dev": NIX_STORE.show(lie)}
    refuse(replace(drv, outputs={"dev": replace(out, path=lie)}, env=env), "must be 'out'")
    env = {**drv.env, "two": drv.env["out"]}
    refuse(replace(drv, outputs={"out": out, "two": out}, env=env), "must be 'out'")


def test_how_a_fixed_output_is_made_does_not_matter() -> None:
    _, drv = one("flat-md5")
    other = replace(drv, args=("another", "way"), system="aarch64-linux")
    known = check(other, derivation_path(other, NIX_STORE), NIX_STORE, {})
    assert known == CHECKED[one("flat-md5")[0]]


def test_inputs_must_be_known_and_have_the_outputs_used() -> None:
    _, drv = one("left")
    refuse(drv, "is unknown; send it before", {})
    (wrong,) = [path for path in drv.input_drvs if path.name == "multiple-1.0.drv"]
    refuse(replace(drv, input_drvs={**drv.input_drvs, wrong: ("man",)}), "has no output 'man'")


def test_paths_missing_from_the_environment_need_structured_attributes() -> None:
    _, drv = one("empty")
    refuse(replace(drv, env={k: v for k, v in drv.env.items() if k != "out"}), "variable 'out'")


def test_structured_attributes_may_leave_the_paths_out() -> None:
    _, drv = one("structured")
    bare = replace(drv, env={"__json": "{}"}, input_drvs={}, input_srcs=())
    masked = replace(
        bare, outputs={name: replace(out, path=None) for name, out in bare.outputs.items()}
    )
    digest = Hash.of("sha256", unparse(masked, NIX_STORE)).base16()
    outputs = {
        name: replace(
            out, path=make_path(f"output:{name}", digest, output_name(drv.name, name), NIX_STORE)
        )
        for name, out in bare.outputs.items()
    }
    good = replace(bare, outputs=outputs)
    check(good, derivation_path(good, NIX_STORE), NIX_STORE, {})
    refuse(replace(good, outputs=drv.outputs), "its output 'bin' is")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("floating", "floating content-addressed"),
        ("deferred", "deferred"),
        ("impure", "impure"),
    ],
)
def test_other_kinds_are_refused_by_name(name: str, kind: str) -> None:
    refused = load("refused")
    ((path, drv),) = ((path, drv) for path, drv in refused.items() if drv.name == name)
    with pytest.raises(PeerError, match=f"{path} is {kind}.* does not build this kind"):
        check(drv, path, NIX_STORE, {})


def test_kinds_may_not_be_mixed() -> None:
    _, plain = one("empty")
    _, fixed = one("flat-md5")
    mixed = replace(plain, outputs={"fix": fixed.outputs["out"], **plain.outputs})
    refuse(mixed, "mixed kinds")
    out = plain.outputs["out"]
    refuse(replace(plain, outputs={"out": replace(out, hash="00")}), "of none Nix knows")


def test_the_declared_hash_of_a_fixed_output() -> None:
    assert fixed_output_hash(one("recursive-sha512")[1]) == (Hash.of("sha512", b"grange"), True)
    assert fixed_output_hash(one("flat-sha512")[1]) == (Hash.of("sha512", b"grange"), False)
    fetched = one("hello-2.12.tar.gz")[1]
    assert (fetched.builder, fetched.system) == ("builtin:fetchurl", "builtin")
    assert fixed_output_hash(fetched) == (Hash.of("sha256", b"grange"), False)


def test_paths_of_sources() -> None:
    """The values are Nix's: of the files in data/, as derivations.nix imports them."""
    text = text_path("source.txt", Hash.of("sha256", b"a source\n"), (), NIX_STORE)
    tree = next(path for path in one("sources-2.0")[1].input_srcs if path.name == "tree")
    assert set(one("sources-2.0")[1].input_srcs) == {text, tree}
    nar_hash = Hash.of("sha256", b"x")
    flat = fixed_output_path("a", nar_hash, NIX_STORE, recursive=False)
    assert fixed_output_path("a", nar_hash, NIX_STORE, recursive=True) != flat
    paths = {
        source_path("a", nar_hash, (), NIX_STORE),
        source_path("a", nar_hash, (), NIX_STORE, self_reference=True),
        source_path("a", nar_hash, (text,), NIX_STORE),
        source_path("a", nar_hash, (text, tree), NIX_STORE),
        source_path("a", nar_hash, (), StoreDir("/gnu/store")),
        flat,
    }
    assert len(paths) == 6
    assert source_path("a", nar_hash, (tree, text, text), NIX_STORE) in paths
    with pytest.raises(PeerError, match="cannot name a store path"):
        text_path("a b", nar_hash, (), NIX_STORE)
