"""Instances that are processes of this machine: they die, and outlive whoever began them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    LaunchFailure,
    LaunchOrder,
    Market,
    Notice,
    Offering,
    Pool,
    PoolName,
    SlotId,
)
from grange.cloud import local_instance
from grange.cloud.local import KEPT_S, LocalCloud, LocalCommand
from grange.errors import GrangeError, OperatorError, OutsideError

WAITS = 'echo "$GRANGE_SLOT at $GRANGE_ADDRESS"; exec sleep 600'
HEEDS = 'trap "echo told; exit 0" TERM; echo up; while :; do sleep 0.05; done'
DEAF = 'trap "" TERM; echo up; while :; do sleep 1; done'


class Clock:
    """Stands still, and is put forward at will."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic_s(self) -> float:
        return 1e6 + self.ahead_s

    def wall_s(self) -> float:
        return 1.8e9 + self.ahead_s


class Place:
    """Where local instances live, through any number of lives of whoever looks after them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.script = WAITS
        self.failure: GrangeError | None = None
        self.boot_s = 0.0
        self.cloud = self.reborn()

    def reborn(self) -> LocalCloud:
        self.cloud = LocalCloud(
            self.folder,
            self._command,
            clock=self.clock,
            boot_s=self.boot_s,
            notice_poll_s=0.01,
        )
        return self.cloud

    async def _command(self, order: LaunchOrder) -> LocalCommand:
        if self.failure is not None:
            raise self.failure
        return LocalCommand(("/bin/sh", "-c", self.script), {"OF": order.slot})

    async def launch(self, number: int = 1) -> Instance:
        answer = (await self.cloud.launch(order(number))).answer
        assert isinstance(answer, Instance)
        return answer

    async def until(self, wanted: Callable[[Instance], bool]) -> Instance:
        """The only instance, once it is so."""
        while True:
            (seen,) = await self.cloud.instances()
            if wanted(seen):
                return seen
            await pause()

    async def printed(self, id_: InstanceId, text: str) -> str:
        while text not in (said := await self.cloud.console(id_)):
            await pause()
        return said

    def pid(self, id_: InstanceId) -> int:
        return int((self.folder / id_ / "pid").read_text())


async def pause() -> None:
    await asyncio.sleep(0.01)


def order(number: int = 1, generation: int = 1, token: str = "") -> LaunchOrder:
    offering = Offering("process", "here", price_spot=0.1, price_on_demand=0.3, vcpus=2)
    pool = Pool(PoolName("local"), ("x86_64-linux",), offerings=(offering,), config_hash="c0")
    return LaunchOrder(
        SlotId(f"local-{number}"),
        generation,
        token or f"token-{number}-{generation}",
        pool,
        Market.SPOT,
        pool.offerings,
    )


def is_dead(seen: Instance) -> bool:
    return seen.state is InstanceState.TERMINATED


def is_there(pid: int) -> bool:
    """Not only as a zombie."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path / "instances")
    yield made
    made.clock.ahead_s += 1e6
    for each in await made.cloud.instances():
        await made.cloud.terminate(each.id)
    made.clock.ahead_s += 60  # those that do not heed are killed
    while not all(is_dead(each) for each in await made.cloud.instances()):
        await pause()


async def test_an_instance_runs_and_tells_who_it_is(place: Place) -> None:
    launched = await place.launch()
    assert launched.state is InstanceState.RUNNING
    assert (launched.slot, launched.generation, launched.token) == ("local-1", 1, "token-1-1")
    assert (launched.offering, launched.market) == (order().offerings[0], Market.SPOT)
    assert launched.config_hash == "c0"
    assert await place.printed(launched.id, "at") == f"local-1 at {launched.address}\n"
    assert await place.cloud.instances() == (launched,)


async def test_each_has_an_address_of_its_own(place: Place) -> None:
    addresses = {(await place.launch(number)).address for number in range(1, 4)}
    assert len(addresses) == 3
    assert all(each.startswith("127.") for each in addresses)


async def test_the_same_token_is_the_same_instance(place: Place) -> None:
    first = await place.launch()
    place.reborn()
    assert await place.launch() == first
    other = await place.cloud.launch(order(2, token="token-1-1"))
    assert other.answer is LaunchFailure.UNKNOWN
    assert len(await place.cloud.instances()) == 1


async def test_what_outlived_its_keeper_is_found(place: Place) -> None:
    launched = await place.launch()
    await place.printed(launched.id, "at")
    pid = place.pid(launched.id)
    place.reborn()
    assert await place.cloud.instances() == (launched,)
    await place.cloud.terminate(launched.id)
    assert (await place.until(is_dead)).reason == "terminated"
    while is_there(pid):
        await pause()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 0", "its command ended with status 0"),
        ("exit 3", "its command ended with status 3"),
        ("kill -KILL $$", "its command was killed by signal 9"),
        ("exec /no/such/file", "its command ended with status 127"),
    ],
)
async def test_a_process_that_ends_is_an_instance_that_ended(
    place: Place, script: str, reason: str
) -> None:
    place.script = script
    await place.launch()
    assert (await place.until(is_dead)).reason == reason
    place.reborn()
    (seen,) = await place.cloud.instances()
    assert seen.reason == reason
    assert (await place.launch()).state is InstanceState.TERMINATED  # its token is used up


async def test_what_the_command_left_behind_ends_with_it(place: Place) -> None:
    place.script = "sleep 600 & echo $!"
    launched = await place.launch()
    child = int(await place.printed(launched.id, "\n"))
    await place.until(is_dead)
    while is_there(child):
        await pause()


async def test_a_group_that_is_killed_from_outside_is_noticed(place: Place) -> None:
    launched = await place.launch()
    await place.printed(launched.id, "at")
    os.killpg(place.pid(launched.id), signal.SIGKILL)
    assert (await place.until(is_dead)).reason == "killed"


async def test_without_its_shell_it_still_counts_and_can_be_ended(place: Place) -> None:
    launched = await place.launch()
    await place.printed(launched.id, "at")
    os.kill(place.pid(launched.id), signal.SIGKILL)
    assert (await place.cloud.instances())[0].state is InstanceState.RUNNING
    await place.cloud.terminate(launched.id)
    assert (await place.until(is_dead)).reason == "terminated"


async def test_it_is_told_before_it_is_killed(place: Place) -> None:
    place.script = HEEDS
    launched = await place.launch()
    await place.printed(launched.id, "up")
    await place.cloud.terminate(launched.id)
    await place.until(is_dead)
    assert "told" in await place.cloud.console(launched.id)


async def test_one_that_does_not_heed_is_killed_after_the_grace(place: Place) -> None:
    place.script = DEAF
    launched = await place.launch()
    await place.printed(launched.id, "up")
    await place.cloud.terminate(launched.id)
    place.clock.ahead_s += 10
    await place.cloud.terminate(launched.id)  # again, which does not put it off
    assert (await place.cloud.instances())[0].state is InstanceState.STOPPING
    place.reborn()
    place.clock.ahead_s += 6
    assert (await place.until(is_dead)).reason == "terminated"


async def test_ending_what_is_not_there_or_dead_does_nothing(place: Place) -> None:
    place.script = "exit 3"
    launched = await place.launch()
    await place.until(is_dead)
    await place.cloud.terminate(launched.id)
    await place.cloud.terminate(InstanceId("local-none"))
    await place.cloud.terminate(InstanceId("../instances"))
    (seen,) = await place.cloud.instances()
    assert seen.reason == "its command ended with status 3"
    assert await place.cloud.console(InstanceId("local-none")) == ""


async def test_one_that_boots_is_pending_and_can_be_ended(place: Place) -> None:
    place.boot_s = 300.0
    place.reborn()
    launched = await place.launch()
    assert (launched.state, launched.address) == (InstanceState.PENDING, "")
    await place.cloud.terminate(launched.id)
    await place.until(is_dead)
    assert await place.cloud.console(launched.id) == ""


async def test_a_boot_takes_as_long_as_it_is_told(place: Place) -> None:
    place.boot_s = 0.05
    place.reborn()
    launched = await place.launch()
    await place.printed(launched.id, "at")
    assert (await place.cloud.instances())[0].state is InstanceState.PENDING
    place.clock.ahead_s += 0.05
    assert (await place.cloud.instances())[0].state is InstanceState.RUNNING


async def test_an_interruption_is_announced_and_then_happens(place: Place) -> None:
    launched = await place.launch()
    await place.printed(launched.id, "at")
    notices = place.cloud.notices()
    place.cloud.interrupt(launched.id, None)
    assert await anext(notices) == Notice(launched.id, None, "poll")
    place.cloud.interrupt(launched.id, 120.0)
    notice = await anext(notices)
    assert notice == Notice(launched.id, 120.0, "poll")
    place.clock.ahead_s += 50
    reborn = place.reborn().notices()
    assert await anext(reborn) == Notice(launched.id, 70.0, "poll")
    assert (await place.cloud.instances())[0].state is InstanceState.RUNNING
    place.clock.ahead_s += 70
    assert (await place.until(is_dead)).reason == "interrupted"


async def test_anyone_may_interrupt_by_the_file(place: Place) -> None:
    place.script = 'echo 0 > "$GRANGE_INTERRUPT"; exec sleep 600'
    await place.launch()
    assert (await place.until(is_dead)).reason == "interrupted"


async def test_junk_interrupts_nothing(place: Place) -> None:
    launched = await place.launch()
    (place.folder / launched.id / "interrupt").write_text("whenever\n")
    assert (await place.cloud.instances())[0].state is InstanceState.RUNNING
    with pytest.raises(OutsideError, match="cannot interrupt local-none"):
        place.cloud.interrupt(InstanceId("local-none"), 1.0)


async def test_a_console_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_instance, "CONSOLE_BYTES_MAX", 100_000)
    place.script = "seq 1 30000; echo half; seq 1 10; echo done; exec sleep 600"
    launched = await place.launch()
    await place.printed(launched.id, "done")
    await place.cloud.instances()
    said = await place.cloud.console(launched.id)
    assert said.endswith("done\n")
    assert len(said) == local_instance.CONSOLE_BYTES
    assert (place.folder / launched.id / "console").stat().st_size == 0


async def test_the_dead_are_forgotten_in_time(place: Place) -> None:
    place.script = "exit 0"
    await place.launch()
    await place.until(is_dead)
    place.clock.ahead_s += KEPT_S + 1
    assert await place.cloud.instances() == ()
    assert list(place.folder.iterdir()) == []


async def test_what_a_crash_left_half_made_or_half_deleted_is_swept(place: Place) -> None:
    (place.folder / ".local-1" / "home").mkdir(parents=True)
    (place.folder / "notes").write_text("somebody's")
    launched = await place.launch()
    place.reborn()
    assert await place.cloud.instances() == (launched,)
    assert {each.name for each in place.folder.iterdir()} == {"notes", launched.id}


async def test_what_cannot_be_read_is_not_taken_for_gone(place: Place) -> None:
    launched = await place.launch()
    record = place.folder / launched.id / "record"
    text = record.read_text()
    record.write_text("junk")
    for call in (place.cloud.instances(), place.cloud.terminate(launched.id)):
        with pytest.raises(OutsideError, match="is spoilt"):
            await call
    assert (await place.cloud.launch(order())).answer is LaunchFailure.UNKNOWN
    record.write_text(text)
    assert await place.cloud.instances() == (launched,)


async def test_a_crash_before_the_start_leaves_one_that_never_was(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise OSError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_spawn", crash)
        answer = await place.cloud.launch(order())
    assert answer.answer is LaunchFailure.UNKNOWN
    place.reborn()
    (seen,) = await place.cloud.instances()
    assert (seen.state, seen.reason) == (InstanceState.TERMINATED, "never started")


@pytest.mark.parametrize(
    ("failure", "means"),
    [
        (OutsideError("no tokens just now"), LaunchFailure.THROTTLED),
        (OperatorError("no agent is configured"), LaunchFailure.CONFIG),
    ],
)
async def test_a_command_that_cannot_be_had_launches_nothing(
    place: Place, failure: GrangeError, means: LaunchFailure
) -> None:
    place.failure = failure
    answer = await place.cloud.launch(order())
    assert (answer.answer, answer.message) == (means, str(failure))
    assert await place.cloud.instances() == ()
    place.failure = None
    assert isinstance((await place.cloud.launch(order())).answer, Instance)


async def test_a_folder_that_cannot_be_is_an_operators_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="name one that can be written"):
        Place(tmp_path / "file" / "instances")


async def test_no_troubles_where_there_are_none(place: Place) -> None:
    assert await place.cloud.troubles() == ()
