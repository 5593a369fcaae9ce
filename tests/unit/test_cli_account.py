"""`grange agent tags` and how an agent's state is told."""

from collections.abc import Sequence
from typing import Self

import pytest
from click.testing import CliRunner

from grange.cli import account
from grange.client.account_models import AccountView


class FakeAccounts:
    """A farm with one agent."""

    def __init__(self, _url: str) -> None:
        self.agent = SHOWN

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def account(self, _agent: str) -> AccountView:
        return self.agent

    def set_tags(self, _agent: str, tags: Sequence[str]) -> AccountView:
        return self.agent.model_copy(update={"tags": list(tags)})

    def remove_agent(self, _agent: str) -> AccountView:
        return self.agent


SHOWN = AccountView(
    id="1", name="barn", created=0.0, registered_by="token admin", tags=["big"], is_paused=False,
    state="connected",
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["barn"], '"tags": ["big"]'),
        (["barn", "gpu", "lab"], '"tags": ["gpu", "lab"]'),
        (["barn", "--none"], '"tags": []'),
    ],
)
def test_tags_are_taken_away_only_where_that_is_said(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(account, "AccountClient", FakeAccounts)
    shown = CliRunner().invoke(account.tags, [*arguments, "--json"]).stdout
    assert said in " ".join(shown.split()).replace("[ ", "[").replace(" ]", "]")
    both = CliRunner().invoke(account.tags, ["barn", "gpu", "--none"])
    assert "tags or --none" in str(both.exception)


def test_removal_is_told_as_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "AccountClient", FakeAccounts)
    shown = CliRunner().invoke(account.remove, ["barn", "--json"]).stdout
    assert AccountView.model_validate_json(shown) == SHOWN


@pytest.mark.parametrize(
    ("state", "is_paused", "detail", "reason", "said"),
    [
        ("connected", False, "", "", "connected"),
        ("refusing", False, "its disk is full", "", "refusing: its disk is full"),
        ("paused", True, "more disks", "more disks", "paused: more disks"),
        ("paused", True, "it finishes what it has", "", "paused"),
        ("gone", True, "", "more disks", "gone, paused: more disks"),
    ],
)
def test_a_state_is_said_once(
    state: str, is_paused: bool, detail: str, reason: str, said: str
) -> None:
    update = {"state": state, "is_paused": is_paused, "detail": detail, "pause_reason": reason}
    assert account._state(SHOWN.model_copy(update=update)) == said
