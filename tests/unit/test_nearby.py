"""Programs of the coordinator's machine, trusted without a credential where an operator says so."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from grange.cli.config import Address, ServeConfig
from grange.cli.farm_file import FarmFile, read_farm_file
from grange.coordinator.doorkeeper import NEARBY, Doorkeeper, Shown
from grange.coordinator.nearby import is_nearby
from grange.errors import OperatorError, UnauthenticatedError
from grange.identity import AgentAccount, Role
from grange.scheduler.facts import AgentId, Limits
from tests.unit.test_doorkeeper import HERE, ID, READER, Place, basic

LOCAL = "127.0.0.1"
HOST = {"host": "127.0.0.1:7380"}


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        (LOCAL, {}),
        (LOCAL, HOST),
        ("::1", {"host": "[::1]:7380"}),
        (LOCAL, {"host": "localhost:7380", "origin": "http://localhost:7380"}),
    ],
)
def test_a_program_of_this_machine_is_near(address: str, headers: Mapping[str, str]) -> None:
    assert is_nearby(address, headers)


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("", HOST),
        ("192.0.2.1", HOST),
        ("localhost", HOST),  # a name is no address of a socket
        (LOCAL, HOST | {"x-forwarded-for": "192.0.2.1"}),
        (LOCAL, HOST | {"forwarded": "for=127.0.0.1"}),
        (LOCAL, HOST | {"via": "1.1 proxy"}),
        (LOCAL, {"host": "farm.example"}),  # a name that a page has pointed here
        (LOCAL, {"host": "127.0.0.1.evil.example:7380"}),
        (LOCAL, {"host": "[junk"}),
        (LOCAL, HOST | {"origin": "https://evil.example"}),
        (LOCAL, HOST | {"origin": "null"}),
    ],
)
def test_what_a_proxy_or_a_browser_sends_on_is_not(
    address: str, headers: Mapping[str, str]
) -> None:
    assert not is_nearby(address, headers)


def door_of(place: Place) -> Doorkeeper:
    return Doorkeeper(place.accounts, place.clock, place.hooks, READER, trusts_nearby=True)


async def test_nobody_is_trusted_for_being_near_unless_told() -> None:
    assert await Place().door.identify(Shown(is_nearby=True), LOCAL) == READER
    shown = Shown(is_nearby=True, agent=ID)
    assert await Place().door.identify(shown, LOCAL) == READER


async def test_who_is_near_operates_and_does_not_administer() -> None:
    door = door_of(Place())
    who = await door.identify(Shown(is_nearby=True), LOCAL)
    assert who == NEARBY
    assert not who.may(Role.ADMINISTER)
    assert not who.may(Role.IMPORT)
    for shown in (Shown(), Shown(is_nearby=True, certificate=frozenset({"x"}))):
        assert await door.identify(shown, HERE) == READER
    with pytest.raises(UnauthenticatedError):
        await door.identify(Shown("Bearer bad", is_nearby=True), LOCAL)


async def test_an_agent_nearby_is_taken_in_until_it_is_removed() -> None:
    place = Place()
    door = door_of(place)
    shown = Shown(is_nearby=True, agent=ID, name="old one")
    for _ in range(2):
        who = await door.identify(shown, LOCAL)
        assert (who.agent, who.roles) == (ID, frozenset({Role.BUILD}))
    [account] = await place.accounts.agents()
    assert (account.name, account.registered_by) == ("old one", NEARBY.name)
    assert len(await place.accounts.audit(limit=9)) == 1
    await place.accounts.save_agent(replace(account, removed=5.0))
    with pytest.raises(UnauthenticatedError, match="was removed"):
        await door.identify(shown, LOCAL)
    with pytest.raises(UnauthenticatedError, match="is a UUID"):
        await door.identify(replace(shown, agent="../x"), LOCAL)


async def test_nobody_nearby_becomes_an_agent_that_has_a_password() -> None:
    place = Place()
    password = await place.agent()
    door = door_of(place)
    with pytest.raises(UnauthenticatedError, match="has a password"):
        await door.identify(Shown(is_nearby=True, agent=ID), LOCAL)
    assert (await door.identify(Shown(basic(ID, password)), LOCAL)).agent == ID
    waiting = AgentAccount(AgentId(str(uuid4())), "two", 1.0, "token admin")  # has none yet
    await place.accounts.save_agent(waiting)
    with pytest.raises(UnauthenticatedError, match="has a password"):
        await door.identify(Shown(is_nearby=True, agent=waiting.id), LOCAL)


async def test_an_agent_that_learns_passwords_needs_its_own_from_then_on() -> None:
    place = Place()
    door = door_of(place)
    id_ = AgentId(str(uuid4()))
    await door.identify(Shown(is_nearby=True, agent=id_), LOCAL)
    with pytest.raises(UnauthenticatedError, match="have it register with a token"):
        await door.identify(Shown(basic(id_, "p" * 43), is_nearby=True), LOCAL)
    newer = Shown(basic(id_, "p" * 43), await place.registration())
    assert (await door.identify(newer, LOCAL)).agent == id_
    [record] = await place.accounts.passwords_of(id_)
    for _ in range(2):  # that it has had one counts
        with pytest.raises(UnauthenticatedError, match="has a password"):
            await door.identify(Shown(is_nearby=True, agent=id_), LOCAL)
        await place.accounts.revoke_credential(record.id, place.clock.now)


@pytest.mark.parametrize(
    "open_",
    [
        {"http": Address("0.0.0.0", 7380)},
        {"agents": Address("::", 7381)},
        {"public_url": "https://farm.example"},
    ],
)
def test_a_farm_that_others_reach_trusts_nobody_for_being_near(open_: dict[str, object]) -> None:
    farm = FarmFile(Limits(), trusts_loopback=True)
    ServeConfig(farm=farm).check()
    with pytest.raises(OperatorError, match="trust_loopback is for farms that only their own"):
        ServeConfig(farm=farm, **open_).check()  # type: ignore[arg-type]
    ServeConfig(farm=FarmFile(Limits()), **open_).check()  # type: ignore[arg-type]


def test_it_is_off_unless_the_farms_file_says_so(tmp_path: Path) -> None:
    file = tmp_path / "farm.toml"
    file.write_text("")
    assert not read_farm_file(file, Limits()).trusts_loopback
    file.write_text("[access]\ntrust_loopback = true\n")
    assert read_farm_file(file, Limits()).trusts_loopback
