"""A farm that trusts its own machine, and an agent that knows no credentials, as the first
release's does."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import farm as farms
from tests.integration.farm import Farm, running_farm, until

pytestmark = pytest.mark.peer

# The agent's command, but that it shows nothing over gRPC and HTTP.
BARE_AGENT = f"""\
#!{sys.executable}
from grange.main import main
from grange.wire.credentials import AgentCredentials

AgentCredentials.metadata = ()
AgentCredentials.authorization = ""
main()
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What to run in the place of `grange` for such an agent."""
    script = tmp_path / "bare-grange"
    script.write_text(BARE_AGENT)
    script.chmod(0o755)
    return script


@pytest.fixture
def farm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Farm]:
    config = tmp_path / "farm.toml"
    trust = str(request.param).lower()
    config.write_text(f'[access]\nanonymous = "none"\ntrust_loopback = {trust}\n')
    with running_farm(tmp_path / "farm", "--config", config, agents=()) as farm:
        yield farm


@pytest.mark.parametrize("farm", [True], indirect=True)
def test_an_agent_without_credentials_joins_and_builds(
    farm: Farm, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(farms, "GRANGE", bare)
        agent = farm.start_agent("one")
    until(lambda: "one" in farm.agent_states(), "it should join", agent)
    drv = farm.drv(
        'step "above" { input = step "below" {} "echo deep > $out"; } "read x < $input; echo $x >'
        ' $out"'
    )
    farm.succeed(farm.submit(drv))  # it has fetched what it had to
    assert farm.get("/nix-cache-info").status_code == 200
    assert "took in agent" in farm.grange("audit").stdout
    assert farm.grange("agent", "one", "remove").returncode == 0
    assert agent.popen.wait(120) != 0
    assert "was removed from this farm" in agent.log


@pytest.mark.parametrize("farm", [False], indirect=True)
def test_an_agent_without_credentials_is_refused_and_told_what_to_do(
    farm: Farm, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(farms, "GRANGE", bare)
        agent = farm.start_agent("one")
    assert agent.popen.wait(120) != 0
    assert "set trust_loopback in [access] of the farm's file" in agent.log
    assert farm.agent_states() == {}
