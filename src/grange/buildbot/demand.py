"""Tells the autoscaler of work that is coming: requests that no worker has taken, evaluations.

Builds in front of a gate are only as many as there are workers, so that without this a hundred
requests on four workers would be a demand of four.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from buildbot.data.resultspec import Filter
from pydantic import ValidationError
from twisted.internet import defer
from twisted.python import log
from twisted.python.failure import Failure

from grange.buildbot import policy
from grange.buildbot.look import drv_on_master
from grange.buildbot.policy import Kind
from grange.buildbot.unbuilt import ANY_SYSTEM, features_of
from grange.client import capacity_requests as requests
from grange.client.capacity_models import HintRequest
from grange.errors import GrangeError, PeerError
from grange.store.path import StoreDir

if TYPE_CHECKING:
    from grange.buildbot.keeper import CapacityKeeper

REQUESTS_MAX: Final = 2_000  # of one builder that are looked at, the oldest first
GATHER_S: Final = 1.0  # requests of one evaluation come together
REPORTS_KEPT: Final = 3  # a hint lives for so many reports, so that two may be missed

WAITING: Final = "waiting"
EVAL: Final = "eval"


class Demand:
    """What was told last, and what evaluations brought before."""

    def __init__(self, keeper: "CapacityKeeper") -> None:
        self._keeper = keeper
        self._told: dict[Kind, int] = {}
        self._seen: dict[Kind, int] = {}  # the most that waited after its project's evaluation
        self._evaluated: set[str] = set()  # projects, since when nothing of theirs has waited
        self._expected: dict[str, dict[Kind, int]] = {}  # by project
        # By builder and buildset, of those that wait: nothing of it changes, and reading is slow.
        self._known: dict[tuple[int, int], Kind | None] = {}
        self._news: defer.Deferred[None] | None = None

    async def run(self) -> None:
        """Reports at intervals and when there is news; no trouble ends it."""
        while True:
            try:
                await self._report(await self._waiting())
            except GrangeError:
                pass  # reservations tell of it; the next report says it all again
            except Exception:
                log.err(Failure(), "grange: cannot report what waits for workers")
            self._news = defer.Deferred()
            reactor = self._keeper.master.reactor
            self._news.addTimeout(self._keeper.settings.demand_s, reactor, lambda *_: None)
            await self._news
            await self._keeper.sleep(GATHER_S)

    def has_news(self) -> None:
        if self._news is not None and not self._news.called:
            self._news.callback(None)

    async def began(self, build: Mapping[str, Any]) -> None:
        """An evaluation prepares capacity for what it will bring."""
        project = await self._evaluates(build)
        if project is None:
            return
        settings = self._keeper.settings
        self._expected[project] = policy.expected_of(project, self._seen, settings.eval_hints)
        self._evaluated.add(project)
        for kind, places in self._expected[project].items():
            await self._tell(EVAL, kind, places, settings.eval_hint_s)

    async def ended(self, build: Mapping[str, Any]) -> None:
        project = await self._evaluates(build)
        if project is not None:
            await self._forget_expected(project)

    # --- What waits -----------------------------------------------------------------------------

    async def _waiting(self) -> dict[Kind, int]:
        """Places by kind that unclaimed requests of gated builders will ask for."""
        settings = self._keeper.settings
        known: dict[tuple[int, int], Kind | None] = {}
        found: list[Kind | None] = []
        for builder in list(self._keeper.master.botmaster.builders.values()):
            project = policy.project_of(str(builder.name), settings.suffixes)
            if project is None:
                continue
            id_ = await builder.getBuilderId()
            for buildset in await self._unclaimed(id_):
                request = (id_, buildset)
                if request not in known:
                    known[request] = (
                        self._known[request]
                        if request in self._known
                        else await self._kind(buildset, policy.line(project))
                    )
                found.append(known[request])
        self._known = known
        return policy.demand_of([kind for kind in found if kind is not None], settings.size)

    async def _unclaimed(self, builder: int) -> list[int]:
        """Buildsets of a builder's requests, one for each request."""
        unclaimed = await self._keeper.master.data.get(
            ("builders", builder, "buildrequests"),
            filters=[Filter("complete", "eq", [False]), Filter("claimed", "eq", [False])],
            order=["buildrequestid"],
            limit=REQUESTS_MAX,
        )
        return [request["buildsetid"] for request in unclaimed]

    async def _kind(self, buildset: int, project: str) -> Kind | None:
        """None where nothing is to be built, as far as is known yet."""
        said = await self._keeper.master.data.get(("buildsets", buildset, "properties"))
        system = said.get("system", ("",))[0]
        if policy.is_there(said.get("cacheStatus", ("",))[0]) or not isinstance(system, str):
            return None
        if not system or system == ANY_SYSTEM:
            return None
        return Kind(project, system, self._features(said.get("drv_path", ("",))[0]))

    def _features(self, drv_path: object) -> tuple[str, ...]:
        settings = self._keeper.settings
        own = own_features(drv_path, settings.store_dir) if isinstance(drv_path, str) else ()
        return tuple(sorted({*own, *settings.features}))

    async def _report(self, waiting: Mapping[Kind, int]) -> None:
        for_s = self._keeper.settings.demand_s * REPORTS_KEPT
        brought = self._evaluated & {kind.project for kind in waiting}
        self._seen = {kind: n for kind, n in self._seen.items() if kind.project not in brought}
        self._evaluated -= brought
        for kind, places in waiting.items():
            self._seen[kind] = max(self._seen.get(kind, 0), places)
            await self._forget_expected(kind.project)
            await self._tell(WAITING, kind, places, for_s)
            self._told[kind] = places
        for kind in self._told.keys() - waiting.keys():
            await self._tell(WAITING, kind, 0, for_s)
            del self._told[kind]

    # --- What is expected -----------------------------------------------------------------------

    async def _evaluates(self, build: Mapping[str, Any]) -> str | None:
        """Whose evaluation this build is."""
        builder = await self._keeper.master.data.get(("builders", build["builderid"]))
        if builder is None:
            return None
        project = policy.project_of(builder["name"], self._keeper.settings.eval_suffixes)
        return None if project is None else policy.line(project)

    async def _forget_expected(self, project: str) -> None:
        """What was expected is there, or will not come."""
        for kind in self._expected.pop(project, {}):
            await self._tell(EVAL, kind, 0, self._keeper.settings.eval_hint_s)

    async def _tell(self, what: str, kind: Kind, places: int, for_s: float) -> None:
        try:
            hint = HintRequest(
                key=policy.hint_key(self._keeper.master_name, what, kind),
                system=kind.system,
                features=list(kind.features),
                project=kind.project,
                waiting=places,
                for_s=for_s,
            )
        except ValidationError:
            return  # a system or feature that nobody can offer: the gate tells of it
        await self._keeper.caller.call(requests.hint(hint), requests.read_done)


@lru_cache(10_000)
def own_features(drv_path: str, root: str) -> tuple[str, ...]:
    """What the derivation itself requires, where the master's store has it; without its inputs,
    since nothing is asked of a worker for a mere hint."""
    try:
        path = StoreDir(root).parse(drv_path)
        text = drv_on_master(path, root)
        return () if text is None else features_of({path: text}, StoreDir(root))
    except PeerError:
        return ()
