"""What goes on beside looking and deciding: notices, what is old, what the settings lack."""

import asyncio
import logging
from contextlib import suppress
from typing import Final

from grange.autoscaler.acts import Doors
from grange.autoscaler.decisions import Decisions
from grange.autoscaler.tellings import Tellings
from grange.autoscaler.troubles import Troubles
from grange.capacity import events as on
from grange.errors import FencedError, GrangeError
from grange.ports import Balancer, Cloud, Overlay

log = logging.getLogger(__name__)

AGAIN_S: Final = 5.0
TIDY_S: Final = 60.0
PRUNE_S: Final = 3600.0
KEPT_S: Final = 30 * 86_400.0  # events, for people
SETTINGS_S: Final = 300.0
WRONG_S: Final = 30.0  # where something is, so that its mending shows
ANSWER_S: Final = 60.0


class Chores:
    def __init__(
        self, doors: Doors, decisions: Decisions, tellings: Tellings, troubles: Troubles
    ) -> None:
        self._doors = doors
        self._decisions = decisions
        self._tellings = tellings
        self._troubles = troubles
        self._is_settings_asked = asyncio.Event()

    async def hear_notices(self) -> None:
        """Hand on what the cloud warns of, for ever."""
        what = "the cloud's notices cannot be heard"
        while True:
            try:
                async for notice in self._doors.cloud.notices():
                    self._troubles.ended(what)
                    await self._decisions.ready.wait()
                    self._decisions.tell(on.NoticeCame(notice))
                self._troubles.began(what, "they ended")
            except GrangeError as error:
                self._troubles.began(what, error)
            except Exception as error:
                log.exception("%s", what)
                self._troubles.began(what, error)
            await asyncio.sleep(AGAIN_S)

    async def tidy(self) -> None:
        """Forget what is old, here and in the store, for ever. Raises FencedError."""
        what, prune_at = "what is old cannot be forgotten", 0.0
        clock = self._doors.clock
        while True:
            core = await self._decisions.ready_core()
            self._tellings.keep(core.held)
            now = clock.monotonic_s()
            if now >= prune_at:
                try:
                    await self._doors.store.prune(clock.wall_s() - KEPT_S)
                except FencedError:
                    raise
                except (GrangeError, OSError) as error:
                    self._troubles.began(what, error)
                else:
                    self._troubles.ended(what)
                    prune_at = now + PRUNE_S
            await asyncio.sleep(TIDY_S)

    def heard(self, said: on.OperatorSaid) -> None:
        """Who resumes has mended something: is it in order now?"""
        if said.verb is on.Verb.RESUME:
            self._is_settings_asked.set()

    async def try_settings(self) -> None:
        """See what keeps the settings from working, for ever."""
        doors = self._doors
        while True:
            self._is_settings_asked.clear()
            said = await self._settings("the cloud", doors.cloud)
            said += await self._settings("the balancer", doors.balancer)
            said += await self._settings("the overlay", doors.overlay)
            self._troubles.found(said)
            with suppress(TimeoutError):
                async with asyncio.timeout(WRONG_S if said else SETTINGS_S):
                    await self._is_settings_asked.wait()

    async def _settings(
        self, name: str, door: Cloud | Balancer | Overlay | None
    ) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await door.troubles() if door is not None else ()
        except TimeoutError:
            return (f"{name} did not answer within {ANSWER_S:g} s what keeps it from working",)
        except (GrangeError, OSError) as error:
            return (f"{name}: {error}",)
        except Exception as error:
            log.exception("%s cannot tell its troubles", name)
            return (f"{name}: {error!r}",)
