"""Builds for images: submitted as anybody's, in a project of their own, and waited for."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final
from uuid import uuid4

from grange.client.words import explain
from grange.coordinator.farm import Farm
from grange.coordinator.watch import Watch
from grange.errors import ForbiddenError, OutsideError, PeerError
from grange.identity import Identity, Role
from grange.oci.refusal import Code, RefusedError
from grange.ports import (
    BuildRecord,
    Closure,
    NewBuild,
    Package,
    Progress,
    SourcesGoneError,
    StepNode,
    Tell,
)
from grange.scheduler.facts import NO_AGENT_RULE, BuildId, Cause, Outcome, StepId
from grange.scheduler.state import State
from grange.store.derivation import DRV_SUFFIX
from grange.store.path import StorePath

BY: Final = "images"  # who submits
LOOK_S: Final = 10.0  # between two looks at builds of which nothing is heard
FAILED_MAX: Final = 10_000  # derivations whose failed builds are remembered
NAMES_SHOWN_MAX: Final = 2
_AT_WORK: Final = frozenset({State.ACTIVE, State.PUBLISHING})


def evaluation_tokens(farm: Farm, project: str) -> Callable[[float], str]:
    """Makes tokens for evaluators, good for so many seconds: to send derivations and sources."""

    def issue(for_s: float) -> str:
        expires = farm.loop.now() + for_s
        return farm.hook_tokens.issue("image evaluation", [Role.SUBMIT], [project], expires)

    return issue


def evaluator_check(farm: Farm, feature: str, tag: Callable[[], str]) -> Callable[[Identity], None]:
    """Makes what refuses callers that may not take evaluations: agents that do not offer `feature`,
    and, where `tag` says one, those to which no operator gave that. What evaluations say is
    believed, and their jobs tell of sources, so whoever may build need not be let in on them."""

    def check(who: Identity) -> None:
        """Raises ForbiddenError, or OutsideError for an agent that is not here yet."""
        if who.may(Role.ADMINISTER):
            return
        agent = None if who.agent is None else farm.core.agents.get(who.agent)
        if who.agent is None or agent is None or not agent.is_connected:
            raise OutsideError(f"{who.name} has not joined the farm yet; ask again once it has")
        if feature not in (*agent.said.features, *agent.said.mandatory_features):
            raise ForbiddenError(
                f"the agent {agent.said.name!r} evaluates no packages of images, for it does not "
                f"offer the feature {feature}; run it with --feature {feature}"
            )
        wanted = tag()
        if wanted and wanted not in farm.core.agent_rules.get(who.agent, NO_AGENT_RULE).tags:
            raise ForbiddenError(
                f"the agent {agent.said.name!r} evaluates no packages of images, for that takes "
                f"the tag {wanted!r}; grange agent tags gives it"
            )

    return check


class FarmBuilds:
    """Implements `grange.ports.ImageBuilds` where the farm is led."""

    def __init__(self, farm: Farm, project: str) -> None:
        self._farm = farm
        self._journal = farm.journal
        self._project = project
        self._failed: dict[StorePath, BuildId] = {}  # by derivation; oldest first

    async def promise(self, paths: Collection[StorePath]) -> None:
        await self._farm.retention.promise(paths=paths)

    async def closure(self, roots: Collection[StorePath]) -> Closure:
        paths = await self._journal.runtime_closure([*roots])
        found = await self._journal.narinfos(paths)
        missing = {path for path in roots if path not in found}
        for narinfo in found.values():
            missing |= {path for path in narinfo.info.references if path not in found}
        return Closure(tuple([found[path] for path in sorted(found)]), tuple(sorted(missing)))

    async def check(self, packages: Collection[Package]) -> None:
        known = await self._journal.derivation_inputs({each.drv_path for each in packages})
        for package in packages:
            derivation = known.get(package.drv_path)
            if derivation is None:
                raise PeerError(f"{package.drv_path} was not sent to the farm")
            if not set(package.outputs) <= set(derivation.outputs):
                raise PeerError(f"{package.drv_path} does not make {dict(package.outputs)}")

    async def forget_lost(self, paths: Collection[StorePath]) -> bool:
        return bool(await self._farm.repairs.forget_lost([*paths]))

    async def build(
        self, packages: Sequence[Package], missing: Collection[StorePath], tell: Tell
    ) -> None:
        drvs = await self._makers(packages, missing)
        if unknown := set(drvs) - await self._journal.known_derivations(drvs):
            raise SourcesGoneError(f"the farm does not know {min(unknown)} any more")
        if await self._farm.repairs.needs_lost_sources(drvs):
            raise SourcesGoneError(f"sources that {drvs[0]} or others need were collected")
        builds = {drv: await self._build_again(drv) for drv in drvs}
        fresh = [
            NewBuild(BuildId(str(uuid4())), drv, self._project, 0, (), BY, self._farm.loop.now())
            for drv, build in builds.items()
            if build is None
        ]
        ids = {drv: build for drv, build in builds.items() if build is not None}
        ids |= {build.drv_path: build.id for build in fresh}
        try:
            await self._farm.submissions.submit(fresh)
        except PeerError as error:
            raise RefusedError(Code.TOO_MANY_REQUESTS, str(error)) from error
        await self._wait(ids, tell)

    async def _makers(
        self, packages: Sequence[Package], missing: Collection[StorePath]
    ) -> list[StorePath]:
        """The derivations that make these paths. Raises SourcesGoneError for one that none does."""
        makers = {path: package.drv_path for package in packages for _, path in package.outputs}
        for path in missing:
            if path in makers:
                continue
            step = await self._journal.step_with_output(path)
            found = {} if step is None else await self._journal.steps([step])
            if step not in found:
                raise SourcesGoneError(f"{path} was collected, and no derivation makes it")
            makers[path] = found[step].drv_path
        return sorted({makers[path] for path in missing})

    async def _build_again(self, drv: StorePath) -> BuildId | None:
        """The build of `drv` to go on with, where its last one failed: none, unless somebody has
        had that tried again. Raises its refusal where it would fail as it did."""
        id_ = self._failed.get(drv)
        record = None if id_ is None else await self._journal.build(id_)
        if id_ is None or record is None:
            return None
        if record.outcome is None:
            return id_
        nodes = await self._journal.unfinished_graph([drv])
        is_remembered = any(node.remembered is not None for node in nodes)
        if is_remembered and not record.outcome.is_success:
            await self._judge(record)
        del self._failed[drv]
        return None

    # --- Until they have ended ------------------------------------------------------------------

    async def _wait(self, ids: Mapping[StorePath, BuildId], tell: Tell) -> None:
        """Returns once all have succeeded; raises as soon as one has not."""
        nodes = await self._journal.unfinished_graph([*ids])
        steps = {node.spec.id: node for node in nodes}
        watch = Watch(steps, ids.values(), logs=False)
        self._farm.watches.open(watch)
        try:
            live = self._farm.core.steps
            states = {step: live[step].state for step in steps if step in live}
            builds = tuple(ids.values())
            while True:
                if await self._have_ended(builds):
                    return
                tell(Progress(_building(steps, states), builds))
                await _news(watch)
                for news in watch.take()[0]:
                    states[news.step] = State[news.state]
        finally:
            self._farm.watches.close(watch)

    async def _have_ended(self, builds: Sequence[BuildId]) -> bool:
        records = await self._journal.builds_of(builds)
        for record in records:
            if record.outcome is not None and not record.outcome.is_success:
                self._remember(record)
                await self._judge(record)
        return len(records) == len(builds) and all(each.outcome is not None for each in records)

    def _remember(self, record: BuildRecord) -> None:
        self._failed.pop(record.drv_path, None)
        self._failed[record.drv_path] = record.id
        while len(self._failed) > FAILED_MAX:
            del self._failed[next(iter(self._failed))]

    async def _judge(self, record: BuildRecord) -> None:
        """Raise what to tell of a build that did not succeed."""
        cause = record.cause
        outcome = record.outcome if cause is None else cause.outcome
        assert outcome is not None
        if outcome is Outcome.INPUTS_MISSING:
            raise SourcesGoneError(f"build {record.id} lacks inputs that nobody makes")
        name = _shown(record.drv_path)
        if outcome is Outcome.CANCELLED:
            raise RefusedError(
                Code.MANIFEST_UNKNOWN,
                f"the build of {name} was cancelled (build {record.id}); it is built anew when the "
                "image is asked for again",
            )
        raise await self._failure(record, name, cause)

    async def _failure(self, record: BuildRecord, name: str, cause: Cause | None) -> RefusedError:
        """With words on where to look, and what to do."""
        what = "it failed" if cause is None else explain(cause)
        detail: dict[str, str] = {"build": record.id}
        culprit = name
        if cause is not None and cause.step is not None:
            steps = await self._journal.steps([cause.step])
            if cause.step in steps:
                culprit = _shown(steps[cause.step].drv_path)
        words = (
            f"{name} cannot be built: {what}"
            if culprit == name
            else (f"{name} cannot be built, because of {culprit}: {what}")
        )
        if cause is not None and cause.message:
            words += f" ({cause.message})"
        if cause is not None and cause.attempt is not None:
            url = self._farm.settings.cache_url
            detail["log"] = f"{url}/api/v1/attempts/{cause.attempt}/log"
            words += f". Its log: {detail['log']}, or grange log {record.id}"
        words += f". Once that is mended: grange retry {record.id}, and ask again"
        return RefusedError(Code.MANIFEST_UNKNOWN, words, detail)


async def _news(watch: Watch) -> None:
    """Wait for some, or for so long that it is worth a look."""
    try:
        async with asyncio.timeout(LOOK_S):
            await watch.has_news.wait()
    except TimeoutError:
        pass


def _building(steps: Mapping[StepId, StepNode], states: Mapping[StepId, State]) -> str:
    """Such as "building git-2.45 and 3 more: 12 of 40 steps"."""
    if not steps:
        return "waiting for the farm"
    done = sum(state is State.DONE for state in states.values())
    count = f"{done} of {len(steps)} steps"
    active = [step for step, state in states.items() if state in _AT_WORK]
    if active:
        return f"building {_listed(steps, active)}: {count}"
    failed = [step for step, state in states.items() if state is State.BACKING_OFF]
    if failed:
        return f"agents failed at {_listed(steps, failed)}, which is tried again: {count}"
    return f"waiting for an agent: {count}"


def _listed(steps: Mapping[StepId, StepNode], some: Sequence[StepId]) -> str:
    names = [_shown(steps[step].drv_path) for step in some]
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join(names[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _shown(drv_path: StorePath) -> str:
    return drv_path.name.removesuffix(DRV_SUFFIX)
