"""Builds done again: to compare with what is published, or in place of what is there already."""

from pathlib import Path

import pytest

from grange.daemon import GcAction
from grange.scheduler.facts import AttemptId, Limits, Outcome, Phase
from grange.store.basic import BasicDerivation
from grange.store.nar import nar_of_text
from grange.store.path import StorePath
from grange.wire.messages import BuildOrder, Orders
from tests.integration.scripted_farm import Bench, bench, path_named
from tests.peers import NIXES

pytestmark = pytest.mark.peer

# Another one in every sandbox, and in none of them the same as in the one before.
RANDOM = "cat /proc/sys/kernel/random/uuid"


def order(
    b: Bench, drv: BasicDerivation, *, is_check: bool = False, is_fresh: bool = False
) -> AttemptId:
    b.farm.ids += 1
    id_ = AttemptId(b.farm.ids)
    drv_path = path_named(f"{next(iter(drv.outputs.values())).path.name}.drv")
    build = BuildOrder(id_, drv_path, drv, Limits(), is_check=is_check, is_fresh=is_fresh)
    b.farm.say(Orders(0, builds=(build,)))
    return id_


def left_of(b: Bench, path: StorePath) -> list[str]:
    """Everything in the store that begins as `path` does, but for locks."""
    names = [entry.name for entry in b.store.physical_path(path).parent.glob(f"{path}*")]
    return [name for name in names if not name.endswith(".lock")]


async def passed(b: Bench, id_: AttemptId) -> None:
    """Wait for the word that a check found no difference, and settle it."""
    await b.farm.until(lambda: id_ in b.farm.failed or bool(b.farm.built))
    assert id_ not in b.farm.failed, b.farm.failed[id_].message
    built = b.farm.built.pop()
    assert (built.attempt, built.outputs) == (id_, ())
    assert built.usage.build_s is not None
    await b.farm.until(lambda: (id_, Phase.BUILT) in b.farm.beats[-1].attempts)
    b.farm.settle(id_)
    await b.forgotten()


@pytest.mark.parametrize("nix", NIXES)
async def test_a_check_fetches_what_is_published_and_finds_it_the_same(
    tmp_path: Path, nix: str
) -> None:
    async with bench(tmp_path, nix=nix) as b:
        for name, text in (("same", b"same\n"), ("same-dev", b"dev\n")):
            b.farm.publish(path_named(name), nar_of_text(text))
        script = "echo same > $out; echo dev > $dev; echo built again"
        drv = b.drv("same", script, outputs=("out", "dev"))
        id_ = order(b, drv, is_check=True)
        await passed(b, id_)
        assert bytes(b.farm.logs[id_]) == b"built again\n"
        assert len(b.farm.nar_requests) == 2
        assert not b.farm.uploads
        # What is here already is not fetched again, and nothing has been done to it.
        await passed(b, order(b, drv, is_check=True))
        assert len(b.farm.nar_requests) == 2
        assert b.store.physical_path(path_named("same")).read_text() == "same\n"


@pytest.mark.parametrize("nix", NIXES)
async def test_a_check_names_what_differs(tmp_path: Path, nix: str) -> None:
    async with bench(tmp_path, nix=nix) as b:
        script = f"mkdir $out; echo 1 > $out/same; {RANDOM} > $out/id; ln -s $({RANDOM}) $out/link"
        drv = b.drv("varies", script)
        await b.delivered(order(b, drv))
        path = path_named("varies")
        first = (b.store.physical_path(path) / "id").read_text()
        outcome, message = await b.failure(order(b, drv, is_check=True))
        assert outcome is Outcome.NOT_DETERMINISTIC
        lines = message.splitlines()
        assert [line.split(": ")[:2] for line in lines[1:]] == [["out", "id"], ["out", "link"]]
        assert "content differs" in lines[1]
        assert "symlink" in lines[2]
        # What was published is as it was, and nothing else is left.
        assert (b.store.physical_path(path) / "id").read_text() == first
        assert left_of(b, path) == [path]
        # The connection still builds, and does not check.
        await b.delivered(order(b, b.drv("after", f"{RANDOM} > $out")))


async def test_a_check_whose_store_the_agent_cannot_see(tmp_path: Path) -> None:
    async with bench(tmp_path, nix="2.26", is_served=True) as b:
        drv = b.drv("varies", f"{RANDOM} > $out")
        await b.delivered(order(b, drv))
        outcome, message = await b.failure(order(b, drv, is_check=True))
        assert outcome is Outcome.NOT_DETERMINISTIC
        assert path_named("varies") in message


async def test_a_check_that_does_not_build_blames_the_build(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.farm.publish(path_named("bad"), nar_of_text(b""))
        outcome, message = await b.failure(order(b, b.drv("bad", "exit 3"), is_check=True))
        assert outcome is Outcome.BUILD_FAILED
        assert "exit code 3" in message


async def test_a_check_of_what_is_lost_names_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        id_ = order(b, b.drv("lost", "echo > $out"), is_check=True)
        outcome, _ = await b.failure(id_)
        assert outcome is Outcome.INPUTS_MISSING
        assert b.farm.failed[id_].missing == (path_named("lost"),)


@pytest.mark.parametrize("nix", NIXES)
async def test_a_fresh_build_replaces_what_is_there(tmp_path: Path, nix: str) -> None:
    async with bench(tmp_path, nix=nix) as b:
        script = f"{RANDOM} > $out; echo $out > $dev"
        drv = b.drv("varies", script, outputs=("out", "dev"))
        place = b.store.physical_path(path_named("varies"))
        await b.delivered(order(b, drv, is_fresh=True))  # nothing is there yet
        first = place.read_text()
        await b.delivered(order(b, drv))
        assert place.read_text() == first, "without being told to, it builds nothing twice"
        await b.delivered(order(b, drv, is_fresh=True))
        assert place.read_text() != first


@pytest.mark.parametrize("nix", NIXES)
async def test_a_fresh_build_where_the_old_one_is_in_use(tmp_path: Path, nix: str) -> None:
    async with bench(tmp_path, nix=nix) as b:
        drv = b.drv("used", f"{RANDOM} > $out")
        await b.delivered(order(b, drv))
        path = path_named("used")
        async with await b.store.connect() as daemon:
            await daemon.add_temp_root(path)
            outcome, message = await b.failure(order(b, drv, is_fresh=True))
            assert outcome is Outcome.OUTPUT_NOT_REMOVED
            assert path in message
            assert "alive" in message or "in use" in message
            assert await daemon.query_valid_paths([path]) == {path}
        await b.delivered(order(b, drv, is_fresh=True))


async def test_a_fresh_build_leaves_what_waits_for_its_delivery(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.farm.grants = False
        waiting = b.drv("waiting", "echo > $out")
        id_ = order(b, waiting)
        await b.farm.until(lambda: bool(b.farm.built))
        outcome, _ = await b.failure(order(b, waiting, is_fresh=True))
        assert outcome is Outcome.OUTPUT_NOT_REMOVED
        other = b.drv("other", f"{RANDOM} > $out")
        async with await b.store.connect() as daemon:
            await daemon.collect_garbage(GcAction.DELETE_DEAD)
        b.farm.grants = True
        await b.delivered(order(b, other, is_fresh=True))
        b.farm.grant(b.farm.built[0])
        await b.delivered(id_)
