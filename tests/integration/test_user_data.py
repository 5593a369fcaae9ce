"""What instances start with, read by a YAML parser, sh, sshd, systemd and Nix."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml  # type: ignore[import-untyped]
from click.testing import CliRunner

from grange.autoscaler.wiring import Builder, user_data
from grange.autoscaler.wiring.user_data import BYTES_MAX
from grange.capacity.facts import Pool, PoolName
from grange.cli.wiring import user_data_command
from grange.errors import OperatorError
from tests.peers import NixStore

POOL: Final = Pool(
    PoolName("x86"), ("x86_64-linux", "i686-linux"), ("kvm", "big-parallel"), capacity=4
)
KEYS: Final = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqk5uJsoLNLuLrlrlrlrlrlrlrlrlrlrlrlrlrlrlrl ci\n"
)
SSHD: Final = Builder(
    "sshd", client_keys=KEYS, overlay_key="tskey-auth", login_server="https://hs.example"
)
AGENT: Final = Builder("agent", coordinator="https://farm.example:7381", farm_ca="PEM\n")
SSHD_PROGRAM: Final = shutil.which("sshd") or "/usr/sbin/sshd"


def written(text: str) -> dict[str, str]:
    """By path: what cloud-init would write."""
    assert text.startswith("#cloud-config\n")
    said = yaml.safe_load(text)
    assert said["runcmd"] == [["/usr/local/lib/grange/setup"]]
    return {each["path"]: each["content"] for each in said["write_files"]}


def laid_out(builder: Builder, folder: Path) -> dict[str, Path]:
    """Files as they would be on an instance, by their names."""
    text = user_data(POOL, builder)
    assert len(text.encode()) < BYTES_MAX
    found = {}
    for path, content in written(text).items():
        found[Path(path).name] = folder / Path(path).name
        found[Path(path).name].write_text(content)
    return found


@pytest.fixture(params=["sshd", "agent"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    return laid_out(SSHD if request.param == "sshd" else AGENT, tmp_path)


def test_all_programs_are_what_a_shell_can_read(files: dict[str, Path]) -> None:
    programs = [each for each in files.values() if each.read_text().startswith("#!/bin/sh")]
    assert len(programs) >= 4
    for program in programs:
        subprocess.run(["sh", "-n", program], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", program], check=True)
    environment = subprocess.run(
        ["sh", "-euc", f". {files['instance']}; echo $GRANGE_POOL $GRANGE_NESTED $GRANGE_FARM_PORT"],  # noqa: E501
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert environment[:2] == ["@POOL@", "1"]
    assert environment[2:] == (["7381"] if "registration" in files else [])


def test_systemd_and_sshd_take_their_files(files: dict[str, Path], tmp_path: Path) -> None:
    if "sshd_config" in files:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "host"], check=True
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        told = subprocess.run(
            [SSHD_PROGRAM, "-T", "-f", files["sshd_config"], "-h", tmp_path / "host"],
            check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ).stdout  # fmt: skip
        for line in (
            "forcecommand /usr/local/lib/grange/session",
            "allowusers nix",
            "disableforwarding yes",
            "permittty no",
            "passwordauthentication no",
        ):
            assert line in told
    units = [path for name, path in files.items() if name.endswith(".service")]
    assert len(units) == 3
    for unit in units:
        text = (
            unit.read_text()
            .replace("/usr/local/lib/grange/", "/bin/true #")
            .replace("EnvironmentFile=", "EnvironmentFile=-")
        )
        unit.write_text(text.replace("/usr/sbin/sshd -D", "/bin/true"))
    if shutil.which("systemd-analyze"):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *units],
            capture_output=True,
            text=True,
            check=False,
        )
        ours = [line for line in done.stderr.splitlines() if "grange-" in line]
        assert ours == [], done.stderr


@pytest.mark.peer
def test_nix_takes_its_limits(nix_store: NixStore) -> None:
    conf = written(user_data(POOL, SSHD))["/etc/nix/grange.conf"]
    environment = nix_store.environment
    environment["NIX_CONFIG"] += conf
    command = ["nix", "show-config"] if nix_store.nix == "2.8" else ["nix", "config", "show"]
    shown = subprocess.run(
        nix_store.command(*command), env=environment, check=True, capture_output=True, text=True
    )
    assert "warning" not in shown.stderr
    for line in (
        "max-silent-time = 3600",
        "timeout = 21600",
        "max-jobs = 4",
        "system-features = big-parallel kvm",
    ):
        assert line in shown.stdout.splitlines()
    assert re.search(r"^trusted-users = (root nix|nix root)$", shown.stdout, re.MULTILINE)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(OperatorError, match="nobody could log in"):
        user_data(POOL, Builder("sshd", client_keys=" \n"))
    with pytest.raises(OperatorError, match="agents need the farm's address with a port"):
        user_data(POOL, Builder("agent", coordinator="farm.example"))
    with pytest.raises(OperatorError, match="and EC2 takes 16384; name a CA"):
        user_data(POOL, Builder("sshd", client_keys=KEYS * 200))
    with pytest.raises(OperatorError, match="cannot be GRANGE_LOGIN_SERVER"):
        user_data(POOL, Builder("sshd", client_keys=KEYS, login_server='https://x"$(reboot)'))


def test_the_command_prints_it(tmp_path: Path) -> None:
    path, keys = tmp_path / "autoscaler.toml", tmp_path / "keys"
    keys.write_text(KEYS)
    pools = "".join(
        f'[pools.{name}]\ncloud = "local"\nsystems = ["x86_64-linux"]\nlocal.command = ["true"]\n'
        for name in ("x86", "big")
    )
    path.write_text(f'[haproxy]\nsocket = "/run/x.sock"\nuser = "builder"\n{pools}')
    run = CliRunner()
    words = ["--config", str(path), "--client-keys", str(keys), "--timeout", "60"]
    with pytest.raises(OperatorError, match="--pool names no pool; there are x86, big"):
        run.invoke(user_data_command, words, catch_exceptions=False)
    told = run.invoke(user_data_command, [*words, "--pool", "big"], catch_exceptions=False)
    files = written(told.output)
    assert "timeout = 60\n" in files["/etc/nix/grange.conf"]
    assert "AllowUsers builder\n" in files["/etc/grange/sshd_config"]
    assert told.stderr == ""
    path.write_text(path.read_text() + '[overlay]\nkind = "tailscale"\n')
    told = run.invoke(user_data_command, [*words, "--pool", "big"], catch_exceptions=False)
    assert "no --tailscale-key" in told.stderr
    assert written(told.stdout) == files
    farm = tmp_path / "farm.toml"
    farm.write_text(
        f'[capacity]\ncoordinator = "farm.example:7381"\n{pools}'.replace(
            'local.command = ["true"]\n', ""
        )
    )
    told = run.invoke(
        user_data_command, ["--config", str(farm), "--pool", "x86"], catch_exceptions=False
    )
    assert (
        "--coordinator @COORDINATOR@"
        in written(told.output)["/etc/systemd/system/grange-agent.service"]
    )
