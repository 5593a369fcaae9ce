"""Accounts: who may do what."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from grange.identity import AgentAccount, AuditEntry, Credential
from grange.scheduler.facts import (
    AgentId,
)


class Accounts(Protocol):
    """Credentials, agents' accounts and the audit log. Writes and errors are as the journal's."""

    async def credential(self, id_: str) -> Credential | None:
        """Revoked and expired ones, too."""

    async def credentials(self) -> list[Credential]:
        """All there ever were, oldest first."""

    async def passwords_of(self, agent: AgentId) -> list[Credential]:
        """Those that are not revoked, oldest first."""

    async def add_credential(self, new: Credential) -> None:
        """One whose id is there already stays as it is."""

    async def revoke_credential(self, id_: str, now: float) -> None:
        """One that was revoked before stays so as of then."""

    async def save_last_used(self, used: Mapping[str, float]) -> None: ...

    async def agent(self, id_: AgentId) -> AgentAccount | None:
        """Removed ones, too."""

    async def agents(self) -> list[AgentAccount]:
        """Those that were not removed, by name."""

    async def save_agent(self, account: AgentAccount) -> None:
        """Add it, or put it in place of what was there. Removal revokes its passwords."""

    async def register(
        self, account: AgentAccount, password: Credential, registration: str | None
    ) -> bool:
        """Add an account and its password; False where the credential `registration` is revoked or
        has been used as often as it may: then nothing was added."""

    async def forget_launched(self, by: str, before: float) -> None:
        """Delete what instances leave: accounts of agents that came from launches and were removed
        before this time, their passwords, and registrations that `by` made and that expired
        before."""

    async def audit(self, *, limit: int, before: int | None = None) -> list[AuditEntry]:
        """The newest entries first, of those whose ids are below `before`."""

    async def add_audit(self, entries: Sequence[AuditEntry]) -> None: ...
