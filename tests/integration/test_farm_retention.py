"""A real farm that collects: what goes, what stays, and what is built or sent again."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from grange.store.path import NIX_STORE
from tests.integration.farm import Farm, Process, running_farm, until, wait_at
from tests.postgres import running_postgres

pytestmark = pytest.mark.peer

RULES = """\
[retention]
keep = { last = 1, days = 0 }
unreferenced_days = 0
promise_s = 0
grace_s = 0
orphan_hours = 0
"""
GRAPH = """\
let
  tool = step "tool" {} "echo a tool > $out";
  library = step "library" {} "echo a library > $out";
in step "top-VERSION" { inherit tool library; } "cat $tool; echo VERSION $library > $out"
"""


@pytest.fixture(scope="module", params=["SQLite", "PostgreSQL"])
def farm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Farm]:
    root = tmp_path_factory.mktemp("retention")
    (root / "farm.toml").write_text(RULES)
    options: tuple[str | Path, ...] = ("--config", root / "farm.toml")
    with ExitStack() as stack:
        if request.param == "PostgreSQL":
            database = stack.enter_context(running_postgres()).new_database()
            options = *options, "--database", database
        yield stack.enter_context(running_farm(root / "farm", *options))


def graph(farm: Farm, version: str) -> str:
    return farm.drv(GRAPH.replace("VERSION", version))


def cached(farm: Farm) -> set[str]:
    """The names of the paths in the cache, as a client of the bare store finds them."""
    folder = farm.state_dir / "cache"
    names = set()
    for file in folder.glob("*.narinfo"):
        lines = dict(line.split(": ", 1) for line in file.read_text().splitlines())
        assert (folder / lines["URL"]).exists(), "a narinfo without its NAR"
        names.add(NIX_STORE.parse(lines["StorePath"]).name)
    return names


def test_what_is_not_kept_goes_and_comes_again(farm: Farm) -> None:
    old = farm.succeed(farm.submit(graph(farm, "1")))
    new = farm.succeed(farm.submit(graph(farm, "2")))
    assert {"busybox", "tool", "library", "top-1", "top-2"} <= cached(farm)
    said = farm.grange("collect", "--dry-run", "--json", "--url", farm.url)
    plan = json.loads(said.stdout)
    names = {NIX_STORE.parse(path).name for path in plan["paths"]}
    assert names == {"busybox", "tool", "top-1"}, "only the last build's closure is kept"
    assert (plan["count"], plan["is_done"]) == (3, False)
    assert plan["file_bytes"] > 0
    assert [kept["reason"] for kept in plan["kept"]] == ["project default"]
    assert {"busybox", "tool", "top-1"} <= cached(farm), "a plan changes nothing"

    done = farm.client.collect()
    assert set(done.paths) == set(plan["paths"])
    assert cached(farm) == {"library", "top-2"}
    assert farm.narinfo(old.outputs["out"]).status_code == 404
    code, errors = farm.nix_copy(new.outputs["out"], to=farm.root / "third")
    assert code == 0, errors

    again = farm.succeed(farm.submit(graph(farm, "1")))
    assert again.outcome == "succeeded", "built again, its source sent again"
    assert {"busybox", "tool", "library", "top-1", "top-2"} <= cached(farm)


def test_what_runs_and_what_is_pinned_stays(farm: Farm) -> None:
    pinned = farm.succeed(farm.submit(farm.step("pinned-1", "echo pinned > $out")))
    farm.succeed(farm.submit(farm.step("pinned-2", "echo newer > $out")))
    told = farm.grange("pin", pinned.outputs["out"], "--name", "release", "--url", farm.url)
    assert told.returncode == 0, told.stderr
    farm.shut("held")
    source = 'input = step "input" {} "echo input > $out";'
    waiting = farm.submit(
        farm.drv(
            f'let {source} in step "waits" {{ inherit input; }} '
            f"''\n{wait_at('held')}cat $input; echo done > $out''"
        )
    )
    farm.at_gate(waiting, "waits")
    plan = farm.client.plan_collection()
    assert {"unfinished builds", "pin release"} <= {kept.reason for kept in plan.kept}
    farm.client.collect()
    assert {"input", "busybox", "pinned-1", "pinned-2"} <= cached(farm)
    farm.open("held")
    farm.succeed(waiting)
    assert "release" in farm.grange("pins", "--url", farm.url).stdout
    assert farm.grange("unpin", "release", "--url", farm.url).returncode == 0
    farm.client.collect()
    assert not {"input", "pinned-1"} & cached(farm)
    assert {"waits", "pinned-2"} <= cached(farm)


def test_what_a_crash_left_behind_is_swept(farm: Farm) -> None:
    farm.client.collect()
    folder = farm.state_dir / "cache"
    before = cached(farm)
    orphan = folder / f"nar/{'0' * 52}.nar.zst"
    orphan.write_bytes(b"half a collection")
    [some, *_] = folder.glob("*.narinfo")
    left = folder / f"{'1' * 32}.narinfo"
    left.write_text(
        some.read_text().replace(some.stem, "1" * 32).replace("URL: nar/", "URL: nar/0")
    )
    foreign = folder / f"{'2' * 32}.narinfo"
    text = some.read_text().replace(some.stem, "2" * 32)
    other = folder / f"nar/{'3' * 52}.nar.xz"
    other.write_bytes(b"another's")
    lines = [line for line in text.splitlines() if not line.startswith(("Sig:", "URL:"))]
    lines.insert(1, f"URL: nar/{other.name}")
    foreign.write_text("\n".join([*lines, "Sig: another-1:" + "A" * 86 + "=="]) + "\n")
    farm.client.collect()
    assert not orphan.exists()
    assert not left.exists()
    assert foreign.exists(), "others' objects are left alone"
    assert other.exists()
    foreign.unlink()
    other.unlink()
    assert cached(farm) == before


def test_a_collection_that_is_killed_leaves_garbage_at_most(farm: Farm) -> None:
    inputs = (
        "".join(f'step "input-{number}" {{}} "echo {number} > $out" ' for number in range(40))
        .replace('step "', '(step "')
        .replace('$out" ', '$out") ')
    )
    graph = f'step "many" {{ inputs = [ {inputs} ]; }} "echo $inputs > $out"'
    farm.succeed(farm.submit(farm.drv(graph)))
    kept = farm.succeed(farm.submit(farm.step("many", "echo the newer one > $out")))
    folder = farm.state_dir / "cache"
    count = len(list(folder.glob("*.narinfo")))
    assert farm.coordinator is not None
    collecting = Process("collecting", ["collect", "--url", farm.url], farm.root, farm.environment)
    until(
        lambda: len(list(folder.glob("*.narinfo"))) < count or collecting.popen.poll() is not None,
        "the collection should begin",
    )
    farm.coordinator.signal(signal.SIGKILL)
    farm.coordinator.popen.wait()
    collecting.stop()
    cached(farm)  # which looks for narinfos without their NARs
    farm.start_coordinator()
    farm.await_agent("one")
    farm.client.collect()
    narinfos = {path.stem for path in folder.glob("*.narinfo")}
    assert not [name for name in cached(farm) if name.startswith("input-")]
    urls = {
        line[5:]
        for part in narinfos
        for line in (folder / f"{part}.narinfo").read_text().splitlines()
        if line.startswith("URL: ")
    }
    files = {f"nar/{path.name}" for path in (folder / "nar").iterdir()}
    assert {file.removesuffix(".ls") for file in files} == urls, "no file without a path"
    code, errors = farm.nix_copy(kept.outputs["out"], to=farm.root / "fourth")
    assert code == 0, errors


def test_only_operators_collect(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "none").write_text("not a token of this farm\n")
    told = farm.grange("collect", "--token-file", tmp_path / "none", "--url", farm.url)
    assert told.returncode != 0
