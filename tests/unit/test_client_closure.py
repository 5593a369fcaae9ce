"""Build closures read from files: whole and in order, or refused in words."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grange.client.closure import StorePlace, read_closure
from grange.errors import PeerError
from grange.store.path import NIX_STORE, StorePath


def name(label: str) -> StorePath:
    return StorePath.parse_base(f"{label:0>32}-{label}.drv")


def aterm(inputs: list[StorePath], sources: list[str]) -> bytes:
    drvs = ",".join(f'("/nix/store/{each}",["out"])' for each in inputs)
    srcs = ",".join(f'"/nix/store/{each}"' for each in sources)
    out = '("out","/nix/store/00000000000000000000000000000000-x","","")'
    return f'Derive([{out}],[{drvs}],[{srcs}],"x86_64-linux","/bin/sh",[],[("a","],[")])'.encode()


def write(
    directory: Path, label: str, inputs: list[str] | None = None, sources: list[str] | None = None
) -> StorePath:
    path = name(label)
    (directory / path).write_bytes(aterm(sorted(map(name, inputs or [])), sources or []))
    return path


def place(directory: Path) -> StorePlace:
    return StorePlace(NIX_STORE, str(directory))


def test_inputs_come_before_those_who_need_them(tmp_path: Path) -> None:
    source = "11111111111111111111111111111111-a.sh"
    write(tmp_path, "1")
    write(tmp_path, "2", ["1"], [source])
    write(tmp_path, "3", ["1"])
    root = write(tmp_path, "4", ["2", "3"])
    closure = read_closure([root], place(tmp_path))
    assert list(closure.drvs) == [name("1"), name("2"), name("3"), name("4")]
    assert closure.drvs[root].input_drvs == (name("2"), name("3"))
    assert closure.sources() == {StorePath(source): name("2")}


def test_a_long_chain_is_no_matter(tmp_path: Path) -> None:
    for number in range(1, 3000):
        write(tmp_path, str(number), [str(number - 1)] if number > 1 else [])
    assert len(read_closure([name("2999")], place(tmp_path)).drvs) == 2999


def test_a_missing_derivation_is_named_with_who_wants_it(tmp_path: Path) -> None:
    root = write(tmp_path, "2", ["1"])
    with pytest.raises(PeerError, match=rf"{name('1')}, an input of {root}, does not exist"):
        read_closure([root], place(tmp_path))


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="the derivation to build, does not exist"):
        read_closure([name("1")], place(tmp_path))


def test_derivations_that_need_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "1", ["2"])
    write(tmp_path, "2", ["1"])
    with pytest.raises(PeerError, match="form a cycle of 2"):
        read_closure([name("1")], place(tmp_path))


@pytest.mark.parametrize("kept", [0, 1, 20, 100, 130, 200, -1])
def test_a_truncated_derivation_is_refused(tmp_path: Path, kept: int) -> None:
    write(tmp_path, "1")
    path = write(tmp_path, "2", ["1"], ["11111111111111111111111111111111-a.sh"])
    file = tmp_path / path
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(PeerError, match=f"{path} is not a whole derivation"):
        read_closure([path], place(tmp_path))


def test_paths_of_another_store_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "2", ["1"])
    file = tmp_path / path
    file.write_bytes(
        file.read_bytes().replace(b"/nix/store/00000000000000000000000000000001", b"/gnu/x")
    )
    with pytest.raises(PeerError, match="is not a whole derivation of /nix/store"):
        read_closure([path], place(tmp_path))


@given(junk=st.binary(max_size=300), at=st.integers(0, 200))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=200,
)
def test_junk_is_refused_in_words(tmp_path: Path, junk: bytes, at: int) -> None:
    whole = aterm([], [])
    (tmp_path / name("1")).write_bytes(whole[:at] + junk + whole[at:])
    try:
        read_closure([name("1")], place(tmp_path))
    except PeerError:
        pass
