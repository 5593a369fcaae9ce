"""The service that holds reservations for as long as their builds run.

Steps come and go, and do not run at all where a worker is lost; a service of the master sees every
build end. It alone talks to the autoscaler.
"""

from collections.abc import Coroutine
from typing import Any, Final

from buildbot.util.service import BuildbotService
from twisted.internet import defer, task
from twisted.python import log
from twisted.python.failure import Failure

from grange.buildbot import policy
from grange.buildbot.caller import CapacityCaller
from grange.buildbot.demand import Demand
from grange.buildbot.policy import Settings
from grange.capacity.facts import ReservationState
from grange.client import capacity_requests as requests
from grange.client.capacity_models import LIST_MAX, WAIT_MAX_S, ReservationView, ReserveRequest
from grange.client.capacity_requests import CapacityRequest
from grange.errors import GrangeError, NotFoundError, PeerError

BEATS: Final = 3  # heartbeats in one lease, so that two may fail
BEAT_MIN_S: Final = 0.5  # whatever a daemon says
WAIT_S: Final = WAIT_MAX_S - 5.0  # one long poll
ROUND_S: Final = 1.0  # between two questions at least
LEASE_S: Final = 90.0  # where the daemon has not said yet
OPEN: Final = (ReservationState.PENDING, ReservationState.READY)
STOP_S: Final = 5.0  # for a master that stops, to let go of what it holds


class Lease:
    """A build's reservation, from the moment it is asked for."""

    def __init__(self, build: int, request: ReserveRequest, losses: int) -> None:
        self.build = build
        self.request = request
        self.losses = losses  # attempts of the build request that lost their slot before
        self.view: ReservationView | None = None  # as it was last heard of
        self.beats: defer.Deferred[None] | None = None

    @property
    def state(self) -> ReservationState | None:
        return None if self.view is None else self.view.state

    @property
    def lease_s(self) -> float:
        return LEASE_S if self.view is None else self.view.lease_s

    def start_anew(self, key: str) -> None:
        """What it was is over: it is to be asked for under another key."""
        self.request = self.request.model_copy(update={"key": key})
        self.view = None

    def learn(self, view: ReservationView) -> ReservationView:
        """Answers may overtake each other, but what has ended stays so."""
        if self.view is None or view.id != self.view.id or self.view.is_open:
            self.view = view
        return self.view


class CapacityKeeper(BuildbotService):
    name = policy.KEEPER

    def __init__(self, settings: Settings, **named: Any) -> None:
        super().__init__(settings, **named)
        self.settings = settings
        self._caller: CapacityCaller | None = None
        self._leases: dict[int, Lease] = {}  # by build
        self._running: set[defer.Deferred[None]] = set()
        self._parting: set[Lease] = set()  # given up, which the daemon has not heard of yet
        self._consumers: list[Any] = []
        self._demand = Demand(self)

    # --- Life -----------------------------------------------------------------------------------

    def reconfigService(self, settings: Settings) -> "defer.Deferred[None]":  # noqa: N802
        before, self.settings = self._caller, settings
        self._caller = CapacityCaller(self.master.reactor, settings.urls, settings.token_file)
        closed: defer.Deferred[None] = defer.succeed(None)
        return closed if before is None else defer.ensureDeferred(before.close())

    @defer.inlineCallbacks
    def startService(self) -> Any:  # noqa: N802
        yield super().startService()
        for happened, topic in (
            (self._finished, ("builds", None, "finished")),
            (self._began, ("builds", None, "new")),
            (lambda *_: self._demand.has_news(), ("buildrequests", None, "new")),
        ):
            self._consumers.append((yield self.master.mq.startConsuming(happened, topic)))
        self.spawn(self._let_go_of_earlier_lives())
        self.spawn(self._demand.run())

    @defer.inlineCallbacks
    def stopService(self) -> Any:  # noqa: N802
        for consumer in self._consumers:
            yield consumer.stopConsuming()
        self._consumers.clear()
        held = [*self._leases.values(), *self._parting]
        self._leases.clear()
        for each in list(self._running):
            each.cancel()
        # Once for each: a master that stops does not wait for a daemon that is down.
        told = defer.DeferredList([defer.ensureDeferred(self._farewell(lease)) for lease in held])
        told.addTimeout(STOP_S, self.master.reactor, lambda *_: None)
        yield told
        if self._caller is not None:
            yield defer.ensureDeferred(self._caller.close())
        yield super().stopService()

    def _began(self, _: Any, build: dict[str, Any]) -> None:
        self.spawn(self._tell(self._demand.began(build)))

    def _finished(self, _: Any, build: dict[str, Any]) -> None:
        self.let_go(build["buildid"])
        self.spawn(self._tell(self._demand.ended(build)))

    async def _tell(self, hint: Coroutine[Any, Any, None]) -> None:
        """A hint that does not arrive is missed by nobody for long."""
        try:
            await hint
        except GrangeError as error:
            log.msg(f"grange: a hint did not arrive: {error}")

    def spawn(self, work: Coroutine[Any, Any, None]) -> "defer.Deferred[None]":
        """Do it beside everything else, until it ends or the service stops."""
        running: defer.Deferred[None] = defer.ensureDeferred(work)
        self._running.add(running)

        def ended(result: Any) -> None:
            self._running.discard(running)
            if isinstance(result, Failure) and not result.check(defer.CancelledError):
                log.err(result, "grange: a fault of the capacity gate itself; please report it")

        running.addBoth(ended)
        return running

    def sleep(self, wait_s: float) -> "defer.Deferred[None]":
        return task.deferLater(self.master.reactor, wait_s, lambda: None)

    @property
    def caller(self) -> CapacityCaller:
        assert self._caller is not None, "a service is configured before it is used"
        return self._caller

    @property
    def master_name(self) -> str:
        """Whose reservations these are: host and directory, unless it is set."""
        return self.settings.master or str(self.master.name)

    # --- Reservations, for the steps ------------------------------------------------------------

    def lease_of(self, build: int) -> Lease | None:
        return self._leases.get(build)

    async def reserve(self, lease: Lease) -> ReservationView:
        """Asks for it, or hears of it again; from now on its lease is renewed.

        Whoever stops waiting for the answer must `let_go`, and the demand is taken back even where
        the answer is still on its way.
        """
        self._leases[lease.build] = lease
        answer: defer.Deferred[ReservationView] = defer.Deferred()

        async def ask() -> None:
            try:
                view = await self._call(lease, requests.reserve(lease.request))
            except GrangeError as error:
                if not answer.called:
                    answer.errback(error)
                return
            if self._leases.get(lease.build) is lease:
                self._begin_to_renew(lease)
            else:
                self.spawn(self._release(lease))
            if not answer.called:
                answer.callback(view)

        self.spawn(ask())
        return await answer

    async def wait(self, lease: Lease, wait_s: float = WAIT_S) -> ReservationView:
        """Answered when something changes, or when `wait_s` is over."""
        before, since = lease.view, self._now()
        assert before is not None, "who waits has asked before"
        view = await self._call(lease, requests.wait(before.id, before.version, wait_s))
        if view == before and self._now() - since < ROUND_S:
            await self.sleep(ROUND_S)  # a daemon that waits for less than was asked
        return view

    async def _call(self, lease: Lease, request: CapacityRequest) -> ReservationView:
        return lease.learn(await self.caller.call(request, requests.read_reservation))

    async def was_lost(self, lease: Lease) -> bool:
        """Whether its slot is gone, which a daemon may find out a little after a build has."""
        until = self._now() + self.settings.loss_wait_s
        is_fresh = False
        failures = 0
        while lease.view is not None and lease.view.is_open:
            left = until - self._now()
            try:
                if not is_fresh:
                    await self._call(lease, requests.renew(lease.view.id))
                    is_fresh = True
                elif left > 0:
                    await self.wait(lease, left)
                else:
                    break
            except NotFoundError:
                break
            except GrangeError:
                if left <= 0:
                    break
                failures += 1
                await self.sleep(min(left, policy.backoff_s(failures, lease.request.key)))
        return lease.state is ReservationState.LOST

    def let_go(self, build: int) -> None:
        """Of what was reserved for it, if anything was. As often as one likes."""
        lease = self._leases.pop(build, None)
        if lease is None:
            return
        if lease.beats is not None:
            lease.beats.cancel()
        self.spawn(self._release(lease))

    # --- Renewing and releasing -----------------------------------------------------------------

    def _begin_to_renew(self, lease: Lease) -> None:
        if lease.beats is None:
            lease.beats = self.spawn(self._renew(lease))

    async def _renew(self, lease: Lease) -> None:
        """Until it has ended, whatever happens to the daemon."""
        failures = 0
        while lease.view is not None and lease.view.is_open:
            beat_s = max(BEAT_MIN_S, lease.lease_s / BEATS)
            if failures:
                beat_s = min(beat_s, policy.backoff_s(failures, lease.request.key))
            await self.sleep(beat_s)
            try:
                await self._call(lease, requests.renew(lease.view.id))
                failures = 0
            except NotFoundError:
                break
            except GrangeError:
                failures += 1
        lease.beats = None

    async def _release(self, lease: Lease) -> None:
        """Tries for as long as it would take the lease to end by itself."""
        until = self._now() + lease.lease_s
        failures = 0
        self._parting.add(lease)
        try:
            while lease.view is not None and lease.view.is_open and self._now() < until:
                if await self._farewell(lease):
                    return
                failures += 1
                await self.sleep(policy.backoff_s(failures, lease.request.key))
        finally:
            self._parting.discard(lease)

    async def _farewell(self, lease: Lease) -> bool:
        """Whether the daemon has heard of it."""
        if lease.view is None:
            return True
        return await self._release_by_id(lease.view.id)

    async def _release_by_id(self, id_: str) -> bool:
        try:
            await self.caller.call(requests.release(id_), requests.read_reservation)
        except NotFoundError:
            return True
        except PeerError as error:
            log.msg(f"grange: reservation {id_} is not released: {error}")
            return True
        except GrangeError:
            return False
        return True

    async def _let_go_of_earlier_lives(self) -> None:
        """Builds do not survive their master, so what its earlier lives had reserved is free."""
        left: list[str] | None = None
        failures = 0
        while True:
            try:
                if left is None:
                    left = await self._reserved_before()
                left = [id_ for id_ in left if not await self._release_by_id(id_)]
                if not left:
                    return
            except GrangeError as error:
                if failures == 0:
                    log.msg(f"grange: earlier reservations are asked for again later: {error}")
            failures += 1
            await self.sleep(policy.backoff_s(failures, self.master_name))

    async def _reserved_before(self) -> list[str]:
        prefix = policy.key_prefix(self.master_name)
        held = {lease.request.key for lease in self._leases.values()}
        asked = requests.reservations(OPEN, limit=LIST_MAX, key_prefix=prefix)
        found = await self.caller.call(asked, requests.read_reservations)
        held.update(lease.request.key for lease in self._leases.values())
        return [view.id for view in found if view.key not in held]

    def _now(self) -> float:
        now: float = self.master.reactor.seconds()
        return now
