"""A farm that shows nothing to strangers: agents, people and stock Nix show who they are."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from grange.errors import PeerError
from tests.integration.farm import Farm, running_farm, until

pytestmark = pytest.mark.peer


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    config = tmp_path / "farm.toml"
    config.write_text('[access]\nanonymous = "none"\n')
    with running_farm(tmp_path / "farm", "--config", config, agents=()) as farm:
        yield farm


def grange(farm: Farm, *arguments: str) -> str:
    done = farm.grange(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def nix_copy(farm: Farm, path: str, to: Path, netrc: Path) -> subprocess.CompletedProcess[str]:
    [key] = farm.client.status().public_keys
    command = ["nix", "copy", "--from", farm.url, "--to", str(to), path]
    command += ["--option", "trusted-public-keys", key, "--option", "netrc-file", str(netrc)]
    environment = farm.environment | {"XDG_CACHE_HOME": str(to.parent / f"{to.name}-cache")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_agent_fetches_and_stock_nix_too_with_what_each_shows(
    farm: Farm, tmp_path: Path
) -> None:
    one = farm.start_agent("one")
    until(lambda: "one" in farm.agent_states(), "the agent should join", one)
    below = farm.step("below", "echo deep > $out")
    farm.succeed(farm.submit(below))
    drv = farm.drv(
        'step "above" { input = step "below" {} "\\necho deep > $out\\n"; } "read x < $input; '
        'echo $x > $out"'
    )
    build = farm.succeed(farm.submit(drv))
    output = build.outputs["out"]
    answer = farm.get("/nix-cache-info")
    assert (answer.status_code, "www-authenticate" in answer.headers) == (401, True)
    assert httpx.get(f"{farm.url}/healthz", trust_env=False).text == "ok\n"
    token = grange(farm, "token", "new", "laptop", "--role", "read")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login any password {token}\n")
    copied = nix_copy(farm, output, tmp_path / "third", netrc)
    assert copied.returncode == 0, copied.stderr
    assert (tmp_path / "third" / output.lstrip("/")).read_text() == "deep\n"
    [id_] = [t["id"] for t in json.loads(grange(farm, "token", "list", "--json"))
             if t["name"] == "laptop"]  # fmt: skip
    grange(farm, "token", "revoke", id_)
    refused = nix_copy(farm, output, tmp_path / "fourth", netrc)
    assert refused.returncode != 0
    assert farm.coordinator is not None
    assert token[-43:] not in farm.coordinator.log


def test_an_agent_that_is_removed_ends_and_others_build_what_it_had(farm: Farm) -> None:
    one = farm.start_agent("one")
    until(lambda: "one" in farm.agent_states(), "the first agent should join", one)
    farm.gates["one"].shut("held")
    build = farm.submit(farm.step("held", "echo at the gate; read _ < /gates/held || true\n"
                                          "echo done > $out"))  # fmt: skip
    farm.at_gate(build, agent="one")
    two = farm.start_agent("two")
    until(lambda: "two" in farm.agent_states(), "the second agent should join", two)
    assert grange(farm, "agent", "one", "remove").startswith("removed agent ")
    assert one.popen.wait(120) != 0
    assert "was removed from this farm" in one.log
    ended = farm.succeed(build)
    assert farm.attempts(ended)[-1].agent_name == "two"
    assert "removed agent" in grange(farm, "audit")


def test_an_agent_with_an_account_needs_no_token_and_a_wrong_password_ends_it(
    farm: Farm, tmp_path: Path
) -> None:
    id_ = grange(farm, "agent", "new", "ci-3", "--tag", "big")
    password = tmp_path / "password"
    password.write_text(grange(farm, "agent", id_, "password", "new"))
    none = tmp_path / "no-token"
    none.write_text("grange_0123456789ab_" + "x" * 43)
    account = ["--uuid", id_, "--password-file", str(password), "--token-file", str(none)]
    agent = farm.start_agent("ci-3", *account)
    until(lambda: "ci-3" in farm.agent_states(), "it should join", agent)
    shown = json.loads(grange(farm, "agent", "show", "ci-3", "--json"))
    assert (shown["id"], shown["tags"]) == (id_, ["big"])
    agent.stop()
    password.write_text("y" * 43)
    agent = farm.start_agent("ci-3", *account)
    assert agent.popen.wait(120) != 0
    assert "this is not the password of agent" in agent.log
    assert "y" * 43 not in agent.log


def test_a_stranger_who_knows_no_good_token_is_told_so_and_ends(farm: Farm, tmp_path: Path) -> None:
    bad = tmp_path / "bad-token"
    bad.write_text("grange_0123456789ab_" + "x" * 43)
    agent = farm.start_agent("stranger", "--token-file", str(bad))
    assert agent.popen.wait(120) != 0
    assert "this token is not known here" in agent.log
    assert "x" * 43 not in agent.log


def test_a_token_of_one_project_submits_to_no_other(farm: Farm, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(grange(farm, "token", "new", "web", "--role", "submit", "--role", "read",
                            "--project", "web"))  # fmt: skip
    drv = farm.step("mine", "echo x > $out")
    farm.submit(drv)
    farm.client._token_file = token
    farm.client._authorization = None
    with pytest.raises(PeerError, match="token web may submit to web, not to"):
        farm.submit(drv)


def test_no_secret_is_in_a_process_list(farm: Farm) -> None:
    agent = farm.start_agent("one")
    until(lambda: "one" in farm.agent_states(), "it should join", agent)
    secrets = [farm.agent_token.read_text().strip(), farm.admin_token.read_text().strip()]
    secrets.append((farm.root / "agents/one/state/password").read_text().strip())
    seen = ""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            seen += process.read_text(errors="replace")
        except OSError:  # it has ended
            continue
    logs = agent.log + (farm.coordinator.log if farm.coordinator else "")
    assert "agent" in seen
    assert [secret for secret in secrets if secret[-43:] in seen + logs] == []
