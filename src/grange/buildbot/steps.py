"""The steps around a build: one waits for capacity before it, one gives it back after."""

from typing import Any, Final

from buildbot.process.buildstep import BuildStep
from buildbot.process.results import CANCELLED, EXCEPTION, FAILURE, RETRY, SKIPPED, SUCCESS
from pydantic import ValidationError
from twisted.internet import defer
from twisted.internet.error import ConnectionLost
from twisted.python import log
from twisted.python.failure import Failure

from grange.buildbot import policy
from grange.buildbot.keeper import CapacityKeeper, Lease
from grange.buildbot.look import look
from grange.buildbot.policy import AfterFailure, Next, Settings, WhenDown
from grange.buildbot.unbuilt import Ask
from grange.capacity.facts import ReservationState
from grange.client.capacity_models import ReservationView, ReserveRequest
from grange.errors import (
    ConflictError,
    ForbiddenError,
    GrangeError,
    NotFoundError,
    PeerError,
    ThrottledError,
    UnauthenticatedError,
)

LOST: Final = "grange_lost"  # a property: the slot of this build was lost
SOURCE: Final = "grange"  # of the properties set here
TEXT_MAX: Final = 500  # of a step's status

# An operator mends these, and then the same request is right.
_MENDABLE: Final = (ForbiddenError, ThrottledError, UnauthenticatedError)


class _Step(BuildStep):
    def __init__(self, keeper: str = policy.KEEPER, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._keeper_name = keeper
        self._keeper: CapacityKeeper | None = None
        self._said = ""
        self._waiting: defer.Deferred[int] | None = None

    @property
    def keeper(self) -> CapacityKeeper:
        assert self._keeper is not None, "asked for before anything else"
        return self._keeper

    def find_keeper(self) -> bool:
        """Once for each step; it may have been configured away since the build began."""
        found = self.master.service_manager.namedServices.get(self._keeper_name)
        self._keeper = found if isinstance(found, CapacityKeeper) else None
        return self._keeper is not None

    def interrupt(self, reason: Any) -> "defer.Deferred[None]":
        interrupted: defer.Deferred[None] = super().interrupt(reason)
        if self._waiting is not None:
            self._waiting.cancel()
        return interrupted

    def getCurrentSummary(self) -> dict[str, str]:  # noqa: N802
        return {"step": self._said or str(self.name)}

    def getResultSummary(self) -> dict[str, str]:  # noqa: N802
        ended = " (cancelled)" if self.results == CANCELLED else ""
        return {"step": f"{self._said or self.name}{ended}"}

    async def say(self, text: str, *, is_for_log: bool = True) -> None:
        """As the step's status, and once in its log."""
        text = text[:TEXT_MAX]
        if text == self._said:
            return
        self._said = text
        self.updateSummary()
        if is_for_log:
            stdio = self.logs.get("capacity") or await self.addLog("capacity")
            await stdio.addHeader(f"{text}\n")


class Gate(_Step):
    """Ends when there is capacity for the build. It never raises: an exception of a step sets its
    worker aside."""

    name = "capacity"
    haltOnFailure = True  # noqa: N815
    flunkOnFailure = True  # noqa: N815

    def __init__(self, keeper: str = policy.KEEPER, **kwargs: Any) -> None:
        super().__init__(keeper, hideStepIf=_is_skipped, **kwargs)

    def run(self) -> "defer.Deferred[int]":
        return defer.ensureDeferred(self._run())

    async def _run(self) -> int:
        try:
            return await self._pass()
        except defer.CancelledError:
            return CANCELLED
        except ConnectionLost:
            return RETRY
        except Exception:
            log.err(Failure(), "grange: a fault of the capacity gate itself; please report it")
            self._said = "built without a reservation, for a fault of the gate; see twistd.log"
            return SUCCESS

    async def _pass(self) -> int:
        if not self.find_keeper():
            self._said = "needs no capacity: this is not configured any more"
            return SKIPPED
        if policy.is_there(self.getProperty("cacheStatus")):
            self._said = "needs no capacity: it is built already"
            return SKIPPED
        settings = self.keeper.settings
        await self.say("looking at what is to be built", is_for_log=False)
        ask = await look(self, settings)
        if self.stopped:
            return CANCELLED
        if isinstance(ask, str):
            await self.say(f"built without a reservation: {ask}")
            return SUCCESS
        if ask is None:
            self._said = "needs no capacity: nothing is to be built"
            return SKIPPED
        return await self._wait_for(ask, settings)

    async def _wait_for(self, ask: Ask, settings: Settings) -> int:
        await self.say(_words(ask))
        try:
            lease = await self._lease(ask, settings)
        except ValidationError as error:
            await self.say(f"refused: {error.errors()[0]['msg']}")
            return FAILURE
        if self.stopped:
            return CANCELLED
        self._waiting = defer.ensureDeferred(self._acquire(lease, settings))
        try:
            result = await self._waiting
        except defer.CancelledError:
            result = CANCELLED
        finally:
            self._waiting = None
        if result != SUCCESS or lease.state is not ReservationState.READY:
            self.keeper.let_go(lease.build)
        return result

    async def _acquire(self, lease: Lease, settings: Settings) -> int:
        """Until there is a verdict, however long the autoscaler is away."""
        again = failures = 0
        silent_since: float | None = None
        is_first = True
        key = lease.request.key
        while True:
            try:
                view = await (self.keeper.reserve(lease) if is_first else self.keeper.wait(lease))
            except NotFoundError:
                is_first = True  # it has forgotten everything: the same again
                await self.keeper.sleep(policy.backoff_s(1, key))
                continue
            except ConflictError:
                again, is_first = again + 1, True  # the key is an earlier build's of that number
                lease.start_anew(f"{key}:{again}")
                continue
            except GrangeError as error:
                if isinstance(error, PeerError) and not isinstance(error, _MENDABLE):
                    await self.say(f"refused: {error}")
                    return FAILURE
                failures += 1
                silent_since = self._now() if silent_since is None else silent_since
                verdict = await self._endure(error, failures, silent_since, lease)
                if verdict is not None:
                    return verdict
                continue
            failures, silent_since = 0, None
            match policy.next_of(view.state, is_first=is_first):
                case Next.BUILD:
                    return await self._build_with(view, settings)
                case Next.WAIT:
                    is_first = False
                    await self.say(f"waiting: {view.why}")
                case Next.ASK_ANEW:
                    again, is_first = again + 1, True
                    await self.say(f"asking anew: {view.why or view.reason}")
                    lease.start_anew(f"{key}:{again}")
                    await self.keeper.sleep(policy.backoff_s(again, key))
                case Next.FAIL:
                    await self.say(f"impossible: {view.reason or view.why}")
                    return FAILURE
                case Next.STOP:
                    await self.say(f"the reservation was taken back: {view.reason or view.why}")
                    return CANCELLED

    async def _endure(
        self, error: GrangeError, failures: int, since: float, lease: Lease
    ) -> int | None:
        """Wait a little; a result where enough has been waited."""
        settings = self.keeper.settings
        silent_s = self._now() - since
        verdict = policy.verdict_on_silence(settings, silent_s)
        match verdict:
            case WhenDown.PROCEED:
                await self.say(f"built without a reservation: {error}")
                return SUCCESS
            case WhenDown.FAIL:
                await self.say(f"gave up: {error}")
                return FAILURE
        await self.say(f"waiting: {error}")
        pause_s = policy.backoff_s(failures, lease.request.key)
        if settings.when_down is not WhenDown.WAIT:
            pause_s = min(pause_s, settings.down_s - silent_s)
        await self.keeper.sleep(pause_s)
        return None

    async def _build_with(self, view: ReservationView, settings: Settings) -> int:
        """Let the build know where it may build, and begin."""
        slot = view.slot or ""
        for name, value in (("reservation", view.id), ("slot", slot), ("address", view.address)):
            self.setProperty(f"grange_{name}", value, SOURCE)
        lines = settings.nix_conf(slot, view.address, view.system, view.features)
        if lines:
            env = self.build.env
            env["NIX_CONFIG"] = f"{env['NIX_CONFIG']}\n{lines}" if env.get("NIX_CONFIG") else lines
        await self.say(f"has {view.slot}")
        return SUCCESS

    async def _lease(self, ask: Ask, settings: Settings) -> Lease:
        """What to ask for, given what became of the build request so far."""
        request = self.build.requests[0]
        attempt, losses = await self._history(request.id)
        builder = str(self.build.builder.name)
        asked = ReserveRequest(
            key=policy.reservation_key(self.keeper.master_name, request.id, attempt),
            system=ask.system,
            features=list(ask.features),
            project=policy.line(policy.project_of(builder, settings.suffixes) or builder),
            priority=request.priority or 0,
            size=settings.size,
            is_on_demand=policy.is_last(settings, losses),
            by=policy.line(f"{builder} #{self.build.number}"),
        )
        if losses:
            kind = ", on demand" if asked.is_on_demand else ""
            await self.say(
                f"attempt {losses + 1} of {settings.attempts_max}{kind}: slots were lost"
            )
        return Lease(self.build.buildid, asked, losses)

    async def _history(self, request: int) -> tuple[int, int]:
        """Which attempt of the build request this is, counted from 1, and how many were lost."""
        builds = await self.master.data.get(("buildrequests", request, "builds"))
        earlier = [build["buildid"] for build in builds if build["buildid"] != self.build.buildid]
        losses = 0
        for build in earlier:
            properties = await self.master.data.get(("builds", build, "properties"))
            losses += LOST in properties
        return len(earlier) + 1, losses

    def _now(self) -> float:
        now: float = self.master.reactor.seconds()
        return now


class Release(_Step):
    """Gives capacity back, and has a build whose slot was lost tried again."""

    name = "capacity release"
    alwaysRun = True  # noqa: N815

    def __init__(self, keeper: str = policy.KEEPER, **kwargs: Any) -> None:
        super().__init__(keeper, hideStepIf=_is_clean, **kwargs)

    def run(self) -> "defer.Deferred[int]":
        return defer.ensureDeferred(self._run())

    async def _run(self) -> int:
        lease = self.keeper.lease_of(self.build.buildid) if self.find_keeper() else None
        if lease is None:
            return SUCCESS
        try:
            return await self._judge(lease)
        except defer.CancelledError:
            return CANCELLED
        except Exception:
            log.err(Failure(), "grange: a fault of the capacity gate itself; please report it")
            return SUCCESS
        finally:
            self.keeper.let_go(lease.build)

    async def _judge(self, lease: Lease) -> int:
        if self.build.results != FAILURE:
            return SUCCESS
        slot = lease.view.slot if lease.view is not None else None
        self._waiting = defer.ensureDeferred(self.keeper.was_lost(lease))
        try:
            is_lost = bool(await self._waiting)
        finally:
            self._waiting = None
        settings = self.keeper.settings
        if is_lost:
            self.setProperty(LOST, True, SOURCE)
        match policy.after_failure(settings, is_lost=is_lost, losses=lease.losses):
            case AfterFailure.FAILED:
                return SUCCESS
            case AfterFailure.RETRY:
                await self.say(f"tried again: {slot} was lost under it: {_why(lease)}")
                return RETRY
            case AfterFailure.GIVE_UP:
                await self.say(
                    f"given up: all {settings.attempts_max} attempts lost their slot, "
                    f"the last of them {slot}: {_why(lease)}"
                )
                return EXCEPTION


def _why(lease: Lease) -> str:
    return "" if lease.view is None else lease.view.reason or lease.view.why


def _words(ask: Ask) -> str:
    features = f" with {', '.join(ask.features)}" if ask.features else ""
    return f"asks for {ask.system}{features}; {ask.found}"


def _is_skipped(results: int, _: BuildStep) -> bool:
    return results == SKIPPED


def _is_clean(results: int, _: BuildStep) -> bool:
    return results == SUCCESS
