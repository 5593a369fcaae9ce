"""From "it is built" to "every byte is stored": what agents claim, may upload and have uploaded.

Nothing here is durable. After a restart agents repeat what they built, and upload again what was
not published.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from grange.cache.publish import Publisher
from grange.cache.signing import publish
from grange.cache.uploads import Stored, Uploads
from grange.cache.verify import Candidates, candidates_of
from grange.coordinator.holds import Holds
from grange.coordinator.loop import WriterLoop
from grange.coordinator.support import support_json
from grange.errors import GrangeError, OutsideError, PeerError
from grange.ports import Journal, Objects, PublishedOutput, StepRecord, StoreOptions
from grange.scheduler.events import AttemptFailed, OutputsBuilt, OutputsStored
from grange.scheduler.facts import AgentId, AttemptId, Outcome, checked, is_check
from grange.store.compression import USUAL_LEVELS
from grange.store.content import ContentAddress, Method
from grange.store.hash import Hash
from grange.store.keys import SecretKey
from grange.store.narinfo import NarInfo
from grange.store.path import StoreDir, StorePath
from grange.wire.basic import basic_from_bytes
from grange.wire.messages import Built, BuiltOutput, UploadGrant

log = logging.getLogger(__name__)

# From here on an upload goes straight to the store: it then costs the store six requests, and the
# farm only one reading; a smaller one is one request of the farm's own.
DIRECT_NAR_BYTES: Final = 4 << 20
GRANT_RETRY_S: Final = 1.0  # while the journal cannot be read
CLOSURES_MAX: Final = 1_024  # kept by input set: a wide fan-out asks for the same one again

PublishPath = Callable[
    [Collection[StorePath], StorePath, Callable[[], Awaitable[None]]], Awaitable[None]
]
"""Has a path published while what it refers to is here: see `Retention.publish`."""

OnPublished = Callable[[Sequence[NarInfo]], None]

SendGrants = Callable[[AgentId, Sequence[UploadGrant]], None]


@dataclass(slots=True)
class Delivery:
    """An attempt on its way from an agent into the cache."""

    agent: AgentId
    record: StepRecord
    is_check: bool = False  # built again to compare: delivers nothing
    claims: dict[StorePath, BuiltOutput] = field(default_factory=dict)
    stored: dict[StorePath, PublishedOutput] = field(default_factory=dict)
    held: list[str] = field(default_factory=list)  # keys of what it has uploaded


class Deliveries:
    def __init__(
        self,
        *,
        journal: Journal,
        objects: Objects,
        publisher: Publisher,
        options: StoreOptions,
        holds: Holds,
        loop: WriterLoop,
        keys: Sequence[SecretKey],
        store_dir: StoreDir,
        cache_url: str,
        on_published: OnPublished = lambda _: None,
    ) -> None:
        """`objects` take uploads, compressed as `options` say; `on_published` hears of paths that
        no step made."""
        self._journal = journal
        self._is_direct = objects.direct is not None
        self._publisher = publisher
        self._options = options
        self._holds = holds
        self.uploads: Uploads  # set by the farm: each of the two calls the other
        self.publish_path: PublishPath  # likewise
        self._loop = loop
        self._keys = keys
        self._store_dir = store_dir
        self._cache_url = cache_url
        self._on_published = on_published
        self._under_way: dict[AttemptId, Delivery] = {}
        self._unpublished: dict[tuple[AgentId, StorePath], tuple[StorePath, ...]] = {}
        self._wanted: asyncio.Queue[tuple[AttemptId, Delivery]] = asyncio.Queue()
        self._adopted: asyncio.Queue[tuple[AgentId, Built]] = asyncio.Queue()
        self._closures: OrderedDict[tuple[StorePath, ...], tuple[StorePath, ...]] = OrderedDict()

    @property
    def pending(self) -> int:
        """Outputs that are claimed and not yet stored."""
        return sum(len(d.claims) - len(d.stored) for d in self._under_way.values())

    def begin(
        self, attempt: AttemptId, agent: AgentId, record: StepRecord, *, is_check: bool = False
    ) -> None:
        """The attempt has been sent to this agent."""
        self._under_way[attempt] = Delivery(agent, record, is_check)

    def end(self, attempt: AttemptId) -> None:
        """The attempt is over, however it ended."""
        delivery = self._under_way.pop(attempt, None)
        if delivery is None:
            return
        for key in delivery.held:
            self._holds.release(key)
        if delivery.claims:
            self.uploads.revoke(attempt)
            for path in delivery.claims:
                self._unpublished.pop((delivery.agent, path), None)

    def clear(self) -> None:
        for attempt in list(self._under_way):
            self.end(attempt)

    def is_under_way(self, attempt: AttemptId) -> bool:
        return attempt in self._under_way

    def built(self, agent: AgentId, built: Built) -> None:
        """The agent says what it built; it will be granted uploads."""
        delivery = self._under_way.get(built.attempt)
        if delivery is None:
            self._adopted.put_nowait((agent, built))
            return
        event = _event(agent, built)
        if delivery.agent != agent:
            self._loop.tell(event)  # the scheduler tells the agent to let go of it
            return
        wrong = _mismatch(delivery, built.outputs)
        if wrong:
            message = f"the agent's claims do not fit the derivation: {wrong}"
            self._loop.tell(
                AttemptFailed(agent, built.attempt, Outcome.AGENT_FAILED, message, built.usage)
            )
            return
        delivery.claims = {output.path: output for output in built.outputs}
        for output in built.outputs:
            self._unpublished[agent, output.path] = output.references
        self._loop.tell(event)
        if delivery.is_check:
            self._loop.tell(OutputsStored(built.attempt, ()))  # it found no difference
        else:
            self._wanted.put_nowait((built.attempt, delivery))

    def _is_live(self, agent: AgentId, id_: AttemptId) -> bool:
        attempt = self._loop.core.attempts.get(id_) if self._loop.core else None
        return attempt is not None and attempt.agent.spec.id == agent

    async def adopt(self) -> None:
        """Until cancelled: read back the steps of attempts that an earlier life of this process
        sent out or that were thought lost, in the order in which agents say that they are built."""
        while True:
            agent, built = await self._adopted.get()
            try:
                if not self._is_live(agent, built.attempt):
                    await self._loop.settle(_event(agent, built))  # which may revive it
                if built.attempt not in self._under_way and self._is_live(agent, built.attempt):
                    await self._adopt(agent, built.attempt)
            except OutsideError as error:
                message = f"its step could not be read back from the journal: {error}"
                self._loop.tell(AttemptFailed(agent, built.attempt, Outcome.UPLOAD_FAILED, message))
            if built.attempt in self._under_way:
                self.built(agent, built)

    async def _adopt(self, agent: AgentId, id_: AttemptId) -> None:
        assert self._loop.core is not None
        step = self._loop.core.attempts[id_].step.id
        record = (await self._journal.steps([checked(step)])).get(checked(step))
        assert record is not None, "an attempt's step is in the journal"
        if self._is_live(agent, id_):
            self._under_way.setdefault(id_, Delivery(agent, record, is_check(step)))

    async def run(self, send: SendGrants) -> None:
        """Answer with upload grants until cancelled, all that is waiting at a time."""
        while True:
            waiting = [await self._wanted.get()]
            while not self._wanted.empty():
                waiting.append(self._wanted.get_nowait())
            live = [each for each in waiting if self._under_way.get(each[0]) is each[1]]
            claimed = {path for _, delivery in live for path in delivery.claims}
            try:
                present = await self._journal.narinfos(await self._journal.valid_paths(claimed))
            except OutsideError as error:
                log.error("uploads cannot be granted, trying again: %s", error)
                await asyncio.sleep(GRANT_RETRY_S)
                for each in live:
                    self._wanted.put_nowait(each)
                continue
            answers = await asyncio.gather(*[self._answer(*each, present) for each in live])
            grants: dict[AgentId, list[UploadGrant]] = {}
            for (_, delivery), answer in zip(live, answers, strict=True):
                grants.setdefault(delivery.agent, []).extend(answer)
            for agent, wanted in grants.items():
                if wanted:
                    send(agent, wanted)

    async def _answer(
        self, attempt: AttemptId, delivery: Delivery, present: Mapping[StorePath, NarInfo]
    ) -> list[UploadGrant]:
        try:
            return await self._grant(attempt, delivery, present)
        except GrangeError as error:
            is_lie = isinstance(error, PeerError)
            outcome = Outcome.AGENT_FAILED if is_lie else Outcome.UPLOAD_FAILED
            self._loop.tell(AttemptFailed(delivery.agent, attempt, outcome, str(error)))
            return []

    async def _grant(
        self, attempt: AttemptId, delivery: Delivery, present: Mapping[StorePath, NarInfo]
    ) -> list[UploadGrant]:
        """`present`: what the cache has already, of its outputs and perhaps others.

        Where another was first, what is published stays, and counts as this attempt's output.
        """
        for path, output in delivery.claims.items():
            if path in present and path not in delivery.stored:
                delivery.stored[path] = PublishedOutput(
                    output.name, present[path], support_json(output.nix_support)
                )
        urls: dict[StorePath, str] = {}
        if len(delivery.stored) < len(delivery.claims):
            candidates = await self._candidates(delivery)
            fixed = _fixed_output(delivery.record, self._store_dir)
            for path, output in delivery.claims.items():
                if path not in delivery.stored:
                    url = self.uploads.grant(attempt, output, candidates, fixed)
                    urls[path] = self._cache_url + url
        self._tell_if_complete(attempt, delivery)
        compression, level = self._options.compression, self._options.level
        return [
            UploadGrant(
                attempt,
                path,
                urls.get(path, ""),
                compression,
                USUAL_LEVELS[compression] if level is None else level,
                path not in urls,
                path in urls and self._is_direct and output.nar_bytes >= DIRECT_NAR_BYTES,
            )
            for path, output in delivery.claims.items()
        ]

    async def _candidates(self, delivery: Delivery) -> Candidates:
        """What the outputs may refer to: their inputs' runtime closure, and each other.

        Inputs that are not published yet count with the references their own agent claimed: should
        those prove wrong, this attempt is lost together with them.
        """
        published: list[StorePath] = []
        local: dict[StorePath, None] = {}
        todo = list(delivery.record.inputs)
        while todo:
            path = todo.pop()
            references = self._unpublished.get((delivery.agent, path))
            if references is None:
                published.append(path)
            elif path not in local:
                local[path] = None
                todo += references
        closure = await self._closure(tuple(sorted(set(published))))
        return candidates_of([*closure, *local, *delivery.claims])

    async def _closure(self, roots: tuple[StorePath, ...]) -> tuple[StorePath, ...]:
        known = self._closures.get(roots)
        if known is not None:
            self._closures.move_to_end(roots)
            return known
        closure = tuple(await self._journal.runtime_closure(roots))
        if set(roots) <= set(closure):
            self._closures[roots] = closure
            if len(self._closures) > CLOSURES_MAX:
                self._closures.popitem(last=False)
        return closure

    def forget_closures(self) -> None:
        """Paths have been lost: what was read of their closures does not hold any more."""
        self._closures.clear()

    async def on_stored(self, items: Sequence[Stored]) -> None:
        """Verified NARs are in the object store: sign them, and tell when an attempt has all."""
        ends = await asyncio.gather(*map(self._take_in, items), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end

    async def _take_in(self, item: Stored) -> None:
        if item.attempt is None or item.output is None:
            await self._source(item)
            return
        delivery = self._under_way.get(item.attempt)
        if delivery is None:
            return  # it ended while the last bytes came in; the object is harmless
        narinfo = publish(item.verified, delivery.record.drv_path, self._keys, self._store_dir)
        await self._holds.hold(narinfo.url)
        if self._under_way.get(item.attempt) is not delivery:
            self._holds.release(narinfo.url)
            return
        delivery.held.append(narinfo.url)
        delivery.stored[item.output.path] = PublishedOutput(
            item.output.name, narinfo, support_json(item.output.nix_support)
        )
        self._tell_if_complete(item.attempt, delivery)

    async def _source(self, item: Stored) -> None:
        """A source's content address was checked: it is as good as published."""
        await self.add_path(publish(item.verified, None, self._keys, self._store_dir))

    async def add_path(self, narinfo: NarInfo) -> None:
        """Publish a path that no step made, and whose file lies among the objects.

        Raises OutsideError where that, or what it refers to, was collected meanwhile.
        """

        async def add() -> None:
            await self._journal.add_paths([narinfo], "source")

        await self._holds.hold(narinfo.url)
        try:
            await self.publish_path(narinfo.info.references, narinfo.info.path, add)
            await self._publisher.publish(narinfo)
        finally:
            self._holds.release(narinfo.url)
        self._on_published([narinfo])

    def _tell_if_complete(self, attempt: AttemptId, delivery: Delivery) -> None:
        if delivery.claims and len(delivery.stored) == len(delivery.claims):
            outputs = tuple([delivery.stored[path] for path in delivery.claims])
            self._loop.tell(OutputsStored(attempt, outputs))


def _event(agent: AgentId, built: Built) -> OutputsBuilt:
    size = sum(output.nar_bytes for output in built.outputs)
    return OutputsBuilt(agent, built.attempt, size, built.usage)


def _mismatch(delivery: Delivery, outputs: Sequence[BuiltOutput]) -> str:
    """How claimed outputs differ from those to be delivered; "" where they do not."""
    claimed = {output.name: output.path for output in outputs}
    expected = {} if delivery.is_check else dict(delivery.record.outputs)
    if len(claimed) != len(outputs):
        return "an output is named twice"
    for name, path in claimed.items():
        if expected.get(name) != path:
            return f"output {name} should be {expected.get(name, 'none')}, not {path}"
    missing = expected.keys() - claimed.keys()
    return f"no output {', '.join(sorted(missing))}" if missing else ""


def _fixed_output(record: StepRecord, store_dir: StoreDir) -> ContentAddress | None:
    """The hash its derivation declares for its only output, if it is a fixed one."""
    if [name for name, _ in record.outputs] != ["out"]:
        return None
    output = basic_from_bytes(record.basic, store_dir).outputs["out"]
    if not output.hash:
        return None
    algorithm = output.hash_algo.removeprefix("r:")
    method = Method.NAR if output.hash_algo.startswith("r:") else Method.FLAT
    return ContentAddress(method, Hash.parse(output.hash, algorithm))
