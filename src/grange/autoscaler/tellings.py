"""How reservations stand as far as is durable, and who waits for news of them.

Nobody is told of a slot before that is committed: a crash would take it back. Nor before traffic
can reach it, for who connects too early fails.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from grange.capacity.facts import Reservation, ReservationId, ReservationState, SlotId
from grange.capacity.state import OPEN
from grange.errors import NotFoundError, OutsideError

OPEN_MAX: Final = 100_000  # reservations; a farm of 10,000 slots has some 40,000 places
KNOWN_MAX: Final = 4 * OPEN_MAX  # with those that ended within the hour; some 400 MB


class Tellings:
    def __init__(self) -> None:
        self.known: dict[ReservationId, Reservation] = {}
        self._versions: dict[ReservationId, int] = {}
        self._by_key: dict[str, ReservationId] = {}
        self._open: set[ReservationId] = set()
        self.about_to_open: set[SlotId] = set()
        self._kept_back: dict[SlotId, dict[ReservationId, Reservation]] = {}  # until it is open
        self._kept_at: dict[ReservationId, SlotId] = {}  # where among these each is
        self._waiting: dict[ReservationId, set[asyncio.Future[None]]] = {}
        self._next = 1

    def number_from(self, wall_s: float) -> None:
        """Versions of this life are above those of any before it."""
        self._next = max(self._next, int(wall_s * 1000))

    def shut(self, slot: SlotId) -> None:
        """Whoever has a place there is told so when it is `opened`."""
        self.about_to_open.add(slot)

    def opened(self, slot: SlotId) -> list[Reservation]:
        """Traffic reaches it now; of whom that is news."""
        self.about_to_open.discard(slot)
        due = self._kept_back.get(slot, {})
        return [each for each in tuple(due.values()) if self.take(each)]

    def take(self, reservation: Reservation) -> bool:
        """It stands so, durably; whether that is news."""
        id_ = reservation.id
        known = self.known.get(id_)
        self._let_go(id_)
        slot = reservation.slot if reservation.state is ReservationState.READY else None
        is_told_to_wait = known is None or known.state is ReservationState.PENDING
        if slot is not None and slot in self.about_to_open and is_told_to_wait:
            self._kept_back.setdefault(slot, {})[id_] = reservation
            self._kept_at[id_] = slot
            reservation = replace(reservation, state=ReservationState.PENDING, slot=None)
        if known == reservation:
            return False
        self.known[id_] = reservation
        self._by_key[reservation.claim.key] = id_
        (self._open.add if reservation.state in OPEN else self._open.discard)(id_)
        self._versions[id_] = self._next
        self._next += 1
        self._wake(id_)
        return True

    def begin_anew(self, reservations: Iterable[Reservation], *, is_seen: bool) -> None:
        """These are all there are; what no longer is among them is forgotten. `is_seen`: looks show
        which slots are open, so that who was told to wait goes on until then."""
        now = {each.id: each for each in reservations}
        self.about_to_open.clear()
        self.keep(now)
        for each in now.values():
            known = self.known.get(each.id)
            is_new = known is not None and known.state is ReservationState.PENDING
            if is_seen and is_new and each.slot is not None:
                self.about_to_open.add(each.slot)
            self.take(each)

    def keep(self, ids: Mapping[ReservationId, object]) -> None:
        """Forget all others."""
        for id_ in [each for each in self.known if each not in ids]:
            gone = self.known.pop(id_)
            del self._versions[id_]
            self._let_go(id_)
            self._open.discard(id_)
            if self._by_key.get(gone.claim.key) == id_:
                del self._by_key[gone.claim.key]
            self._wake(id_)

    def reservation(self, id_: ReservationId) -> Reservation:
        found = self.known.get(id_)
        if found is None:
            raise NotFoundError(
                f"there is no reservation {id_}: it ended long ago, or never was; ask for a new one"
            )
        return found

    def of_key(self, key: str) -> Reservation | None:
        id_ = self._by_key.get(key)
        return None if id_ is None else self.known[id_]

    def version(self, id_: ReservationId) -> int:
        return self._versions[id_]

    def objection(self) -> str:
        """Why none more is taken; "" where one is."""
        if len(self._open) >= OPEN_MAX:
            return f"there are {OPEN_MAX} open reservations, as many as may be; ask again later"
        if len(self.known) >= KNOWN_MAX:
            return f"{KNOWN_MAX} reservations were made of late, as many as may be; ask again later"
        return ""

    async def news(self, id_: ReservationId, version: int, wait_s: float) -> None:
        """Until its version is another one, or it is gone, or for so long.

        Raises OutsideError where this process is about to know nothing more of it.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while self._versions.get(id_) == version and loop.time() < until:
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.setdefault(id_, set()).add(future)
            try:
                async with asyncio.timeout_at(until):
                    await future
            except TimeoutError:
                return
            finally:
                if (others := self._waiting.get(id_)) is not None:
                    others.discard(future)
                    if not others:
                        del self._waiting[id_]

    def stop(self, why: str) -> None:
        """Nobody is told anything more."""
        for waiting in list(self._waiting.values()):
            for future in waiting:
                if not future.done():
                    future.set_exception(OutsideError(why))
        self._waiting.clear()

    def _wake(self, id_: ReservationId) -> None:
        for future in self._waiting.pop(id_, ()):
            if not future.done():
                future.set_result(None)

    def _let_go(self, id_: ReservationId) -> None:
        slot = self._kept_at.pop(id_, None)
        if slot is not None:
            del self._kept_back[slot][id_]
            if not self._kept_back[slot]:
                del self._kept_back[slot]
