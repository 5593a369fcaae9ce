"""The farm as its autoscaler sees it: work that waits, and agents that joined from slots.

An agent in a slot registers with a token that is good for one agent. The token is derived from
its launch, so that the same launch asked for again starts the same instance, and its record bears
the slot and the launch in its name: so does the account of whoever registered with it. The agent
has no say in this.
"""

import hmac
import logging
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from grange.capacity.effects import SetAgent
from grange.capacity.facts import (
    InstanceId,
    LaunchOrder,
    Market,
    Need,
    Pool,
    Presence,
    Slot,
    SlotId,
    SlotState,
)
from grange.coordinator.accounts import AccountKeeper
from grange.coordinator.loop import WriterLoop
from grange.coordinator.tokens import ID_BYTES, PREFIX, digest_of
from grange.errors import OutsideError
from grange.identity import AgentAccount, Credential, CredentialKind, Role
from grange.ports import Accounts
from grange.scheduler.core import Scheduler
from grange.scheduler.events import AgentRuled, AgentsJudged
from grange.scheduler.facts import AgentId, Offer, Phase, QueueKey
from grange.scheduler.matching import BUILTIN, misfit
from grange.scheduler.state import Agent

log = logging.getLogger(__name__)

DRAINED: Final = "drained by the autoscaler"  # the reason of its pauses, by which it knows them
GONE_S: Final = 120.0  # should memory be lost, who sits where is found out again within less
KEPT_S: Final = 7 * 86_400.0  # accounts of instances that are gone, for people who look
SWEEP_S: Final = 3600.0
BY: Final = "autoscaler"  # who makes launches' tokens
LATE_S: Final = 3600.0  # for how long beyond a launch's terms its token is good

_REGISTERED: Final = re.compile(r"registration slot (\S+) launch (\S+)\Z")
_VACANT: Final = (SlotState.EMPTY, SlotState.COOLING)


@dataclass(frozen=True, slots=True)
class _Launch:
    """What an agent was started by."""

    slot: SlotId
    token: str


def registered_by(account: AgentAccount) -> _Launch | None:
    """The launch that an agent came from; None for one that people set up."""
    match = _REGISTERED.match(account.registered_by)
    return None if match is None else _Launch(SlotId(match[1]), match[2])


def offers_of(pools: Sequence[Pool]) -> tuple[Offer, ...]:
    """The agents that pools could start."""
    return tuple(
        [
            Offer(
                pool.systems,
                tuple(sorted({*pool.features, *pool.mandatory_features})),
                pool.mandatory_features,
                pool.tags,
                is_lasting=Market.ON_DEMAND in (pool.market, pool.fallback),
            )
            for pool in pools
            if pool.max > 0
        ]
    )


class FarmWorkforce:
    """Implements `grange.ports.Workforce`. `seat` says who sits in a slot as far as is known, and
    is to be set before anything is asked."""

    def __init__(
        self, loop: WriterLoop, accounts: Accounts, keeper: AccountKeeper, key: bytes
    ) -> None:
        """`key` is secret: tokens are derived with it."""
        self._loop = loop
        self._accounts = accounts
        self._keeper = keeper
        self._key = key
        self._launches: dict[AgentId, tuple[str, _Launch | None]] = {}  # by agent: session, launch
        self._gone: dict[AgentId, float] = {}  # since when nobody sits where they came from
        self._offers: tuple[Offer, ...] = ()
        self._swept = 0.0  # when what is long gone was last deleted
        self.seat: Callable[[SlotId], Slot | None] = lambda _slot: None

    # --- Registration -------------------------------------------------------------------------

    async def registration(self, order: LaunchOrder) -> str:
        """The token that the agent of this launch registers with: each time the same, and good
        once. Raises as the journal does."""
        id_ = self._derive("id", order.token).hex()[: 2 * ID_BYTES]
        secret = urlsafe_b64encode(self._derive("secret", order.token)).decode().rstrip("=")
        terms, now = order.pool.timeouts, self._loop.now()
        await self._accounts.add_credential(
            Credential(
                id=id_,
                kind=CredentialKind.REGISTRATION,
                name=f"slot {order.slot} launch {order.token}",
                digest=digest_of(secret),
                roles=frozenset({Role.JOIN}),
                created=now,
                created_by=BY,
                tags=tuple(sorted(set(order.pool.tags))),
                expires=now + terms.launch_s + terms.boot_s + terms.bind_s + LATE_S,
                uses_max=1,
            )
        )
        return f"{PREFIX}{id_}_{secret}"

    def _derive(self, what: str, token: str) -> bytes:
        return hmac.digest(self._key, f"{what} of launch {token}".encode(), "sha256")

    # --- What the autoscaler asks -------------------------------------------------------------

    def offer(self, pools: Sequence[Pool]) -> None:
        """Agents of these pools may appear: what only they can build waits for them."""
        self._offers = offers_of(pools)
        self._loop.offer(self._offers)

    async def needs(self) -> tuple[Need, ...]:
        """Work that agents could begin now, and what they do. Raises OutsideError."""
        return tuple(
            [
                Need(
                    self._system(each.queue, is_lasting=each.is_lasting),
                    each.queue.features,
                    each.queue.tags,
                    each.waiting,
                    each.running,
                    each.project,
                    is_on_demand=each.is_lasting,
                )
                for each in self._core().demand()
            ]
        )

    def _system(self, queue: QueueKey, *, is_lasting: bool) -> str:
        """What is built in to Nix runs anywhere: on what a pool may start, if need be."""
        if queue.system != BUILTIN:
            return queue.system
        fit = [
            offer
            for offer in self._offers
            if offer.systems and not misfit(offer, queue) and offer.is_lasting >= is_lasting
        ]
        return fit[0].systems[0] if fit else BUILTIN

    async def presences(self) -> tuple[Presence, ...]:
        """Agents that joined from the instances that sit in slots now. Raises OutsideError."""
        core = self._core()
        found = []
        for agent in list(core.agents.values()):
            instance = await self._instance(agent)
            if instance is None or not agent.is_connected:
                continue
            slot, id_ = instance
            running = sum(each.phase < Phase.STORED for each in agent.attempts.values())
            is_kept_from = agent.is_draining or agent.pause is not None
            if not is_kept_from and not agent.takes_work(core.now):
                if not running:
                    continue  # it refuses work that it has room for: as good as not here
                running = max(running, agent.spec.max_jobs)
            found.append(Presence(slot, id_, running, is_kept_from))
        return tuple(found)

    async def judge(self) -> None:
        """Tell the scheduler which agents a cloud may take away: those in slots that are not on
        demand, and those of which nobody knows where they sit. Raises OutsideError."""
        core = self._core()
        judged = {agent.spec.id: await self._lasts(agent) for agent in list(core.agents.values())}
        if judged != core.judged and self._loop.core is core:
            lasting = tuple([id_ for id_, lasts in judged.items() if lasts])
            fleeting = tuple([id_ for id_, lasts in judged.items() if not lasts])
            await self._loop.settle(AgentsJudged(lasting, fleeting))

    async def _lasts(self, agent: Agent) -> bool:
        launch = await self._launch(agent)
        slot = None if launch is None else self.seat(launch.slot)
        if launch is None or slot is None:
            return launch is None  # people set it up, and no cloud has a say
        return slot.token == launch.token and slot.market is Market.ON_DEMAND

    async def set_agent(self, order: SetAgent) -> None:
        """Have it take no new work, or take it again. One that an operator has paused stays so.

        Raises OutsideError; harmless where no such agent is here.
        """
        core = self._core()
        for agent in list(core.agents.values()):
            if await self._instance(agent) != (order.slot, order.instance):
                continue
            is_ours = agent.pause == DRAINED
            if (order.is_draining and agent.pause is None) or (not order.is_draining and is_ours):
                rule = AgentRuled(agent.spec.id, None, order.is_draining, DRAINED)
                await self._loop.settle(rule)

    def _core(self) -> Scheduler:
        if self._loop.core is None:
            raise OutsideError("this coordinator does not lead, or reads its journal back")
        return self._loop.core

    async def _launch(self, agent: Agent) -> _Launch | None:
        """What it was started by; None where people did."""
        id_, session = agent.spec.id, agent.spec.session
        known = self._launches.get(id_)
        if known is None or known[0] != session:
            account = await self._accounts.agent(id_)
            launch = None if account is None else registered_by(account)
            known = self._launches[id_] = session, launch
        return known[1]

    async def _instance(self, agent: Agent) -> tuple[SlotId, InstanceId] | None:
        """Where it runs; None where it is in no slot, or an earlier tenant of one."""
        launch = await self._launch(agent)
        slot = None if launch is None else self.seat(launch.slot)
        if launch is None or slot is None or slot.instance is None or slot.token != launch.token:
            return None
        return launch.slot, slot.instance

    # --- Those that are gone ------------------------------------------------------------------

    async def forget_gone(self, gone_s: float = GONE_S) -> None:
        """Remove the accounts of agents whose instances have been gone for so long, and the tokens
        they came with. Raises OutsideError."""
        core, now = self._core(), self._loop.now()
        gone = {}
        for account in await self._accounts.agents():
            launch = registered_by(account)
            if launch is not None and account.id not in core.agents and not self._sits(launch):
                gone[account.id] = account
        self._gone = {each: self._gone.get(each, now) for each in gone}
        for id_ in self._launches.keys() - core.agents.keys():
            del self._launches[id_]
        for id_, since in list(self._gone.items()):
            if now - since < gone_s:
                continue
            await self._keeper.remove(gone[id_])
            # Removed as it is, it is never seen again: nothing of it is worth a row.
            await self._loop.settle(AgentRuled(id_, (), False))
            del self._gone[id_]
            log.info("agent %s is forgotten: its instance is gone", gone[id_].name)
        if now - self._swept >= SWEEP_S:
            self._swept = now
            await self._accounts.forget_launched(BY, now - KEPT_S)

    def _sits(self, launch: _Launch) -> bool:
        slot = self.seat(launch.slot)
        return slot is not None and slot.token == launch.token and slot.state not in _VACANT
