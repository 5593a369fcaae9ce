"""The example package set: called as nixpkgs is, evaluated and built by Nix, without a farm."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from grange.cli.farm_file import read_farm_file
from grange.oci.names import EVERY_IMAGE, SHELL_PACKAGES
from grange.scheduler.facts import Limits
from tests.peers import NixStore

pytestmark = pytest.mark.peer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> NixStore:
    return NixStore.make("2.8", tmp_path_factory.mktemp("packages") / "store")


def called(call: str) -> str:
    return f"(import {EXAMPLES}/packages {{ {call} }})"


def value(store: NixStore, expression: str) -> Any:
    command = ["nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode", "-E"]
    return json.loads(store.run(*command, expression))


def built(store: NixStore, *attributes: str, call: str = "") -> Path:
    """What the first of these attributes has become; all are built."""
    wanted = " ".join(f"set.{attribute}" for attribute in attributes)
    expression = f"let set = {called(call)}; in [ {wanted} ]"
    drvs = store.run("nix-instantiate", "-E", expression).split()
    outputs = store.run("nix-store", "--realise", *drvs).split()
    return Path(f"{store.root}{outputs[0]}")


def run(store: NixStore, program: Path, *arguments: str) -> str:
    """The output of a program, in a root that has nothing but the store."""
    inside = f"/{program.relative_to(store.root)}"
    command = ["chroot", str(store.root), inside, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_every_package_builds_and_programs_run(store: NixStore) -> None:
    shells = [*EVERY_IMAGE, *SHELL_PACKAGES]
    others = ["htop", "web", "_99bottles", "toyPackages.cowSay", "toyPackages.rot13", "git"]
    hello = built(store, "hello", *others, *shells)
    assert run(store, hello / "bin/hello") == "Hello, world!\n"
    bash = built(store, "bashInteractive") / "bin/bash"
    assert run(store, bash, "-c", "echo $((6 * 7))") == "42\n"
    assert "https" in (built(store, "iana-etc") / "etc/services").read_text()
    certificates = built(store, "cacert") / "etc/ssl/certs/ca-bundle.crt"
    assert certificates.read_text().startswith("-----BEGIN CERTIFICATE-----\n")


def test_the_toys_do_what_they_say(store: NixStore) -> None:
    bash, git = built(store, "bashInteractive") / "bin/bash", built(store, "git")
    (store.root / "tmp").mkdir(exist_ok=True)
    program = f"/{git.relative_to(store.root)}/bin/git"
    script = f"cd /tmp; {program} init; {program} commit first; {program} log"
    told = run(store, bash, "-c", script).splitlines()
    assert told[1] == told[2]
    assert told[2].endswith(" first")
    moreutils = built(store, "moreutils")
    chronic = f"/{moreutils.relative_to(store.root)}/bin/chronic"
    assert run(store, bash, "-c", f"{chronic} echo quiet; {chronic} false || echo failed") == (
        "failed\n"
    )


def test_config_and_overlays_are_heard(store: NixStore) -> None:
    web = built(store, "web", call="config.web.port = 8181;") / "bin/web"
    assert '"${1:-8181}"' in web.read_text()
    overlaid = f"overlays = [ (import {EXAMPLES}/overlay.nix) ];"
    welcome = built(store, "welcome", call=overlaid)
    assert run(store, welcome / "bin/welcome") == "Hello, and welcome to this farm!\n"
    twice = "overlays = [ (f: p: { one = 1; two = f.one + 1; }) (f: p: { one = p.one + 9; }) ];"
    assert value(store, f"{called(twice)}.two") == 11


def test_what_is_not_free_is_refused_but_told_of(store: NixStore) -> None:
    assert value(store, f"{called('')}.secretSauce.meta.unfree") is True
    with pytest.raises(subprocess.CalledProcessError) as refused:
        built(store, "secretSauce")
    assert "has an unfree license" in refused.value.stderr.decode()
    sauce = built(store, "secretSauce", call="config.allowUnfree = true;")
    assert sauce.read_text() == "tomatoes\n"


def test_outputs_to_install_are_said(store: NixStore) -> None:
    asked = ["hello", "greetings", "busybox", "git"]
    told = {name: value(store, f"{called('')}.{name}.meta.outputsToInstall") for name in asked}
    assert told == {
        "hello": ["out", "man"], "greetings": ["out"], "busybox": ["out"], "git": ["out"]
    }  # fmt: skip


def test_a_busybox_of_elsewhere_can_be_named(store: NixStore, tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tmp_path / "busybox")
    here = value(store, f"{called('')}.hello.drvPath")
    named = called(f"config.busybox = {json.dumps(str(tmp_path))};")
    assert value(store, f"{named}.hello.drvPath") == here
    elsewhere = called('system = "riscv64-linux";')
    with pytest.raises(subprocess.CalledProcessError) as refused:
        value(store, f"{elsewhere}.hello.drvPath")
    assert "is not available on the requested hostPlatform" in refused.value.stderr.decode()


def test_the_farms_file_names_the_set(store: NixStore) -> None:
    images = read_farm_file(EXAMPLES / "packages.toml", Limits()).images
    assert images is not None
    spec = images.settings.sources["examples"].spec
    assert spec.location == str(EXAMPLES / "packages")
    said = f"config = builtins.fromJSON ''{json.dumps(spec.config)}'';"
    assert value(store, f"{called(said)}.web.port") == "8080"


def test_a_set_with_a_busybox_of_its_own_is_the_same_set(store: NixStore, tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copytree(EXAMPLES / "packages", tmp_path / "packages")
    shutil.copy(busybox, tmp_path / "packages/busybox")
    here = value(store, f"{called('')}.hello.drvPath")
    assert value(store, f"(import {tmp_path}/packages {{ }}).hello.drvPath") == here
