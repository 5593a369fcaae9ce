"""How an instance becomes a builder: its `setup`, run in a folder, with programs that tell."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from grange.autoscaler.wiring import Builder, user_data
from grange.capacity.facts import Pool, PoolName
from tests.integration.test_user_data import KEYS, written

PLAIN: Final = Pool(PoolName("x86"), ("x86_64-linux",), max=2)
KVM: Final = replace(PLAIN, features=("kvm",))
SSHD: Final = Builder("sshd", client_keys=KEYS, overlay_key="tskey-auth", port=2222)
AGENT: Final = Builder("agent", coordinator="farm.example:7381")
PROGRAMS: Final = (
    "systemctl", "modprobe", "iptables", "tailscale", "useradd", "install", "id", "nix-daemon",
    "grange", "apt-get",
)  # fmt: skip


class Machine:
    """A folder that is all of a machine that `setup` may touch."""

    def __init__(self, root: Path, pool: Pool, builder: Builder) -> None:
        self.root, self.bin = root, root / "bin"
        Path("/run/sshd").mkdir(exist_ok=True)  # that sshd itself insists on
        for path, content in written(user_data(pool, builder)).items():
            self._write(path, content.replace("@SLOT@", "x86-1").replace("@POOL@", "x86"))
        for folder in ("etc/ssh", "run", "dev", "bin"):
            (root / folder).mkdir(exist_ok=True, parents=True)
        for name in PROGRAMS:
            self.put(name, "exit 0")
        self.put("id", "exit 1")  # there is no such user yet
        key = f"{root}/etc/ssh/ssh_host_ed25519_key"
        keygen = shutil.which("ssh-keygen")
        self.put("ssh-keygen", f"{keygen} -q -t ed25519 -N '' -f {key}; touch {key}-cert.pub")
        for name in ("sh", "echo", "cat", "mkdir", "grep", "printf", "touch"):
            (self.bin / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        self._write("/usr/local/lib/grange/imds", "#!/bin/sh\necho i-0abc\n")

    def _write(self, path: str, content: str) -> None:
        place = self.root / path.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        for folder in ("/etc/", "/run/", "/dev/", "/usr/local/"):
            content = content.replace(folder, f"{self.root}{folder}")
        place.write_text(content)
        place.chmod(0o755)

    def put(self, name: str, body: str) -> None:
        """A program that tells of its call."""
        program = self.bin / name
        program.unlink(missing_ok=True)
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.root}/calls\n{body}\n')
        program.chmod(0o755)

    def set_up(self) -> int:
        setup = self.root / "usr/local/lib/grange/setup"
        environment = {"PATH": str(self.bin)}
        done = subprocess.run([setup], env=environment, capture_output=True, text=True, check=False)
        (self.root / "said").write_text(done.stdout + done.stderr)
        return done.returncode

    @property
    def calls(self) -> list[str]:
        calls = (self.root / "calls").read_text()
        return calls.replace(str(self.root), "").splitlines()

    @property
    def said(self) -> str:
        return (self.root / "said").read_text()

    def started(self) -> list[str]:
        prefix = "systemctl start grange-"
        return [
            call.removeprefix(prefix).removesuffix(".service")
            for call in self.calls
            if call.startswith(prefix)
        ]


def test_a_builder_is_made_and_opens_last(tmp_path: Path) -> None:
    machine = Machine(tmp_path, PLAIN, SSHD)
    assert machine.set_up() == 0, machine.said
    assert machine.started() == ["dead-man", "spot-watch", "sshd"]
    assert machine.calls[-1] == "systemctl start grange-sshd.service"
    assert (
        "tailscale up --auth-key=file:/etc/grange/overlay-key --hostname=grange-x86-1-i-0abc"
        " --timeout=120s" in machine.calls
    )
    assert "useradd --system --create-home --shell /bin/sh nix" in machine.calls
    hidden = "-d 169.254.169.254 -m owner ! --uid-owner 0 -j REJECT"
    assert f"iptables -C OUTPUT {hidden}" in machine.calls
    assert "!include" in (tmp_path / "etc/nix/nix.conf").read_text()
    config = (tmp_path / "etc/grange/sshd_config").read_text()
    assert f"HostCertificate {tmp_path}/etc/ssh/ssh_host_ed25519_key-cert.pub\n" in config
    assert not any("ssh.service" in call for call in machine.calls), "it has a port of its own"
    assert "slot x86-1 takes work" in machine.said


def test_an_agent_starts_instead(tmp_path: Path) -> None:
    machine = Machine(tmp_path, PLAIN, AGENT)
    assert machine.set_up() == 0, machine.said
    assert machine.started() == ["dead-man", "spot-watch", "agent"]
    assert not any(call.startswith(("tailscale", "useradd")) for call in machine.calls)


@pytest.mark.parametrize("builder", [SSHD, AGENT])
def test_without_kvm_a_pool_of_it_takes_no_work(tmp_path: Path, builder: Builder) -> None:
    machine = Machine(tmp_path, KVM, builder)
    (tmp_path / "dev/console").touch()
    assert machine.set_up() == 1
    assert machine.started() == ["dead-man"]
    assert machine.calls[-1] == "systemctl poweroff"
    said = "grange: there is no " + f"{tmp_path}/dev/kvm, which pool x86 promises; powering off\n"
    assert (tmp_path / "dev/console").read_text() == said


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("tailscale", "exit 1", "the overlay network does not let it in"),
        ("useradd", "exit 1", "no user nix"),
        ("systemctl", '[ "$1" != restart ]', "nix-daemon does not start"),
        ("systemctl", '[ "$2" != grange-sshd.service ]', "sshd does not start"),
        ("ssh-keygen", "exit 1", "sshd does not take its configuration"),
    ],
)
def test_what_fails_ends_it_before_it_takes_work(
    tmp_path: Path, name: str, body: str, said: str
) -> None:
    machine = Machine(tmp_path, PLAIN, SSHD)
    machine.put(name, body)
    assert machine.set_up() == 1
    assert f"grange: {said}; powering off" in machine.said
    assert machine.calls[-1] == "systemctl poweroff"
    assert "takes work" not in machine.said
