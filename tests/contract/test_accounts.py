"""What every implementation of `grange.ports.Accounts` does."""

from dataclasses import replace
from typing import Any

import pytest

from grange.identity import AgentAccount, AuditEntry, Credential, CredentialKind, Role
from grange.ports import Accounts
from grange.scheduler.facts import AgentId
from tests.contract.journal_kinds import JournalKind

AGENT = AgentId("0a0a0a0a-0000-4000-8000-000000000001")
TOKEN = Credential(
    id="abc",
    kind=CredentialKind.TOKEN,
    name="ci",
    digest=b"\0\1" * 16,
    roles=frozenset({Role.SUBMIT, Role.READ}),
    created=1.5,
    created_by="token admin",
    projects=frozenset({"web", "ärger"}),
    expires=99.0,
)
PASSWORD = Credential(
    id="pw1",
    kind=CredentialKind.PASSWORD,
    name="agent one",
    digest=b"x" * 32,
    roles=frozenset({Role.BUILD}),
    created=2.0,
    created_by="token admin",
    agent=AGENT,
)
REGISTRATION = Credential(
    id="reg",
    kind=CredentialKind.REGISTRATION,
    name="elastic",
    digest=b"r" * 32,
    roles=frozenset({Role.JOIN}),
    created=3.0,
    created_by="token admin",
    tags=("big", "cloud"),
    uses_max=1,
)
ACCOUNT = AgentAccount(AGENT, "one", 2.0, "token admin", ("kvm", "big"))


@pytest.fixture
def accounts(kind: JournalKind) -> Accounts:
    return kind.accounts


async def test_a_credential_is_remembered_whole(kind: JournalKind, accounts: Accounts) -> None:
    for each in (TOKEN, PASSWORD, REGISTRATION):
        await accounts.add_credential(each)
    await accounts.add_credential(replace(TOKEN, name="another of the same id"))
    await kind.reopen()
    assert await kind.accounts.credentials() == [TOKEN, PASSWORD, REGISTRATION]
    assert await kind.accounts.credential("abc") == TOKEN
    assert await kind.accounts.credential("abd") is None


async def test_a_credential_is_revoked_once(accounts: Accounts) -> None:
    await accounts.add_credential(TOKEN)
    await accounts.add_credential(REGISTRATION)
    assert TOKEN.is_good(98.9)
    assert not TOKEN.is_good(99.0)
    await accounts.revoke_credential("abc", 10.0)
    await accounts.revoke_credential("abc", 20.0)
    await accounts.revoke_credential("no such", 20.0)
    assert await accounts.credentials() == [replace(TOKEN, revoked=10.0), REGISTRATION]
    assert not replace(TOKEN, revoked=10.0).is_good(0)


async def test_last_use_is_written_for_several_at_once(accounts: Accounts) -> None:
    for each in (TOKEN, PASSWORD, REGISTRATION):
        await accounts.add_credential(each)
    await accounts.save_last_used({"abc": 60.0, "reg": 61.0})
    await accounts.save_last_used({})
    assert [each.last_used for each in await accounts.credentials()] == [60.0, None, 61.0]


async def test_an_account_is_kept_changed_and_removed_with_its_passwords(
    accounts: Accounts,
) -> None:
    other = AgentAccount(AgentId("other"), "a-first", 4.0, "registration elastic")
    await accounts.save_agent(ACCOUNT)
    await accounts.save_agent(other)
    await accounts.add_credential(PASSWORD)
    await accounts.add_credential(replace(PASSWORD, id="pw2", agent=other.id, created=5.0))
    assert await accounts.agents() == [other, ACCOUNT]
    changed = replace(ACCOUNT, tags=(), name="won")
    await accounts.save_agent(changed)
    assert await accounts.agent(AGENT) == changed
    assert await accounts.passwords_of(AGENT) == [PASSWORD]
    removed = replace(changed, removed=50.0)
    await accounts.save_agent(removed)
    assert await accounts.agents() == [other]
    assert await accounts.agent(AGENT) == removed
    assert await accounts.passwords_of(AGENT) == []
    assert [each.revoked for each in await accounts.credentials()] == [50.0, None]


async def test_a_registration_is_used_as_often_as_it_may(accounts: Accounts) -> None:
    await accounts.add_credential(REGISTRATION)
    second = replace(ACCOUNT, id=AgentId("second"))
    assert await accounts.register(ACCOUNT, PASSWORD, "reg")
    assert not await accounts.register(second, replace(PASSWORD, id="pw2"), "reg")
    assert not await accounts.register(second, replace(PASSWORD, id="pw2"), "no such")
    assert await accounts.agents() == [ACCOUNT]
    assert await accounts.passwords_of(AGENT) == [PASSWORD]
    found = await accounts.credential("reg")
    assert found is not None
    assert found.uses == 1
    assert await accounts.register(second, replace(PASSWORD, id="pw2"), None)


async def test_a_revoked_registration_registers_nobody(accounts: Accounts) -> None:
    await accounts.add_credential(replace(REGISTRATION, uses_max=None))
    await accounts.revoke_credential("reg", 4.0)
    assert not await accounts.register(ACCOUNT, PASSWORD, "reg")
    assert await accounts.agent(AGENT) is None


async def test_the_audit_log_is_read_backwards_by_pages(accounts: Accounts) -> None:
    entries = [AuditEntry(float(n), f"token {n}", "192.0.2.1", f"did {n}") for n in range(5)]
    await accounts.add_audit(entries[:3])
    await accounts.add_audit(entries[3:])
    page = await accounts.audit(limit=2)
    assert [each.did for each in page] == ["did 4", "did 3"]
    rest = await accounts.audit(limit=10, before=page[-1].id)
    assert [replace(each, id=0) for each in rest] == entries[2::-1]


async def test_the_oldest_of_the_audit_log_go(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.db.accounts.AUDIT_MAX", 3)
    for n in range(5):
        await accounts.add_audit([AuditEntry(float(n), "ada", "", f"did {n}")])
    assert [each.did for each in await accounts.audit(limit=9)] == ["did 4", "did 3", "did 2"]


async def test_what_instances_leave_is_deleted_and_what_people_made_is_not(
    kind: JournalKind, accounts: Accounts
) -> None:
    def launched(number: int, **more: Any) -> AgentAccount:
        id_ = AgentId(f"0a0a0a0a-0000-4000-8000-00000000001{number}")
        return AgentAccount(id_, f"x86-{number}", 1.0, f"registration slot x86-{number} t", **more)

    old, lately, here = launched(1, removed=10.0), launched(2, removed=20.0), launched(3)
    by_people = replace(ACCOUNT, removed=10.0)
    for account in (old, lately, here, by_people):
        password = replace(PASSWORD, id=f"pw {account.id}", agent=account.id)
        await accounts.register(account, password, None)
    of_launch = replace(REGISTRATION, created_by="autoscaler", expires=10.0)
    later = replace(of_launch, id="later", expires=20.0)
    of_people = replace(REGISTRATION, id="people", expires=10.0)
    for each in (of_launch, later, of_people, TOKEN):
        await accounts.add_credential(each)
    await accounts.forget_launched("autoscaler", 15.0)
    await kind.reopen()
    left = {account.id: await kind.accounts.agent(account.id) for account in (old, lately, here)}
    assert left == {old.id: None, lately.id: lately, here.id: here}
    assert await kind.accounts.agent(by_people.id) == by_people
    names = [each.id for each in await kind.accounts.credentials()]
    passwords = [f"pw {each.id}" for each in (lately, here, by_people)]
    assert sorted(names) == sorted([*passwords, "later", "people", "abc"])
