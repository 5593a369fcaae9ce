"""Packages of the test set, evaluated by a real Nix: names, outputs, and every bad end there is."""

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grange.evaluator.packages import EXPRESSION
from grange.oci.names import folded, spelled
from tests.integration.evaluating import PACKAGES, Place, a_place, job, source
from tests.peers import NixStore

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with a_place(tmp_path_factory.mktemp("evaluator") / "place") as place:
        yield place


def set_of(folder: Path, text: str) -> Path:
    """A package set with this expression."""
    folder.mkdir(exist_ok=True)
    (folder / "default.nix").write_text(text)
    return folder


# --- Packages that can be had -------------------------------------------------------------------


async def test_one_process_finds_all_packages_as_their_set_spells_them(place: Place) -> None:
    nix = place.nix()
    asked = ["hello", "multiple", "library", "library.dev", "plain", "git", "git.doc", "1password"]
    asked += ["7zz", "imagemagick", "fox", "twin", "xorg.libx11", "x86only"]
    asked += [f"python3packages.{each}" for each in ("pyyaml", "3to2", "inner.deep.est")]
    wanted = job(*asked, has_shell=True, is_image=True)
    names, found = await place.evaluate(wanted, nix=nix)
    assert nix.ran == ["nix-instantiate"]
    one_output = ["bashInteractive", "coreutils", "moreutils", "nano", "cacert", "iana-etc"]
    one_output += ["hello", "plain", "git", "x86only", "_1password", "_7zz", "ImageMagick", "fox"]
    one_output += ["Twin", "python3Packages.PyYAML", "python3Packages._3to2", "xorg.libX11"]
    one_output += ["python3Packages.inner.Deep.Est"]
    assert {name: sorted(each.outputs) for name, each in found.items()} == {
        **{name: ["out"] for name in one_output},
        "library": ["lib", "out"],
        "library.dev": ["dev"],
        "git.doc": ["doc"],
        "multiple": ["bin", "man"],
    }
    assert not [each.message for each in found.values() if each.lack]
    assert found["multiple"].program == "multiple"
    for each in found.values():
        assert all(path in place.drv(each.drv_path) for path in each.outputs.values())
    ways = {tuple(each.way): each.names for each in names}
    assert "PyYAML" in ways["python3Packages",]
    assert ways["python3Packages", "inner"] == ["Deep"]
    assert {"Fox", 'quote"d', "${system}", "c++filt"} <= {*ways[()]}
    assert not {"a b", "ümlaut"} & {*ways[()]}  # nobody could ask for them


async def test_nix_folds_names_as_the_farm_does(place: Place, tmp_path: Path) -> None:
    words = [
        "ab",
        "aB",
        "Ab",
        "AB",
        "CD",
        "cD",
        "EfG",
        "x_Y",
        "X_y",
        "_a",
        "a'b",
        "a+b",
        "A-b",
        "ÄB",
    ]
    words += ["1x", "_1x", "_1X", "1Y", "_1Y", "__2", "_2z", "9", "_9", "K"]
    made = 'builtins.mapAttrs (name: _: derivation { name = "p"; inherit system; builder = "/b"; })'
    attributes = " ".join(f'"{word}" = 1;' for word in words)
    text = f"{{ system, ... }}: let made = {made} {{ {attributes} }}; in made // {{ Set = made; }}"
    spec = source("path", set_of(tmp_path / "set", text))
    asked = ["ab", "cd", "efg", "1x", "1y", "2z", "a-b", "x_y", "9", "k", "none", "7none"]
    asked += [f"set.{each}" for each in asked]
    nix = place.nix()
    names, found = await place.evaluate(job(*asked, spec=spec), nix=nix)
    assert nix.ran == ["nix-instantiate"]  # a second one would ask for what it spelled otherwise
    spellings = {tuple(each.way): folded(each.names) for each in names}
    meant = {".".join(spelled(each, spellings)) for each in asked}
    assert found.keys() == meant
    assert {"CD", "1x", "1Y", "_2z", "X_y", "9", "Set.9", "ab", "Set.CD"} <= meant
    assert {name for name, each in found.items() if each.lack} == {
        "none", "_7none", "Set.none", "Set.7none"
    }  # fmt: skip


async def test_a_set_is_called_with_what_its_source_says(place: Place) -> None:
    _, plain = await place.evaluate(job("hello", "overlaid"))
    assert plain["overlaid"].lack == "missing"
    overlay = (PACKAGES / "overlay.nix").read_text()
    config = {
        "greeting": "Good day",
        "allowUnfree": True,
        "permittedInsecurePackages": ["insecure"],
    }
    spec = source("path", PACKAGES, overlays=[overlay], config=config)
    asked = ("hello", "overlaid", "unfree", "insecure", "broken")
    _, ours = await place.evaluate(job(*asked, spec=spec))
    assert {name: each.lack for name, each in ours.items() if each.lack} == {"broken": "broken"}
    assert ours["hello"].drv_path != plain["hello"].drv_path
    _, arm = await place.evaluate(job("hello", "x86only", system="aarch64-linux"))
    assert arm["x86only"].lack == "unsupported"
    assert arm["hello"].drv_path != plain["hello"].drv_path


@pytest.mark.parametrize("text", ["{ system, ... }:", "{ system }@args:", "args@{ system, ... }:"])
async def test_a_set_may_take_less(place: Place, tmp_path: Path, text: str) -> None:
    made = '{ a = derivation { name = "a"; inherit system; builder = "/bin/sh"; }; }'
    spec = source("path", set_of(tmp_path / "set", f"{text} {made}"))
    _, found = await place.evaluate(job("a", spec=spec))
    assert found["a"].drv_path


async def test_nothing_of_the_user_decides_what_packages_are(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "home/.config/nixpkgs"
    config.mkdir(parents=True)
    (config / "config.nix").write_text("{ allowUnfree = true; }")
    for name, value in (("HOME", str(tmp_path / "home")), ("NIXPKGS_ALLOW_UNFREE", "1")):
        monkeypatch.setenv(name, value)
    text = """{ system, ... }: let
      seen = builtins.getEnv "NIXPKGS_ALLOW_UNFREE" + toString
        (builtins.pathExists (builtins.getEnv "HOME" + "/.config/nixpkgs/config.nix"));
    in if seen == "" then { } else throw "it sees ${seen}"
    """
    spec = source("path", set_of(tmp_path / "set", text))
    _, found = await place.evaluate(job("a", spec=spec))
    assert found["a"].lack == "missing"


# --- Packages that cannot be had ----------------------------------------------------------------


async def test_why_there_is_no_package_is_told_of_each(place: Place) -> None:
    nix = place.nix()
    said = {
        "unfree": ("unfree", "its license is not free"),
        "licensed": ("unfree", "its license is not free"),
        "broken": ("broken", "it is marked as broken"),
        "insecure": ("insecure", "it is known to be insecure: CVE-2014-0160"),
        "unsupported": ("unsupported", "it is not for x86_64-linux"),
        "elsewhere": ("unsupported", "it is not for x86_64-linux: it is for riscv64-linux"),
        "nonsense": ("missing", "the package set has no such attribute"),
        "hello.nonsense": ("missing", "the package set has no such attribute"),
        "nonsense.hello": ("missing", "the package set has no such attribute"),
        "function": ("no package", "it is a function"),
        "number": ("no package", "it is a number"),
        "list": ("no package", "it is a list"),
        "set": ("no package", "it is a set, and a package in it is asked for as SET.NAME"),
        "throwing": ("failed", "throwing was removed from this set; use hello"),
        "throwing.more": ("failed", "throwing was removed from this set; use hello"),
        "asserting": ("failed", "assertion '((1 + 1) == 3)' failed"),
        "badly-chosen": (
            "failed",
            "its meta.outputsToInstall names 'nonsense', which is no output of it",
        ),
    }
    _, found = await place.evaluate(job(*said), nix=nix)
    assert {name: (each.lack, each.message) for name, each in found.items()} == said
    assert len(nix.ran) == 5  # one for all, and one for each that Nix did not give words to


async def test_who_ends_nix_is_blamed_and_the_others_are_had(place: Place) -> None:
    """At once: each alone costs as many processes as all of them."""
    said = {
        "aborting": "evaluation aborted with the following error message: 'aborting gives up'",
        "aborting.more": "evaluation aborted with the following error message: 'aborting gives up'",
        "bottomless": "stack overflow (possible infinite recursion)",
        "circular": "infinite recursion encountered",
        "importing": "because the option 'allow-import-from-derivation' is disabled",
        "misspelled": "attribute 'helo' missing",
        "pretender": "attribute 'drvPath' missing",
        "unending": "infinite recursion encountered",
        "typing": "value is a string while a set was expected",
        "wordy": "attribute 'outPath' missing",
    }
    _, found = await place.evaluate(job("hello", *said, "htop"))
    assert found["hello"].drv_path
    assert found["htop"].drv_path
    assert {name: each.lack for name, each in found.items() if each.lack} == dict.fromkeys(
        said, "failed"
    )
    for name, words in said.items():
        assert words in found[name].message, name


@pytest.mark.parametrize(
    ("package", "more", "kind", "words"),
    [
        ("hungry", {"memory_bytes": 100 << 20}, "too much", "takes more than 100 MiB of memory"),
        ("loud", {}, "too much", "see what it traces"),
        ("wide.attribute", {}, "too much", "its answer has more than 8"),
        ("endless", {"timeout_s": 1.5}, "timeout", "takes longer than 2 s"),
    ],
)
async def test_what_takes_too_much_ends(
    place: Place, package: str, more: dict[str, Any], kind: str, words: str
) -> None:
    found, said = await place.failure(job(package, **more))
    assert (found, words in said) == (kind, True), said
    if kind == "too much":
        assert package in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{ system, ... }: {", "syntax error"),
        ("{ config, ... }: throw ''no release of\nthis set is for you''", "no release of this set"),
        ("[ 1 ]", "the package set is a list, not a set"),
        ("{ system, ... }: { a = 1; }", "does not take the argument 'config'"),
        ("{ a = 1; }", "does not take the argument 'config'"),
        ("{ system, other, config }: { }", "called without required argument 'other'"),
    ],
)
async def test_a_set_that_is_none_is_to_blame_itself(
    place: Place, tmp_path: Path, text: str, words: str
) -> None:
    spec = source("path", set_of(tmp_path / "set", text), config={"a": 1})
    kind, said = await place.failure(job("hello", "git", "htop", spec=spec))
    assert kind == "source"
    assert words in said, said


async def test_a_small_set_takes_little_memory(place: Place) -> None:
    _, found = await place.evaluate(job("hello", "git", memory_bytes=64 << 20))
    assert not [each.message for each in found.values() if each.lack]


async def test_an_overlay_with_an_error_is_the_sets_fault(place: Place) -> None:
    spec = source("path", PACKAGES, overlays=["final: prev: { a = ; }"])
    kind, said = await place.failure(job("hello", spec=spec))
    assert (kind, "syntax error" in said) == ("source", True)


async def test_names_are_never_read_as_expressions(place: Place) -> None:
    odd = ['"; abort "', "${abort}", "hello; abort", "/etc/passwd", "--option"]
    _, found = await place.evaluate(job(*odd))
    assert {each.lack for each in found.values()} == {"missing"}


# --- What an evaluation may see -------------------------------------------------------------------


async def test_a_tree_that_others_write_sees_nothing_of_this_machine(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("a key")
    text = """{ system, overlays, ... }: let set = {
      outside = derivation { name = builtins.readFile SECRET; inherit system; builder = "/a"; };
      linked = derivation { name = builtins.readFile ./link; inherit system; builder = "/a"; };
      fetched = builtins.fetchTarball "file://SECRET";
      inside = derivation { name = builtins.readFile ./name; inherit system; builder = "/a"; };
    }; in set // builtins.head overlays set set""".replace("SECRET", f"{tmp_path}/secret")
    tree = set_of(tmp_path / "set", text)
    (tree / "name").write_text("inside")
    (tree / "link").symlink_to(tmp_path / "secret")
    asked = ("inside", "outside", "linked", "fetched")
    overlay = "final: prev: { added = prev.inside; }"
    spec = source("git", "https://example.org/set.git", overlays=[overlay])
    _, found = await place.evaluate(job("added", *asked, spec=spec), tree)
    assert found["inside"].drv_path
    assert found["added"].drv_path == found["inside"].drv_path
    for name in ("outside", "linked", "fetched"):
        assert "restricted mode" in found[name].message, name
        assert "a key" not in found[name].message


async def test_a_cancelled_evaluation_leaves_no_process(place: Place) -> None:
    nix = place.nix()
    running = asyncio.create_task(place.evaluate(job("endless"), nix=nix))
    await until(lambda: bool(processes_of(place)))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not processes_of(place))


async def until(holds: Callable[[], bool]) -> None:
    """Of processes, of which the kernel tells nobody else."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def processes_of(place: Place) -> list[str]:
    """Processes of Nix that evaluate here."""
    lines = command_lines().items()
    mark = str(place.folder).encode()
    return [pid for pid, line in lines if line.startswith(b"nix-instantiate") and mark in line]


def command_lines() -> dict[str, bytes]:
    """Of all processes, by number."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[entry.name] = (entry / "cmdline").read_bytes()
    return found


# A package that imports what it builds first: a script of busybox says how.
IMPORTING = """{ system, ... }: let
  busybox = builtins.path {
    name = "busybox"; path = /usr/bin; filter = path: _: baseNameOf path == "busybox";
  };
  run = script: derivation {
    name = "expression"; inherit system; builder = "${busybox}/busybox";
    args = [ "sh" "-euc" script ]; b = "${busybox}/busybox";
  };
  named = name: derivation { inherit name system; builder = "/b"; };
in {
  good = named (import (run ''echo '"imported"' > $out''));
  waiting = import (run "$b sleep SECONDS");
}"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to build in a store of its own")
async def test_what_is_imported_is_built_only_where_that_is_allowed(
    place: Place, tmp_path: Path
) -> None:
    seconds = str(98_000_000 + os.getpid())  # that nobody else sleeps for
    text = IMPORTING.replace("SECONDS", seconds)
    spec = source("path", set_of(tmp_path / "set", text))
    _, refused = await place.evaluate(job("good", spec=spec))
    assert "'allow-import-from-derivation' is disabled" in refused["good"].message
    _, allowed = await place.evaluate(job("good", spec=spec, may_import=True))
    assert allowed["good"].drv_path.endswith("-imported.drv")

    waiting = asyncio.create_task(place.evaluate(job("waiting", spec=spec, may_import=True)))

    def is_building() -> bool:
        return any(f"sleep\0{seconds}".encode() in line for line in command_lines().values())

    await until(is_building)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: not is_building())


# --- Every Nix there is ---------------------------------------------------------------------------


def test_the_expression_means_the_same_to_older_and_newer_nix(nix_store: NixStore) -> None:
    work = nix_store.root / "nix/work"
    seen = str(work) if nix_store.nix == "2.8" else "/nix/work"  # the other one lives elsewhere
    shutil.copytree(PACKAGES, work)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, work / "busybox")

    def ask(*settings: str, **more: Any) -> list[dict[str, Any]]:
        said = {"set": seen, "system": "x86_64-linux", "config": {}, "overlays": []}
        told = {"packages": [], "attributes": [], "evaluate": True, "blame": False}
        (work / "job.json").write_text(json.dumps(said | told | more))
        command = ["nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode"]
        command += ["-I", f"grange={seen}", "--argstr", "job", f"{seen}/job.json"]
        options = [word for each in settings for word in ("--option", *each.split("="))]
        answer = nix_store.run(*command, *options, "--expr", EXPRESSION)
        packages: list[dict[str, Any]] = json.loads(answer)["packages"]
        return packages

    packages = ["1password", "multiple", "python3packages.pyyaml", "throwing", "unfree"]
    found = ask("restrict-eval=true", packages=packages)
    assert [(each["attribute"], each.get("lack", "")) for each in found] == [
        (["_1password"], ""),
        (["multiple"], ""),
        (["python3Packages", "PyYAML"], ""),
        (["throwing"], "failed"),
        (["unfree"], "unfree"),
    ]
    assert found[1]["outputs"].keys() == {"bin", "man"}
