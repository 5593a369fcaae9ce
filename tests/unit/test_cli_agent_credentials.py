"""What an agent's options say of who it is, and the commands by which operators say it."""

from pathlib import Path

import pytest

from grange.cli import config
from grange.cli.account import AgentCommands
from grange.cli.agent import agent
from grange.cli.config import AgentOptions
from grange.errors import OperatorError
from tests.certificates import Authority

NEAR = ("http://127.0.0.1:7381", "https://[::1]:7391")
FAR = ("http://127.0.0.1:7381", "https://farm.example:7381")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config, "default_state_dir", lambda: tmp_path)
    return tmp_path


def test_an_agent_finds_the_token_of_a_farm_on_its_machine_and_for_no_other(state: Path) -> None:
    assert AgentOptions(NEAR).registration() == ""
    (state / "agent-token").write_text("grange_here\n")
    assert AgentOptions(NEAR).registration() == "grange_here"
    assert AgentOptions(FAR).registration() == ""
    (state / "other").write_text("grange_other\n")
    assert AgentOptions(FAR, token_file=state / "other").registration() == "grange_other"
    with pytest.raises(OperatorError, match="none cannot be read"):
        AgentOptions(NEAR, token_file=state / "none").registration()


@pytest.mark.parametrize("text", ["", "\n", "pass\x07word", "pässword"])
def test_a_broken_password_file_is_not_taken(state: Path, text: str) -> None:
    assert AgentOptions().password() == ""
    (state / "password").write_text("secret\n")
    assert AgentOptions(password_file=state / "password").password() == "secret"
    (state / "password").write_text(text)
    with pytest.raises(OperatorError, match="holds no password"):
        AgentOptions(password_file=state / "password").password()
    with pytest.raises(OperatorError, match="cannot be read"):
        AgentOptions(password_file=state / "none").password()


def test_certificates_are_read_from_files(state: Path) -> None:
    assert AgentOptions().pems() == (None, None, None)
    ca = Authority(state).file
    assert AgentOptions(ca=ca).pems() == (ca.read_bytes(), None, None)
    with pytest.raises(OperatorError, match="cannot be read"):
        AgentOptions(certificate=ca, key=state / "none").pems()


@pytest.mark.parametrize(
    ("said", "meant", "rest"),
    [
        (["ci-3", "password", "new"], "password", ["ci-3", "new"]),
        (["password", "ci-3", "new"], "password", ["ci-3", "new"]),
        (["ci-3", "pause", "--reason", "x"], "pause", ["ci-3", "--reason", "x"]),
        (["tags", "ci-3", "a", "b"], "tags", ["ci-3", "a", "b"]),
        (["list"], "list", []),
        (["run", "list"], "run", ["list"]),  # a command comes before an agent of its name
    ],
)
def test_the_agent_may_stand_before_the_command(
    said: list[str], meant: str, rest: list[str]
) -> None:
    assert isinstance(agent, AgentCommands)
    name, command, arguments = agent.resolve_command(agent.make_context("agent", ["list"]), said)
    assert (name, arguments) == (meant, rest)
    assert command is agent.commands[meant]
