"""Warnings that instances will be taken away, from three sides: messages of EventBridge in a queue,
the states of spot requests, and whatever the instances themselves were told (`inject`)."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from grange.capacity.facts import InstanceId, Notice
from grange.cloud.ec2 import rights
from grange.cloud.ec2.calls import Calls, Lane, RefusedError
from grange.cloud.ec2.settings import Ec2Settings
from grange.ports import Clock

WARNING_S: Final = 120.0  # between EC2's notice and the end
WAIT_S: Final = 5  # that a queue is asked to hold the answer back; closing may wait for as long
MESSAGES_AT_ONCE: Final = 10
PAGES_MAX: Final = 20
RETRY_S: Final = 5.0
RETRY_MAX_S: Final = 60.0
HELD_MAX: Final = 1000  # notices that nobody has taken yet
STRANGE_MAX: Final = 1000
_REQUESTS: Final = "spot requests"
_QUEUE: Final = "the queue"
_INTERRUPTION: Final = "EC2 Spot Instance Interruption Warning"
_REBALANCE: Final = "EC2 Instance Rebalance Recommendation"
_MARKED: Final = ("marked-for-termination", "marked-for-stop")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Told:
    notice: Notice
    taken: asyncio.Event  # and dealt with: whoever follows has asked for the next


class Notices:
    def __init__(self, settings: Ec2Settings, calls: Calls, clock: Clock) -> None:
        self._settings = settings
        self._calls = calls
        self._clock = clock
        self._found: asyncio.Queue[_Told] = asyncio.Queue(HELD_MAX)
        self._failing: dict[str, str] = {}  # what fails now, by source
        self._marked: set[InstanceId] = set()  # told of already
        self._strange: dict[str, None] = {}  # messages that are no notices, told of already

    def inject(self, notice: Notice) -> None:
        if self._found.full():
            _log.warning("too many notices wait; the one of %s is dropped", notice.instance)
            return
        self._found.put_nowait(_Told(notice, asyncio.Event()))

    def troubles(self) -> tuple[str, ...]:
        return tuple(self._failing.values())

    async def all(self) -> AsyncIterator[Notice]:
        self._marked.clear()
        tasks: list[asyncio.Task[Any]] = []
        tasks.append(asyncio.create_task(self._repeat(_REQUESTS, self._poll)))
        if self._settings.sqs_url:
            tasks.append(asyncio.create_task(self._repeat(_QUEUE, self._receive)))
        try:
            while True:
                tasks.append(asyncio.create_task(self._found.get()))
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if not tasks[-1].done():  # a fault of ours ended a source: no silence for that
                    await asyncio.gather(*(each for each in tasks if each.done()))
                told: _Told = tasks.pop().result()
                yield told.notice
                told.taken.set()
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self, source: str, look: Callable[[], Awaitable[None]]) -> None:
        """For ever; a failure is told of once, and tried again later each time."""
        wait_s = RETRY_S
        while True:
            try:
                await look()
            except RefusedError as error:
                said = str(await rights.raised(self._calls, f"look for notices in {source}", error))
                if self._failing.get(source) != said:
                    _log.warning("%s", said)
                self._failing[source] = said
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_MAX_S)
            else:
                wait_s = RETRY_S

    def _answered(self, source: str) -> None:
        if self._failing.pop(source, None):
            _log.info("%s can be asked for notices again", source)

    async def _poll(self) -> None:
        marked = await self._calls.pages(
            "ec2",
            "describe_spot_instance_requests",
            "SpotInstanceRequests",
            pages_max=PAGES_MAX,
            Filters=[{"Name": "status-code", "Values": list(_MARKED)}],
            MaxResults=1000,
        )
        self._answered(_REQUESTS)
        found = {InstanceId(each["InstanceId"]): each for each in marked if "InstanceId" in each}
        for instance in found.keys() - self._marked:
            since = found[instance]["Status"]["UpdateTime"].timestamp()
            notice = Notice(instance, self._left_s(since), "poll")
            await self._found.put(_Told(notice, asyncio.Event()))
        self._marked = set(found)
        await asyncio.sleep(self._settings.notice_poll_s)

    async def _receive(self) -> None:
        """A message leaves the queue once its notice was dealt with. One that is no notice stays:
        the queue may be somebody else's, and has its own ways with what nobody takes."""
        answer = await self._calls.ask(
            "sqs",
            "receive_message",
            lane=Lane.WAIT,
            QueueUrl=self._settings.sqs_url,
            MaxNumberOfMessages=MESSAGES_AT_ONCE,
            WaitTimeSeconds=WAIT_S,
        )
        self._answered(_QUEUE)
        done: list[dict[str, str]] = []
        for each in answer.get("Messages", ()):
            notice = self._read(each)
            if notice is None:
                continue
            told = _Told(notice, asyncio.Event())
            await self._found.put(told)
            await told.taken.wait()
            done.append({"Id": str(len(done)), "ReceiptHandle": each["ReceiptHandle"]})
        if done:
            await self._calls.ask(
                "sqs", "delete_message_batch", QueueUrl=self._settings.sqs_url, Entries=done
            )

    def _read(self, message: dict[str, Any]) -> Notice | None:
        try:
            said = json.loads(message["Body"])
            kind, instance = said["detail-type"], InstanceId(said["detail"]["instance-id"])
            since = datetime.fromisoformat(said["time"]).timestamp()
        except (ValueError, KeyError, TypeError):
            kind, instance, since = None, InstanceId(""), 0.0
        if kind == _REBALANCE:
            return Notice(instance, None, "sqs")
        if kind == _INTERRUPTION:
            return Notice(instance, self._left_s(since), "sqs")
        id_ = str(message.get("MessageId"))
        if id_ not in self._strange:
            where = self._settings.sqs_url
            _log.warning("message %s in %s is no spot notice and is left there", id_, where)
            self._strange[id_] = None
            if len(self._strange) > STRANGE_MAX:
                del self._strange[next(iter(self._strange))]
        return None

    def _left_s(self, since_wall_s: float) -> float:
        """Never more than EC2 grants, whatever the clocks say."""
        return min(max(0.0, since_wall_s + WARNING_S - self._clock.wall_s()), WARNING_S)
