"""The tokens that a farm makes for its own machine; damaged, they stop the start."""

import os
from pathlib import Path

import pytest

from grange.client.credentials import bearer, token_in
from grange.coordinator.accounts import AccountKeeper
from grange.coordinator.doorkeeper import Doorkeeper, Shown
from grange.coordinator.loop import WriterLoop
from grange.coordinator.own_tokens import ADMIN_FILE, AGENT_FILE, own_tokens
from grange.coordinator.tokens import HookTokens, new_token
from grange.db.connect import MEMORY
from grange.db.journal import SqliteJournal
from grange.errors import OperatorError, OutsideError, UnauthenticatedError
from grange.identity import ANONYMOUS, Role
from tests.unit.test_doorkeeper import FakeClock


class Farm:
    """What of a farm takes its own tokens in."""

    def __init__(self) -> None:
        self.journal = SqliteJournal.open(MEMORY)
        clock = FakeClock()
        self.door = Doorkeeper(
            self.journal.accounts, clock, HookTokens(b"k" * 32, clock), ANONYMOUS
        )
        loop = WriterLoop(self.journal, clock, lease_s=30)
        self.keeper = AccountKeeper(
            self.journal.accounts, self.door, loop, lambda _agent, _why: None
        )

    async def start(self, state: Path) -> None:
        await self.keeper.adopt(own_tokens(state, 1.0))

    async def roles(self, file: Path) -> frozenset[Role]:
        shown = Shown(bearer(token_in(file)))
        return (await self.door.identify(shown, "")).roles


async def test_the_first_start_makes_them_for_one_user_and_the_next_keeps_them(
    tmp_path: Path,
) -> None:
    farm = Farm()
    await farm.start(tmp_path)
    before = (tmp_path / ADMIN_FILE).read_text()
    await farm.start(tmp_path)
    assert (tmp_path / ADMIN_FILE).read_text() == before
    assert await farm.roles(tmp_path / ADMIN_FILE) == frozenset({Role.ADMINISTER})
    assert await farm.roles(tmp_path / AGENT_FILE) == frozenset({Role.JOIN})
    for name in (ADMIN_FILE, AGENT_FILE):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == [ADMIN_FILE, AGENT_FILE]
    assert len(await farm.journal.accounts.credentials()) == 2
    assert len(await farm.journal.accounts.audit(limit=9)) == 2


async def test_whoever_is_faster_than_the_first_start_is_told_to_ask_again(tmp_path: Path) -> None:
    farm = Farm()
    own = own_tokens(tmp_path, 1.0)
    hooks = HookTokens(b"k" * 32, FakeClock())
    ids = [each.id for each in own]
    farm.door = Doorkeeper(farm.journal.accounts, FakeClock(), hooks, ANONYMOUS, ids)
    with pytest.raises(OutsideError, match="ask again"):
        await farm.roles(tmp_path / AGENT_FILE)
    await farm.keeper.adopt(own)
    assert await farm.roles(tmp_path / AGENT_FILE) == frozenset({Role.JOIN})


async def test_a_new_journal_takes_in_the_tokens_that_are_there(tmp_path: Path) -> None:
    await Farm().start(tmp_path)
    other = Farm()
    await other.start(tmp_path)
    assert await other.roles(tmp_path / ADMIN_FILE) == frozenset({Role.ADMINISTER})


async def test_a_revoked_one_stays_revoked(tmp_path: Path) -> None:
    farm = Farm()
    await farm.start(tmp_path)
    admin = next(e for e in await farm.journal.accounts.credentials() if e.name == "admin")
    await farm.keeper.revoke(admin.id)
    await farm.start(tmp_path)
    with pytest.raises(UnauthenticatedError, match="was revoked"):
        await farm.roles(tmp_path / ADMIN_FILE)
    (tmp_path / ADMIN_FILE).unlink()
    await farm.start(tmp_path)
    assert await farm.roles(tmp_path / ADMIN_FILE) == frozenset({Role.ADMINISTER})


@pytest.mark.parametrize("text", ["", "grange_", "\xff\x00", "grange_0123456789ab_short"])
@pytest.mark.parametrize("name", [ADMIN_FILE, AGENT_FILE])
def test_a_damaged_file_stops_the_start(tmp_path: Path, name: str, text: str) -> None:
    own_tokens(tmp_path, 1.0)
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(OperatorError, match=f"{name} holds no token; remove it"):
        own_tokens(tmp_path, 1.0)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_stops_the_start(tmp_path: Path, mode: int) -> None:
    own_tokens(tmp_path, 1.0)
    (tmp_path / ADMIN_FILE).chmod(mode)
    with pytest.raises(OperatorError, match="can be read by others"):
        own_tokens(tmp_path, 1.0)


def test_a_directory_in_its_place_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / ADMIN_FILE).mkdir(mode=0o700)
    with pytest.raises(OperatorError, match="cannot be kept"):
        own_tokens(tmp_path, 1.0)


async def test_a_file_that_contradicts_the_journal_stops_the_start(tmp_path: Path) -> None:
    farm = Farm()
    await farm.start(tmp_path)
    file = tmp_path / ADMIN_FILE
    file.write_text(file.read_text()[:20] + new_token()[1][20:])
    with pytest.raises(OperatorError, match="holds another secret"):
        await farm.start(tmp_path)
    file.write_text((tmp_path / AGENT_FILE).read_text())  # an agent's token, to administer with
    with pytest.raises(OperatorError, match="holds another secret"):
        await farm.start(tmp_path)
