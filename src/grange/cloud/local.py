"""A cloud whose instances are processes of this machine: for a demonstration, for tests, and for
one machine that is to be an agent only while there is work."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Final

from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    LaunchFailure,
    LaunchOrder,
    Notice,
)
from grange.cloud import local_instance
from grange.cloud.local_instance import LocalInstance, Now
from grange.errors import GrangeError, OperatorError, OutsideError
from grange.ports import Clock, LaunchAnswer

GRACE_S: Final = 15.0  # from TERM to KILL
KEPT_S: Final = 3600.0  # for so long the dead are listed, and their tokens remembered
INSTANCES_MAX: Final = 1000  # of them, dead ones too: each costs a few reads a tick
NOTICE_POLL_S: Final = 1.0
_LIVE: Final = (InstanceState.PENDING, InstanceState.RUNNING)
_PREFIX: Final = "local-"
_NETWORK: Final = "127.83"  # each has an address of its own, so that each may serve port 22


@dataclass(frozen=True, slots=True)
class LocalCommand:
    """What an instance runs: it lives as long as this process, which is told by TERM to end.

    `env` is set beside the environment of this process, and GRANGE_INSTANCE (its id),
    GRANGE_ADDRESS (its own, within 127/8), GRANGE_SLOT, GRANGE_POOL and GRANGE_INTERRUPT (a file:
    see `LocalCloud.interrupt`). It starts in a new folder of its own.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]


class LocalCloud:
    """`grange.ports.Cloud`. All that it knows is in `folder`, which is one process's at a time."""

    def __init__(
        self,
        folder: Path,
        command: Callable[[LaunchOrder], Awaitable[LocalCommand]],
        *,
        clock: Clock,
        boot_s: float = 0.0,
        grace_s: float = GRACE_S,
        notice_poll_s: float = NOTICE_POLL_S,
    ) -> None:
        """Raises OperatorError where `folder` cannot be made. `boot_s`: how long an instance takes
        to boot, for show."""
        self._folder = folder.absolute()
        self._command = command
        self._clock = clock
        self._boot_s = boot_s
        self._grace_s = grace_s
        self._notice_poll_s = notice_poll_s
        self._lock = Lock()
        self._is_swept = False
        self._children: set[int] = set()  # to be reaped; those of earlier lives are init's
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise OperatorError(
                f"no folder for local instances at {folder}: {error}; name one that can be written"
            ) from None

    async def launch(self, order: LaunchOrder) -> LaunchAnswer:
        try:
            known = await asyncio.to_thread(self._replay, order)
            if known is not None:
                return known
            command = await self._command(order)
            return await asyncio.to_thread(self._launch, order, command)
        except OutsideError as error:
            return LaunchAnswer(LaunchFailure.THROTTLED, str(error))
        except GrangeError as error:
            return LaunchAnswer(LaunchFailure.CONFIG, str(error))
        except OSError as error:
            return LaunchAnswer(LaunchFailure.UNKNOWN, f"{self._folder}: {error}")

    async def instances(self) -> tuple[Instance, ...]:
        return await asyncio.to_thread(self._instances)

    async def terminate(self, instance: InstanceId) -> None:
        await asyncio.to_thread(self._terminate, instance)

    async def console(self, instance: InstanceId) -> str:
        return await asyncio.to_thread(self._console, instance)

    def interrupt(self, instance: InstanceId, after_s: float | None) -> None:
        """As a spot market does: a notice now, the end after so many seconds; None: it may go some
        day. The same as writing `after_s`, or `soon`, to the file that its GRANGE_INTERRUPT names.
        Raises OutsideError."""
        said = "soon" if after_s is None else f"{after_s:g}"
        try:
            (self._folder / instance / "interrupt").write_text(f"{said}\n")
        except OSError as error:
            raise OutsideError(f"cannot interrupt {instance}: {error}") from None

    async def notices(self) -> AsyncIterator[Notice]:
        told: set[tuple[InstanceId, bool]] = set()
        while True:
            notices: list[Notice] = []
            with suppress(OutsideError):  # `instances` tells of it
                notices = await asyncio.to_thread(self._notices)
            for each in notices:
                key = each.instance, each.deadline_s is None
                if key not in told:
                    told.add(key)
                    yield each
            told &= {(each.instance, each.deadline_s is None) for each in notices}
            await asyncio.sleep(self._notice_poll_s)

    async def troubles(self) -> tuple[str, ...]:
        said = []
        if not os.access(self._folder, os.W_OK | os.X_OK):
            said.append(f"{self._folder} cannot be written; give it to the user that runs this")
        if not os.access("/bin/sh", os.X_OK):
            said.append("/bin/sh is missing; local instances are started by it")
        return tuple(said)

    async def close(self) -> None:
        """Instances live on."""

    def _now(self) -> Now:
        return Now(self._clock.monotonic_s(), self._clock.wall_s())

    def _all(self) -> list[LocalInstance]:
        try:
            return [LocalInstance(each) for each in sorted(self._folder.glob(f"{_PREFIX}*"))]
        except OSError as error:
            raise OutsideError(f"cannot read local instances: {error}") from None

    def _find(self, id_: InstanceId) -> LocalInstance | None:
        if "/" in id_ or not id_.startswith(_PREFIX):
            return None
        folder = self._folder / id_
        return LocalInstance(folder) if folder.is_dir() else None

    def _replay(self, order: LaunchOrder) -> LaunchAnswer | None:
        with self._lock:
            known = self._find(_id_of(order))
            if known is None:
                return None
            if not known.is_of(order):
                why = "this token was of a launch for something else"
                return LaunchAnswer(LaunchFailure.UNKNOWN, why)
            return LaunchAnswer(known.look(self._now()))

    def _launch(self, order: LaunchOrder, command: LocalCommand) -> LaunchAnswer:
        id_, now = _id_of(order), self._now()
        with self._lock:
            others = self._all()
            if len(others) >= INSTANCES_MAX:
                why = f"{INSTANCES_MAX} instances are the most, those of the last hour included"
                return LaunchAnswer(LaunchFailure.QUOTA, why)
            address = _free_address({each.address for each in others})
            shutil.rmtree(self._folder / f".{id_}", ignore_errors=True)  # a crash's
            folder = self._folder / id_
            env = {
                **os.environ,
                **command.env,
                "GRANGE_INSTANCE": id_,
                "GRANGE_ADDRESS": address,
                "GRANGE_SLOT": order.slot,
                "GRANGE_POOL": order.pool.name,
                "GRANGE_INTERRUPT": str(folder / "interrupt"),
            }
            pid = local_instance.launch(
                folder,
                order,
                address=address,
                argv=command.argv,
                env=env,
                now=now,
                boot_s=self._boot_s,
            )
            self._children.add(pid)
            return LaunchAnswer(LocalInstance(folder).look(now))

    def _instances(self) -> tuple[Instance, ...]:
        with self._lock:
            self._children = {pid for pid in self._children if not _is_reaped(pid)}
            if not self._is_swept:
                for begun in self._folder.glob(f".{_PREFIX}*"):  # and not ended, by a crash
                    shutil.rmtree(begun, ignore_errors=True)
                self._is_swept = True
            now = self._now()
            seen: list[Instance] = []
            for each in self._all():
                try:
                    if each.is_gone and now.wall_s - each.gone_wall_s > KEPT_S:
                        hidden = each.folder.with_name(f".{each.folder.name}")
                        each.folder.rename(hidden)
                        shutil.rmtree(hidden)
                        continue
                    seen.append(each.look(now))
                except OSError as error:
                    raise OutsideError(f"cannot read a local instance: {error}") from None
            return tuple(seen)

    def _terminate(self, id_: InstanceId) -> None:
        with self._lock:
            try:
                known = self._find(id_)
                if known is None:
                    return
                now = self._now()
                if known.look(now).state is not InstanceState.TERMINATED:
                    known.end("terminated", now, self._grace_s)
                    known.look(now)
            except OSError as error:
                raise OutsideError(f"cannot end {id_}: {error}") from None

    def _console(self, id_: InstanceId) -> str:
        try:
            known = self._find(id_)
            return "" if known is None else known.console()
        except OSError as error:
            raise OutsideError(f"cannot read what {id_} printed: {error}") from None

    def _notices(self) -> list[Notice]:
        notices = []
        with self._lock:
            now = self._now()
            try:
                live = [each for each in self._all() if each.look(now).state in _LIVE]
                warned = [(each, each.warned(now)) for each in live]
            except OSError as error:
                raise OutsideError(f"cannot read a local instance: {error}") from None
        for each, warning in warned:
            if warning is not None:
                left_s = None if warning.at is None else max(0.0, warning.at - now.monotonic_s)
                notices.append(Notice(InstanceId(each.folder.name), left_s, "poll"))
        return notices


def _id_of(order: LaunchOrder) -> InstanceId:
    """Of the token, so that one that is asked for again is found by its name."""
    return InstanceId(f"{_PREFIX}{sha256(order.token.encode()).hexdigest()[:17]}")


def _is_reaped(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:  # somebody else did
        return True


def _free_address(taken: set[str]) -> str:
    """One that no instance has had of late."""
    return next(
        address
        for number in range(1, INSTANCES_MAX + 1)
        if (address := f"{_NETWORK}.{number >> 8}.{number & 255}") not in taken
    )
