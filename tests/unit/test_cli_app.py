"""The command line as such: how it starts, fails and hands over."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
import pytest
from click.testing import CliRunner, Result

from grange.cli.app import Adapters, make_cli
from grange.cli.config import Address, AgentOptions, ServeConfig, Upstream
from grange.client.sources import LocalStore
from grange.errors import GrangeError, OperatorError, OutsideError, PeerError
from grange.main import journal_tools
from grange.store.keys import SecretKey
from tests.certificates import Authority


def no_store(_: str | None) -> LocalStore:
    raise AssertionError("no store is needed")


class Started:
    """What was started with what."""

    def __init__(self) -> None:
        self.serve: list[ServeConfig] = []
        self.agents: list[AgentOptions] = []

    def run(self, *arguments: str) -> Result:
        adapters = Adapters(self.serve.append, self.agents.append, no_store, journal_tools)
        return CliRunner().invoke(make_cli(adapters), arguments)


def test_help_needs_neither_http_nor_tables() -> None:
    code = (
        "import sys; from grange.cli.app import make_cli\n"
        "try: make_cli(None)(['--help'])\n"
        "finally: print(*({'httpx', 'rich', 'pydantic', 'asyncio'} & {*sys.modules}), 'end')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Build derivations or Nix expressions" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["end"]


@pytest.mark.parametrize(
    "command",
    [
        "build",
        "list",
        "show",
        "log",
        "why",
        "cancel",
        "retry",
        "status",
        "agents",
        "serve",
        "agent",
        "token",
        "whoami",
        "audit",
        "store",
        "key",
        "registry",
        "image",
        "image build",
        "image explain",
        "image gc",
        "image inspect",
        "image layers",
        "image list",
    ],
)
def test_every_command_has_help(command: str) -> None:
    result = Started().run(*command.split(), "--help")
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output
    assert "(http" not in result.output  # defaults are shown as they are written


@pytest.mark.parametrize(
    ("error", "code"),
    [(PeerError("wrong"), 2), (OperatorError("wrong"), 3), (OutsideError("wrong"), 3)],
)
def test_an_error_is_one_line_and_an_exit_code(error: GrangeError, code: int) -> None:
    def fail(_: ServeConfig) -> NoReturn:
        raise error

    result = CliRunner().invoke(make_cli(Adapters(fail, fail, no_store, journal_tools)), ["serve"])  # type: ignore[arg-type]
    assert (result.exit_code, result.stderr) == (code, "grange: wrong\n")


def test_interrupting_has_an_exit_code_of_its_own() -> None:
    def interrupted(_: ServeConfig) -> NoReturn:
        raise KeyboardInterrupt

    adapters = Adapters(interrupted, interrupted, no_store, journal_tools)  # type: ignore[arg-type]
    assert CliRunner().invoke(make_cli(adapters), ["serve"]).exit_code == 130


def test_serve_hands_over_what_it_was_told(tmp_path: Path) -> None:
    started = Started()
    arguments = ["--listen", "[::1]:0", "--state-dir", str(tmp_path), "--store-dir", "/gnu/store/"]
    arguments += ["--substituter", "https://cache.example/", "a:AA,b:BB", "--log-bytes", "5"]
    result = started.run("serve", *arguments)
    assert result.exit_code == 0, result.output
    [config] = started.serve
    assert config.http == Address("::1", 0)
    assert config.agents == Address("127.0.0.1", 7381)
    assert config.state_dir == tmp_path
    assert config.store_dir.root == "/gnu/store"
    assert config.upstreams == (Upstream("https://cache.example", ("a:AA", "b:BB")),)
    assert config.farm.limits.log_bytes == 5


@pytest.mark.parametrize(
    ("arguments", "may_all_read"),
    [
        ([], True),
        (["--listen", "0.0.0.0:7380"], False),
        (["--listen", "farm.example:7380"], False),
        (["--public-url", "https://farm.example"], False),  # through a proxy on this machine
        (["--listen", "0.0.0.0:7380", "--public-url", "http://localhost:7380"], True),
        (["--listen-agents", "[::]:7381"], True),
    ],
)
def test_without_a_word_on_it_only_this_machine_reads_without_a_token(
    arguments: list[str], *, may_all_read: bool
) -> None:
    started = Started()
    assert started.run("serve", *arguments).exit_code == 0
    [config] = started.serve
    assert config.may_all_read is may_all_read


@pytest.mark.parametrize("address", ["7380", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(OperatorError, match="is not an address to listen on"):
        Address.parse(address)


def test_a_substituter_needs_a_key() -> None:
    result = Started().run("serve", "--substituter", "https://cache.example", " ")
    assert result.exit_code == 3
    assert "has no public key" in result.stderr


def test_agent_run_hands_over_what_it_was_told(tmp_path: Path) -> None:
    started = Started()
    arguments = ["--store", str(tmp_path), "--system", "x86_64-linux", "--max-jobs", "3"]
    result = started.run("agent", "run", *arguments, "--load-per-cpu", "2", "--no-sandbox")
    assert result.exit_code == 0, result.output
    [options] = started.agents
    assert options.coordinators == ("http://127.0.0.1:7381",)
    assert (options.store, options.systems, options.max_jobs) == (
        str(tmp_path), ("x86_64-linux",), 3
    )  # fmt: skip
    assert options.features is None
    assert options.thresholds.load1_per_cpu == 2
    assert not options.sandbox
    assert started.run("agent", "run", "--coordinator", "nowhere").exit_code == 3


def test_key_generate_makes_a_key_once(tmp_path: Path) -> None:
    file = tmp_path / "key"
    run: Callable[..., Result] = Started().run
    result = run("key", "generate", "farm.example-1", "--secret-file", str(file), "--json")
    assert result.exit_code == 0, result.output
    secret = SecretKey.parse(file.read_text())
    assert json.loads(result.stdout)["public_key"] == secret.public.show()
    assert file.stat().st_mode & 0o777 == 0o600
    again = run("key", "generate", "farm.example-1", "--secret-file", str(file))
    assert again.exit_code == 3
    assert "is not overwritten" in again.stderr
    assert SecretKey.parse(file.read_text()).public == secret.public


def test_the_command_line_is_a_click_group() -> None:
    cli = make_cli(Adapters(lambda _: None, lambda _: None, no_store, journal_tools))
    assert isinstance(cli, click.Group)
    assert Started().run("nonsense").exit_code == 2


def test_what_cannot_be_asked_is_the_callers_fault_and_no_traceback() -> None:
    done = Started().run("pause", "--reason", "x" * 100_000)
    assert done.exit_code == 2
    assert "reason cannot be 'xxx" in done.stderr
    assert "Traceback" not in done.output


def test_a_public_url_is_a_url() -> None:
    started = Started()
    done = started.run("serve", "--public-url", "farm.example:80")
    assert (done.exit_code, started.serve) == (3, [])
    assert "--public-url 'farm.example:80' is no URL" in done.stderr


def test_every_command_but_the_servers_speaks_json() -> None:
    def without(command: click.Command, path: str) -> list[str]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            inner = [(name, command.get_command(context, name)) for name in
                     command.list_commands(context)]  # fmt: skip
            return [each for name, one in inner if one for each in without(one, f"{path} {name}")]
        return [] if any("--json" in each.opts for each in command.params) else [path]

    silent = without(make_cli(Adapters(None, None, no_store, journal_tools)), "")  # type: ignore[arg-type]
    assert silent == [" serve", " agent run", " autoscaler", " cache", " registry"]


def test_an_agents_certificate_and_key_are_looked_at_before_they_are_used(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("one")
    _, other = authority.issue("two")
    AgentOptions(ca=authority.file, certificate=certificate, key=key).pems()
    (tmp_path / "junk").write_text("junk")
    wrong = [
        (AgentOptions(certificate=certificate), "go together"),
        (AgentOptions(certificate=certificate, key=other), "must be PEM, and the key that"),
        (AgentOptions(ca=tmp_path / "junk"), "must be PEM"),
        (AgentOptions(ca=tmp_path / "none"), "none cannot be read"),
    ]
    for options, said in wrong:
        with pytest.raises(OperatorError, match=said):
            options.pems()


def test_a_cache_with_files_that_are_no_certificate_does_not_start(tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_text("junk")
    files = ["--tls-cert", str(junk), "--tls-key", str(junk)]
    done = Started().run("cache", "--store", f"file://{tmp_path}", *files)
    assert done.exit_code == 3
    assert "--tls-cert and --tls-key do not fit together" in done.stderr


def test_a_store_that_is_spelt_wrongly_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    absent = f"file://{tmp_path}/absent"
    commands = (["cache", "--store", absent], ["store", "fill", absent, f"file://{tmp_path}/b"])
    for command in commands:
        done = Started().run(*command)
        assert done.exit_code == 3, done.output
        assert f"{tmp_path}/absent is no directory that is there" in done.stderr
    assert not (tmp_path / "absent").exists()
