"""Credentials and agents' accounts, made, changed and taken away by those who administer them."""

import logging
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from grange.coordinator.doorkeeper import Doorkeeper, password_of
from grange.coordinator.loop import WriterLoop
from grange.coordinator.tokens import new_password, new_token
from grange.errors import ConflictError, NotFoundError, OperatorError, PeerError
from grange.identity import (
    ALL_PROJECTS,
    PEOPLE,
    AgentAccount,
    AuditEntry,
    Credential,
    CredentialKind,
    Role,
)
from grange.ports import Accounts
from grange.scheduler.events import AgentRuled
from grange.scheduler.facts import AgentId

log = logging.getLogger(__name__)

PASSWORDS_MAX: Final = 10  # of one agent: an old one is revoked once the new one is in place


class AccountKeeper:
    def __init__(
        self,
        accounts: Accounts,
        door: Doorkeeper,
        loop: WriterLoop,
        hang_up: Callable[[AgentId, str], None],
    ) -> None:
        """`hang_up` ends an agent's connections; it hears why."""
        self._accounts = accounts
        self._door = door
        self._loop = loop
        self._hang_up = hang_up
        door.on_registered = self._registered

    # --- Tokens -------------------------------------------------------------------------------

    async def new_token(
        self,
        name: str,
        by: str,
        roles: frozenset[Role],
        *,
        projects: frozenset[str] | None = ALL_PROJECTS,
        expires: float | None = None,
    ) -> tuple[Credential, str]:
        """A token of a person or program. Raises PeerError for rights that none can have."""
        if not roles or not roles <= PEOPLE:
            known = ", ".join(sorted(PEOPLE))
            raise PeerError(f"a token has one or more of these roles: {known}")
        return await self._new(
            CredentialKind.TOKEN, name, by, roles, projects=projects, expires=expires
        )

    async def new_registration(
        self,
        name: str,
        by: str,
        *,
        tags: Sequence[str] = (),
        expires: float | None = None,
        uses_max: int | None = None,
    ) -> tuple[Credential, str]:
        """A token that agents register with, which then have `tags`."""
        return await self._new(
            CredentialKind.REGISTRATION,
            name,
            by,
            frozenset({Role.JOIN}),
            tags=tuple(sorted(set(tags))),
            expires=expires,
            uses_max=uses_max,
        )

    async def _new(
        self,
        kind: CredentialKind,
        name: str,
        by: str,
        roles: frozenset[Role],
        *,
        projects: frozenset[str] | None = ALL_PROJECTS,
        tags: tuple[str, ...] = (),
        expires: float | None = None,
        uses_max: int | None = None,
    ) -> tuple[Credential, str]:
        now = self._loop.now()
        if expires is not None and expires <= now:
            raise PeerError("a token cannot expire before it is made")
        id_, text, digest = new_token()
        new = Credential(
            id=id_,
            kind=kind,
            name=name,
            digest=digest,
            roles=roles,
            created=now,
            created_by=by,
            projects=projects,
            tags=tags,
            expires=expires,
            uses_max=uses_max,
        )
        await self._accounts.add_credential(new)
        return new, text

    async def revoke(self, id_: str) -> Credential:
        """At once; an agent whose password it is is hung up on. Harmless if done before."""
        found = await self._accounts.credential(id_)
        if found is None:
            raise NotFoundError(f"there is no credential {id_}")
        await self._accounts.revoke_credential(id_, self._loop.now())
        self._door.forget()
        if found.agent is not None:
            self._hang_up(found.agent, "its password was revoked")
        again = await self._accounts.credential(id_)
        return found if again is None else again

    # --- Agents -------------------------------------------------------------------------------

    async def new_agent(self, name: str, by: str, tags: Sequence[str] = ()) -> AgentAccount:
        account = AgentAccount(
            AgentId(str(uuid.uuid4())), name, self._loop.now(), by, tuple(sorted(set(tags)))
        )
        await self._accounts.save_agent(account)
        await self._rule_new(account)
        return account

    async def find(self, id_or_name: str) -> AgentAccount:
        """The agent with this UUID, or the only one with this name."""
        with suppress(ValueError):
            found = await self._accounts.agent(AgentId(str(uuid.UUID(id_or_name))))
            if found is not None and found.removed is None:
                return found
        named = [each for each in await self._accounts.agents() if each.name == id_or_name]
        if len(named) > 1:
            ids = ", ".join(each.id for each in named)
            raise ConflictError(f"{len(named)} agents are called {id_or_name!r}: say which, {ids}")
        if not named:
            raise NotFoundError(f"there is no agent {id_or_name!r}")
        return named[0]

    async def new_password(self, account: AgentAccount, by: str) -> str:
        """Another password; earlier ones stay good until they are revoked."""
        if len(await self._accounts.passwords_of(account.id)) >= PASSWORDS_MAX:
            raise ConflictError(
                f"agent {account.name} has {PASSWORDS_MAX} passwords; revoke some first: "
                "grange token list, grange token revoke"
            )
        id_, text, digest = new_password()
        record = password_of(account, id_, digest, self._loop.now(), by)
        await self._accounts.add_credential(record)
        return text

    async def rule(
        self,
        account: AgentAccount,
        *,
        tags: Sequence[str] | None = None,
        is_paused: bool | None = None,
        reason: str = "",
    ) -> None:
        """Say what an operator says of it; None: that is as it was."""
        said = None if tags is None else tuple(sorted(set(tags)))
        await self._loop.settle(AgentRuled(account.id, said, is_paused, reason))

    async def remove(self, account: AgentAccount) -> None:
        """It is hung up on, and never let in again under this UUID."""
        await self._accounts.save_agent(replace(account, removed=self._loop.now()))
        self._door.forget()
        self._hang_up(account.id, "it was removed from the farm")

    def _registered(self, account: AgentAccount) -> None:
        if account.tags:
            self._loop.tell(AgentRuled(account.id, account.tags))

    async def _rule_new(self, account: AgentAccount) -> None:
        if account.tags:
            await self._loop.settle(AgentRuled(account.id, account.tags))

    # --- The farm's own tokens ----------------------------------------------------------------

    async def adopt(self, own: Sequence[Credential]) -> None:
        """Remember the tokens that are kept in the state directory, where they are new.

        Raises OperatorError where a record contradicts what its file says.
        """
        for each in own:
            found = await self._accounts.credential(each.id)
            if found is None:
                await self._accounts.add_credential(each)
                did = f"made the {each.kind.value} {each.name}, kept in the state directory"
                entry = AuditEntry(self._loop.now(), "grange", "", did)
                await self._accounts.add_audit([entry])
            elif (found.kind, found.digest) != (each.kind, each.digest):
                raise OperatorError(
                    f"the file of the farm's {each.name} holds another secret than the farm "
                    "remembers; remove the file to have a new one made"
                )
            elif not found.is_good(self._loop.now()):
                log.warning(
                    "the farm's own %s %r was revoked; remove its file in the state directory, and "
                    "the next start makes another",
                    each.kind.value,
                    each.name,
                )

    async def run(self) -> None:
        """Until cancelled: what a leader does for its accounts."""
        await self._door.save_last_used()
