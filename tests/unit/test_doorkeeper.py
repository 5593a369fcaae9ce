"""Who is let in, who is turned away, and in which words."""

import asyncio
import logging
from base64 import b64encode
from dataclasses import replace
from uuid import uuid4

import pytest

from grange.coordinator.doorkeeper import KNOWN_S, NEARBY, Doorkeeper, Shown, password_of
from grange.coordinator.throttle import FAILURES_MAX, FORGIVEN_S
from grange.coordinator.tokens import HookTokens, digest_of, new_password, new_token
from grange.db.accounts import SqlAccounts
from grange.db.connect import MEMORY
from grange.db.journal import SqliteJournal
from grange.errors import ForbiddenError, GrangeError, ThrottledError, UnauthenticatedError
from grange.identity import (
    ANONYMOUS,
    AgentAccount,
    Credential,
    CredentialKind,
    Identity,
    Role,
)
from grange.scheduler.facts import AgentId

HERE = "192.0.2.7"
ID = AgentId(str(uuid4()))
READER = replace(ANONYMOUS, roles=frozenset({Role.READ}))


class FakeClock:
    now = 1_000_000.0

    def monotonic_s(self) -> float:
        return self.now

    def wall_s(self) -> float:
        return self.now


class Place:
    """A door, the accounts behind it, and a clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.accounts: SqlAccounts = SqliteJournal.open(MEMORY).accounts
        self.hooks = HookTokens(b"k" * 32, self.clock)
        self.door = Doorkeeper(self.accounts, self.clock, self.hooks, READER)

    async def token(
        self,
        kind: CredentialKind = CredentialKind.TOKEN,
        role: Role = Role.SUBMIT,
        expires: float | None = None,
        uses_max: int | None = None,
    ) -> tuple[str, str]:
        """A token and its id."""
        id_, text, digest = new_token()
        await self.accounts.add_credential(
            Credential(
                id=id_,
                kind=kind,
                name="ci",
                digest=digest,
                roles=frozenset({role}),
                created=self.clock.now,
                created_by="test",
                projects=frozenset({"web"}),
                tags=("big",),
                expires=expires,
                uses_max=uses_max,
            )
        )
        return text, id_

    async def registration(self, uses_max: int | None = None) -> str:
        text, _ = await self.token(CredentialKind.REGISTRATION, Role.JOIN, uses_max=uses_max)
        return text

    async def agent(self, name: str = "one") -> str:
        """The password of the agent `ID`."""
        account = AgentAccount(ID, name, 1.0, "test")
        id_, text, digest = new_password()
        await self.accounts.save_agent(account)
        await self.accounts.add_credential(password_of(account, id_, digest, 1.0, "test"))
        return text

    async def who(self, authorization: str, address: str = HERE) -> Identity:
        return await self.door.identify(Shown(authorization), address)

    async def turned_away(self, authorization: str, words: str) -> None:
        with pytest.raises(UnauthenticatedError, match=words):
            await self.who(authorization)


@pytest.fixture
def place() -> Place:
    return Place()


def bearer(token: str) -> str:
    return f"Bearer {token}"


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


async def test_who_shows_nothing_is_anonymous(place: Place) -> None:
    assert await place.who("") == READER
    READER.demand(Role.READ)
    with pytest.raises(UnauthenticatedError, match="needs the right to submit, and no token"):
        READER.demand(Role.SUBMIT)


async def test_whose_basic_authorization_is_empty_shows_nothing(place: Place) -> None:
    """skopeo and podman do so where they have no password and are asked for one."""
    for _ in range(FAILURES_MAX + 1):
        assert await place.door.identify(Shown(basic("", "")), HERE) == READER
    trusting = Doorkeeper(place.accounts, place.clock, place.hooks, READER, trusts_nearby=True)
    assert await trusting.identify(Shown(basic("", ""), is_nearby=True), HERE) == NEARBY


async def test_a_token_is_taken_by_bearer_and_as_a_basic_password(place: Place) -> None:
    token, _ = await place.token()
    for shown in (bearer(token), f"bearer  {token} ", basic("", token), basic("anybody", token)):
        who = await place.who(shown)
        assert (who.name, who.roles) == ("token ci", frozenset({Role.SUBMIT}))
        assert who.projects == frozenset({"web"})


@pytest.mark.parametrize(
    "forged",
    [
        "Bearer ",
        "Bearer grange_",
        "Bearer grange_0123456789ab_" + "a" * 43,
        "Bearer grange_0123456789ab_" + "a" * 1_000_000,
        "Bearer grange_hook_",
        "Bearer grange_hook_e30=.AAAA",
        "Bearer grange_hook_\u00e9.\u00e9",
        "Basic",
        "Basic !!!",
        "Basic " + b64encode(b"no colon").decode(),
        "Basic " + b64encode(b"\xff\xfe:x").decode(),
        basic("root", "hunter2"),
        basic(ID, "x" * 43),
        "Digest username=admin",
        "\u00ff\u0000",
    ],
)
async def test_what_is_forged_is_refused_though_anyone_may_read(place: Place, forged: str) -> None:
    await place.turned_away(forged, "known|made by|takes|neither|garbled")


async def test_a_token_with_another_secret_or_case_is_refused(place: Place) -> None:
    token, _ = await place.token()
    other, _ = await place.token()
    for bad in (token[:-1], token + "a", token.upper(), token[:20] + other[20:], f"{token}\n\0"):
        await place.turned_away(bearer(bad), "not known here")


async def test_an_expired_token_and_a_revoked_one_are_refused(place: Place) -> None:
    token, id_ = await place.token(expires=place.clock.now + 2 * KNOWN_S)
    assert (await place.who(bearer(token))).name == "token ci"
    place.clock.now += 2 * KNOWN_S
    await place.turned_away(bearer(token), "the token 'ci' has expired")
    token, id_ = await place.token()
    assert (await place.who(bearer(token))).name == "token ci"
    await place.accounts.revoke_credential(id_, place.clock.now)
    place.door.forget()
    await place.turned_away(bearer(token), "the token 'ci' was revoked")


async def test_a_revocation_elsewhere_is_heeded_within_seconds(place: Place) -> None:
    token, id_ = await place.token()
    await place.who(bearer(token))
    await place.accounts.revoke_credential(id_, place.clock.now)
    place.clock.now += KNOWN_S
    await place.turned_away(bearer(token), "was revoked")


async def test_who_was_looked_up_across_a_revocation_is_not_remembered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, id_ = await place.token()
    look_up = SqlAccounts.credential
    looked, may_go_on = asyncio.Event(), asyncio.Event()

    async def slowly(accounts: SqlAccounts, wanted: str) -> Credential | None:
        found = await look_up(accounts, wanted)
        looked.set()
        await may_go_on.wait()
        return found

    monkeypatch.setattr(SqlAccounts, "credential", slowly)
    asking = asyncio.create_task(place.who(bearer(token)))
    await looked.wait()
    await place.accounts.revoke_credential(id_, place.clock.now)
    place.door.forget()
    may_go_on.set()
    await asking
    await place.turned_away(bearer(token), "was revoked")


async def test_one_address_that_fails_too_often_waits_and_the_known_go_on(place: Place) -> None:
    token, _ = await place.token()
    unseen, _ = await place.token()
    await place.who(bearer(token))
    for _ in range(FAILURES_MAX + 1):
        await place.turned_away("Bearer bad", "not known")
    with pytest.raises(ThrottledError, match="too many bad credentials"):
        await place.who("Bearer bad")
    assert (await place.who(bearer(token))).name == "token ci"
    with pytest.raises(ThrottledError):
        await place.who(bearer(unseen))
    assert (await place.who(bearer(unseen), "192.0.2.8")).name == "token ci"
    place.clock.now += 2 * FORGIVEN_S
    assert (await place.who(bearer(unseen))).name == "token ci"


async def test_all_addresses_of_one_ipv6_network_count_as_one(place: Place) -> None:
    for number in range(FAILURES_MAX + 1):
        with pytest.raises(UnauthenticatedError):
            await place.who("Bearer bad", f"2001:db8::{number:x}")
    with pytest.raises(ThrottledError):
        await place.who("Bearer bad", "2001:db8::ffff")
    with pytest.raises(UnauthenticatedError):
        await place.who("Bearer bad", "2001:db8:0:1::1")


async def test_no_secret_is_in_an_error_a_log_or_a_picture(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token, _ = await place.token(expires=place.clock.now)
    secret = token[-43:]
    shown = Shown(bearer(token), token)
    for asked in (shown, Shown(basic(ID, secret), token), Shown(f"Odd {secret}")):
        with pytest.raises(GrangeError) as caught:
            await place.door.identify(asked, HERE)
        assert secret not in str(caught.value) + repr(asked)
    assert secret not in caplog.text
    assert HERE in caplog.text


# --- Agents -----------------------------------------------------------------------------------


async def test_an_agent_shows_its_uuid_and_password(place: Place) -> None:
    password = await place.agent()
    who = await place.who(basic(ID.upper(), password))
    assert (who.agent, who.roles) == (ID, frozenset({Role.BUILD}))
    with pytest.raises(ForbiddenError):
        who.demand(Role.READ)
    await place.turned_away(basic(ID, password + "x"), "not the password")
    await place.turned_away(basic(str(uuid4()), password), "no agent .* is known here")


async def test_a_removed_agent_stays_out(place: Place) -> None:
    password = await place.agent()
    account = await place.accounts.agent(ID)
    assert account is not None
    await place.accounts.save_agent(replace(account, removed=5.0))
    await place.turned_away(basic(ID, password), "was removed")
    shown = Shown(basic(ID, password), await place.registration())
    with pytest.raises(UnauthenticatedError, match="was removed"):
        await place.door.identify(shown, HERE)


async def test_an_agent_registers_itself_once_and_then_is_known(place: Place) -> None:
    registration = await place.registration(uses_max=1)
    registered: list[AgentAccount] = []
    place.door.on_registered = registered.append
    password = "p" * 43
    shown = Shown(basic(ID, password), registration, "ci-3")
    for _ in range(2):
        assert (await place.door.identify(shown, HERE)).agent == ID
        place.clock.now += 2 * KNOWN_S
    assert (await place.who(basic(ID, password))).agent == ID
    [account] = registered
    assert (account.name, account.tags) == ("ci-3", ("big",))
    assert account.registered_by == "registration ci"
    [entry] = await place.accounts.audit(limit=9)
    assert (entry.who, entry.address) == ("registration ci", HERE)
    other = Shown(basic(str(uuid4()), password), registration)
    with pytest.raises(UnauthenticatedError, match="has registered all agents that it may"):
        await place.door.identify(other, HERE)


async def test_who_knows_the_registration_does_not_become_another_agent(place: Place) -> None:
    await place.agent()
    shown = Shown(basic(ID, "q" * 43), await place.registration())
    with pytest.raises(UnauthenticatedError, match="not the password"):
        await place.door.identify(shown, HERE)


@pytest.mark.parametrize(
    ("password", "name", "words"),
    [
        ("short", "one", "shorter than"),
        ("p" * 43, "one\nroot logged in", "printable"),
        ("p" * 43, "x" * 1000, "at most 200"),
    ],
)
async def test_a_poor_registration_is_refused(
    place: Place, password: str, name: str, words: str
) -> None:
    shown = Shown(basic(ID, password), await place.registration(), name)
    with pytest.raises(UnauthenticatedError, match=words):
        await place.door.identify(shown, HERE)
    assert await place.accounts.agents() == []


async def test_a_persons_token_registers_no_agent(place: Place) -> None:
    token, _ = await place.token(role=Role.ADMINISTER)
    with pytest.raises(UnauthenticatedError, match="registers no agents"):
        await place.door.identify(Shown(basic(ID, "p" * 43), token), HERE)


async def test_a_registration_by_itself_may_nothing_else(place: Place) -> None:
    who = await place.who(bearer(await place.registration()))
    assert [role for role in Role if who.may(role)] == [Role.JOIN]


@pytest.mark.parametrize("names", [frozenset({ID}), frozenset({"one", "farm.example"})])
async def test_a_certificate_registers_the_agent_that_it_names(
    place: Place, names: frozenset[str]
) -> None:
    shown = Shown(basic(ID, "p" * 43), name="one", certificate=names)
    assert (await place.door.identify(shown, HERE)).agent == ID
    anew = Shown(basic(ID, "q" * 43), name="one", certificate=names)
    assert (await place.door.identify(anew, HERE)).agent == ID, "it proves who it is"


async def test_with_certificates_a_password_is_not_enough(place: Place) -> None:
    password = await place.agent()
    for names in (frozenset({"two"}), frozenset[str]()):
        shown = Shown(basic(ID, password), name="one", certificate=names)
        with pytest.raises(UnauthenticatedError, match="and not agent"):
            await place.door.identify(shown, HERE)
    stranger = Shown(
        basic(str(uuid4()), "p" * 43),
        await place.registration(),
        "one",
        certificate=frozenset({"two"}),
    )
    with pytest.raises(UnauthenticatedError, match="and not agent"):
        await place.door.identify(stranger, HERE)


# --- Hooks ------------------------------------------------------------------------------------


async def test_a_hook_has_what_it_was_given_until_it_ends(place: Place) -> None:
    token = place.hooks.issue("deploy", {Role.SUBMIT}, ["web"], place.clock.now + 60)
    who = await place.who(bearer(token))
    assert who == Identity("hook deploy", frozenset({Role.SUBMIT}), frozenset({"web"}))
    who.demand_project("web")
    with pytest.raises(ForbiddenError, match="may submit to web, not to other"):
        who.demand_project("other")
    place.clock.now += 60
    await place.turned_away(bearer(token), "of hook 'deploy' has expired")


async def test_a_hooks_token_is_not_to_be_changed_nor_made_elsewhere(place: Place) -> None:
    token = place.hooks.issue("deploy", {Role.READ}, None, place.clock.now + 60)
    body, _, seal = token.removeprefix("grange_hook_").partition(".")
    longer = b64encode(b'{"name":"x","roles":["administer"],"projects":null,"expires":9e9}')
    elsewhere = HookTokens(b"x" * 32, place.clock)
    for forged in (
        f"grange_hook_{longer.decode()}.{seal}",
        f"grange_hook_{body}.",
        f"grange_hook_{body}.{seal[:-2]}",
        elsewhere.issue("deploy", {Role.READ}, None, place.clock.now + 60),
    ):
        await place.turned_away(bearer(forged), "not made by this farm")


@pytest.mark.parametrize("role", [Role.ADMINISTER, Role.BUILD, Role.JOIN])
def test_no_hook_administers_or_builds(place: Place, role: Role) -> None:
    with pytest.raises(AssertionError):
        place.hooks.issue("deploy", {role}, None, place.clock.now + 60)


# --- Last use ---------------------------------------------------------------------------------


async def test_last_use_is_written_by_and_by(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    token, id_ = await place.token()
    written = asyncio.Event()
    save = SqlAccounts.save_last_used

    async def saved(accounts: SqlAccounts, used: dict[str, float]) -> None:
        await save(accounts, used)
        written.set()

    monkeypatch.setattr(SqlAccounts, "save_last_used", saved)
    monkeypatch.setattr("grange.coordinator.doorkeeper.LAST_USED_S", 0)
    for _ in range(3):
        await place.who(bearer(token))
    saving = asyncio.create_task(place.door.save_last_used())
    await written.wait()
    saving.cancel()
    found = await place.accounts.credential(id_)
    assert found is not None
    assert found.last_used == place.clock.now


def test_what_a_password_record_holds_is_a_digest() -> None:
    account = AgentAccount(ID, "one", 1.0, "test")
    record = password_of(account, "id", digest_of("secret"), 1.0, "test")
    assert "secret" not in repr(record)
