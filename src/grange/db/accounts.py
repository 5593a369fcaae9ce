"""Credentials, agents' accounts and the audit log, in SQL for every database."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from grange.db.rows import Row
from grange.db.script import Engine, Script, ask, change
from grange.identity import AgentAccount, AuditEntry, Credential, CredentialKind, Role
from grange.scheduler.facts import AgentId

AUDIT_MAX: Final = 1_000_000  # entries; some 200 MB. The oldest go


class SqlAccounts:
    """Implements `grange.ports.Accounts`, where each method's contract stands."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def credential(self, id_: str) -> Credential | None:
        rows = await self._engine.rows("credential", id_)
        return _read_credential(rows[0]) if rows else None

    async def credentials(self) -> list[Credential]:
        return [_read_credential(row) for row in await self._engine.rows("credentials")]

    async def passwords_of(self, agent: AgentId) -> list[Credential]:
        return [_read_credential(row) for row in await self._engine.rows("passwords_of", agent)]

    async def add_credential(self, new: Credential) -> None:
        await self._engine.write(lambda: change("add_credential", [_credential_row(new)]))

    async def revoke_credential(self, id_: str, now: float) -> None:
        await self._engine.write(lambda: change("revoke_credential", [(id_, now)]))

    async def save_last_used(self, used: Mapping[str, float]) -> None:
        await self._engine.write(lambda: change("save_last_used", [*used.items()]))

    async def agent(self, id_: AgentId) -> AgentAccount | None:
        rows = await self._engine.rows("agent_account", id_)
        return _read_account(rows[0]) if rows else None

    async def agents(self) -> list[AgentAccount]:
        return [_read_account(row) for row in await self._engine.rows("agent_accounts")]

    async def save_agent(self, account: AgentAccount) -> None:
        def save() -> Script[None]:
            yield from change("save_agent_account", [_account_row(account)])
            if account.removed is not None:
                yield from change("revoke_passwords", [(account.id, account.removed)])

        await self._engine.write(save)

    async def register(
        self, account: AgentAccount, password: Credential, registration: str | None
    ) -> bool:
        def save() -> Script[bool]:
            if registration is not None and not (yield from change("count_use", [(registration,)])):
                return False
            yield from change("save_agent_account", [_account_row(account)])
            yield from change("add_credential", [_credential_row(password)])
            return True

        return await self._engine.write(save)

    async def forget_launched(self, by: str, before: float) -> None:
        def drop() -> Script[None]:
            yield from ask("drop_launched_passwords", before)
            yield from ask("drop_launched_accounts", before)
            yield from ask("drop_launch_tokens", before, by)

        await self._engine.write(drop)

    async def audit(self, *, limit: int, before: int | None = None) -> list[AuditEntry]:
        last = before if before is not None else 1 << 62
        return [AuditEntry(*row) for row in await self._engine.rows("audit", last, limit)]

    async def add_audit(self, entries: Sequence[AuditEntry]) -> None:
        rows = [(each.time, each.who, each.address, each.did) for each in entries]

        def save() -> Script[None]:
            yield from change("add_audit", rows)
            yield from change("drop_old_audit", [(AUDIT_MAX,)])

        await self._engine.write(save)


def _list(words: Iterable[str]) -> str:
    return json.dumps([str(word) for word in words])


def _credential_row(one: Credential) -> Row:
    return (
        one.id,
        one.kind.value,
        one.name,
        one.digest,
        _list(sorted(one.roles)),
        None if one.projects is None else _list(sorted(one.projects)),
        _list(one.tags),
        one.agent,
        one.uses_max,
        one.uses,
        one.created,
        one.created_by,
        one.expires,
        one.last_used,
        one.revoked,
    )


def _read_credential(row: Row) -> Credential:
    id_, kind, name, digest, roles, projects, tags, agent, uses_max, uses, created, by = row[:12]
    return Credential(
        id=id_,
        kind=CredentialKind(kind),
        name=name,
        digest=digest,
        roles=frozenset(map(Role, json.loads(roles))),
        created=created,
        created_by=by,
        projects=None if projects is None else frozenset(json.loads(projects)),
        tags=tuple(json.loads(tags)),
        agent=agent,
        uses_max=uses_max,
        uses=uses,
        expires=row[12],
        last_used=row[13],
        revoked=row[14],
    )


def _account_row(one: AgentAccount) -> Row:
    return (
        str(one.id),
        one.name,
        one.created,
        one.registered_by,
        _list(one.tags),
        one.removed,
    )


def _read_account(row: Row) -> AgentAccount:
    id_, name, created, registered_by, tags, removed = row
    return AgentAccount(
        AgentId(id_), name, created, registered_by, tuple(json.loads(tags)), removed
    )
