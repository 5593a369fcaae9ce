"""What was decided and committed is done: concurrently, and for each slot in order.

Each act is tried once and may fail; what is still wanted is decided again from the next look. A
launch has the token under way to itself, and its answer comes back as an event.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, assert_never

from grange.autoscaler.metrics import CapacityMetrics
from grange.autoscaler.troubles import Troubles
from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.facts import (
    InstanceId,
    LaunchFailure,
    LaunchOrder,
    ServerMode,
    SlotId,
)
from grange.errors import GrangeError, OutsideError
from grange.ports import Balancer, CapacityStore, Clock, Cloud, LaunchAnswer, Overlay, Workforce

log = logging.getLogger(__name__)

CALL_S: Final = 30.0  # for anything but a launch; it is asked for again anyway
GOODBYE_S: Final = 10.0
LAUNCH_SHARE: Final = 0.8  # of launch_s, after which the core takes the outcome for unknown
CONSOLE_CHARS: Final = 65_536  # the last of it says why it did not come up

Act: TypeAlias = (
    do.Terminate | do.SetServer | do.SetAgent | do.ForgetDevice | do.SaveConsole
)  # of slots; launches and tellings go other ways


@dataclass(frozen=True, slots=True)
class Doors:
    """The outside, as far as there is any."""

    cloud: Cloud
    balancer: Balancer | None
    overlay: Overlay | None
    workforce: Workforce | None
    store: CapacityStore
    clock: Clock


class Acts:
    def __init__(
        self,
        doors: Doors,
        troubles: Troubles,
        metrics: CapacityMetrics,
        *,
        is_wanted: Callable[[LaunchOrder], bool],
        answered: Callable[[on.LaunchAnswered], None],
        opened: Callable[[SlotId], None],
    ) -> None:
        """`is_wanted`: the slot still waits for this very launch. `opened`: traffic reaches it."""
        self._doors = doors
        self._troubles = troubles
        self._metrics = metrics
        self._is_wanted = is_wanted
        self._answered = answered
        self._opened = opened
        self._calls: set[str] = set()  # tokens under way
        self._begun: set[Act] = set()
        self._traffic: dict[SlotId, asyncio.Task[None]] = {}  # the latest of each slot
        self._latest: dict[SlotId | InstanceId, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # So many at once: each waits for a process elsewhere, and clouds throttle.
        self._launching = asyncio.Semaphore(32)
        self._to_cloud = asyncio.Semaphore(16)
        self._to_others = asyncio.Semaphore(16)

    def begin(self, acts: Iterable[do.Effect]) -> None:
        """Begin the acts of a batch, in order."""
        for act in acts:
            match act:
                case do.Launch(order):
                    if order.token not in self._calls:
                        self._calls.add(order.token)
                        self._start(self._launch(order))
                case do.SetServer() | do.SetAgent():
                    before = self._traffic.get(act.slot)
                    task = self._start(self._try(act, before, self._to_others))
                    self._traffic[act.slot] = self._latest[act.slot] = task
                case do.Terminate() | do.ForgetDevice() | do.SaveConsole():
                    self._queue(act)
                case _:
                    pass  # saves are committed, and tellings told

    async def traffic_tried(self) -> None:
        """All that was to change what balancer and agents show was tried."""
        if waiting := {task for task in self._traffic.values() if not task.done()}:
            await asyncio.wait(waiting)

    async def tried(self) -> None:
        """All that was begun so far was tried."""
        if waiting := set(self._tasks):
            await asyncio.wait(waiting)

    async def stop(self) -> None:
        """Drop what is under way: intents are durable."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=GOODBYE_S)

    def _queue(self, act: do.Terminate | do.ForgetDevice | do.SaveConsole) -> None:
        """After all before it of its slot: traffic goes first, then the console, the instance."""
        if act in self._begun:
            return
        slot = None if isinstance(act, do.ForgetDevice) else act.slot
        key: SlotId | InstanceId = act.instance if slot is None else slot
        task = self._start(self._try(act, self._latest.get(key), self._to_cloud))
        self._begun.add(act)
        task.add_done_callback(lambda _: self._begun.discard(act))
        self._latest[key] = task
        task.add_done_callback(lambda _: self._leave(key, task))

    def _leave(self, key: SlotId | InstanceId, task: asyncio.Task[None]) -> None:
        """Instances come and go: nothing is kept of those that nothing is done to."""
        if self._latest.get(key) is task:
            del self._latest[key]

    def _start(self, acting: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(acting)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an act ended with a fault of our own", exc_info=error)

    async def _launch(self, order: LaunchOrder) -> None:
        answer = LaunchAnswer(LaunchFailure.UNKNOWN, "it was not answered in time")
        try:
            async with asyncio.timeout(order.pool.timeouts.launch_s * LAUNCH_SHARE):
                async with self._launching:
                    if not self._is_wanted(order):  # it waited for too long
                        return
                    answer = await self._doors.cloud.launch(order)
        except TimeoutError:
            pass
        except Exception as error:  # it must not, and nothing is known of what it did
            log.exception("the launch of %s ended with an error", order.slot)
            answer = LaunchAnswer(LaunchFailure.UNKNOWN, repr(error))
        finally:
            self._calls.discard(order.token)
        self._metrics.launched(order, answer)
        self._answered(
            on.LaunchAnswered(order.slot, order.token, answer.answer, answer.message, answer.failed)
        )

    async def _try(
        self, act: Act, before: asyncio.Task[None] | None, gate: asyncio.Semaphore
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        what, door = _named(act)
        async with gate:
            try:
                async with asyncio.timeout(CALL_S):
                    await self._do(act)
            except TimeoutError:
                self._fail(what, door, OutsideError(f"no answer in {CALL_S:g} s"))
            except (GrangeError, OSError) as error:
                self._fail(what, door, error)
            except Exception as error:
                log.exception("%s", what)
                self._fail(what, door, error)
            else:
                self._troubles.ended(what)

    def _fail(self, what: str, door: str, error: Exception) -> None:
        self._metrics.failed(door)
        self._troubles.began(what, error, is_act=True)

    async def _do(self, act: Act) -> None:
        doors = self._doors
        match act:
            case do.SetServer():
                if doors.balancer is not None:
                    await doors.balancer.set(act)
                if act.mode is ServerMode.READY:
                    self._opened(act.slot)
            case do.SetAgent():
                if doors.workforce is not None:
                    await doors.workforce.set_agent(act)
            case do.Terminate(_, instance):
                await doors.cloud.terminate(instance)
            case do.ForgetDevice(instance):
                if doors.overlay is not None:
                    await doors.overlay.forget(instance)
            case do.SaveConsole(slot, instance):
                text = await doors.cloud.console(instance)
                now = doors.clock.wall_s()
                await doors.store.keep_console(slot, instance, text[-CONSOLE_CHARS:], now)
            case _:
                assert_never(act)


def _named(act: Act) -> tuple[str, str]:
    """What failed if it does, and at which door."""
    match act:
        case do.SetServer(slot, mode):
            return f"the server of {slot} cannot be set to {mode}", "balancer"
        case do.SetAgent(slot):
            return f"the agent in {slot} cannot be told", "agents"
        case do.Terminate(_, instance):
            return f"{instance} cannot be terminated", "cloud"
        case do.ForgetDevice(instance):
            return f"the device of {instance} cannot be deleted", "overlay"
        case do.SaveConsole(slot):
            return f"the console of {slot} cannot be kept", "console"
        case _:
            assert_never(act)
