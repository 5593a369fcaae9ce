"""Without a farm, end to end: a client's stock Nix builds on slots that HAProxy leads it to by SSH.

The autoscaler, HAProxy, sshd, ssh and Nix are the real ones; instances are processes of this
machine, each with an address, a host certificate and a store of its own.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from grange.autoscaler.wiring import Builder
from grange.autoscaler.wiring.user_data import sshd_config
from grange.client.capacity import CapacityClient
from grange.client.capacity_models import ReserveRequest, SlotVerb, SlotVerbRequest, SlotView
from grange.errors import OutsideError
from tests.haproxy import program
from tests.integration.farm import GRANGE, Process, until
from tests.peers import APPLETS, NIX_CONFIG, NixStore
from tests.ports import free_port

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

SSHD: Final = shutil.which("sshd") or "/usr/sbin/sshd"
SLOTS: Final = ("x86-1", "x86-2")

FILE: Final = """
[capacity]
interval_s = 0.5
[haproxy]
socket = "{run}/haproxy"
master_socket = "{run}/master"
state_file = "{run}/state"
ssh_port = {ssh_port}
port_first = {port}
user = "root"
[daemon]
socket = "{run}/autoscaler"
state_dir = "state"
[local]
grace_s = 2.0
[pools.x86]
cloud = "local"
systems = ["x86_64-linux"]
max = 2
batch_s = 0.0
idle_s = 1.0
life_min_s = 0.0
local.command = ["sh", "{root}/instance"]
types.process.on_demand = 0.36
"""

# As `user-data` would have it, but for all that only one of a machine can have.
INSTANCE: Final = """\
set -eu
here=$PWD
mkdir store
ssh-keygen -q -t ed25519 -N '' -f host
ssh-keygen -q -s {root}/host-ca -I "$GRANGE_INSTANCE" -h -n grange-builder host.pub
cat >session <<END
export HOME=$here PATH='$PATH' NIX_CONFIG='{nix_config}'
exec nix-daemon --store $here/store --stdio
END
sed "s|/usr/local/lib/grange/session|/bin/sh $here/session|" {root}/sshd_config >sshd_config
cat >>sshd_config <<END
ListenAddress $GRANGE_ADDRESS
HostKey $here/host
HostCertificate $here/host-cert.pub
END
exec {sshd} -D -e -f $here/sshd_config
"""

WORK: Final = """
let
  work = name: derivation {{
    inherit name;
    system = "x86_64-linux";
    builder = "${{{busybox}}}/bin/sh";
    PATH = "${{{busybox}}}/bin";
    args = [ "-c" "echo $name > /gates/began-$name; until [ -e /gates/open ]; do sleep 0.2; done; echo built $name > $out" ];
  }};
in {{ a = work "a"; b = work "b"; }}
"""  # noqa: E501


class Place:
    """A machine that is everybody at once."""

    def __init__(self, root: Path) -> None:
        self.root, self.run = root, root / "run"
        self.gates = root / "gates"
        self.client_store = NixStore.make("2.8", root / "client")
        for folder in (self.run, self.gates):
            folder.mkdir()
        Path("/run/sshd").mkdir(exist_ok=True)
        self.port = free_port()
        self.file = root / "autoscaler.toml"
        text = FILE.format(root=root, run=self.run, port=self.port, ssh_port=free_port())
        self.file.write_text(text)
        self._keys()
        self._instance(text)
        self.started: list[Process] = []
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "NO_COLOR": "1"}

    def _keys(self) -> None:
        for name in ("host-ca", "client-ca", "key"):
            self._keygen("-t", "ed25519", "-N", "", "-f", self.root / name)
        self._keygen("-s", self.root / "client-ca", "-I", "ci", "-n", "root", self.root / "key.pub")

    def _keygen(self, *arguments: str | Path) -> None:
        subprocess.run(["ssh-keygen", "-q", *arguments], check=True)

    def _instance(self, text: str) -> None:
        port = tomllib.loads(text)["haproxy"]["ssh_port"]
        ca = (self.root / "client-ca.pub").read_text()
        config = sshd_config(Builder("sshd", user="root", port=port, client_ca=ca))
        for of_machine, of_test in (
            ("PermitRootLogin no", "PermitRootLogin prohibit-password"),
            ("/etc/grange/client-ca", f"{self.root}/client-ca.pub"),
            ("PidFile /run/grange-sshd.pid", "PidFile none"),
        ):
            assert of_machine in config
            config = config.replace(of_machine, of_test)
        (self.root / "sshd_config").write_text(config)
        nix_config = NIX_CONFIG + f"sandbox-paths = /gates={self.gates}\nmax-jobs = 1\n"
        said = INSTANCE.format(root=self.root, nix_config=nix_config, sshd=SSHD)
        (self.root / "instance").write_text(said)

    def grange(self, *arguments: str | Path) -> str:
        return subprocess.run(
            [GRANGE, *arguments], env=self.environment, check=True, capture_output=True, text=True
        ).stdout

    def autoscaler(self, name: str) -> Process:
        arguments: list[str | Path] = ["autoscaler", "--config", self.file]
        self.started.append(Process(name, arguments, self.root, self.environment))
        return self.started[-1]

    @contextmanager
    def haproxy(self) -> Iterator["subprocess.Popen[bytes]"]:
        config = self.run / "haproxy.cfg"
        config.write_text(self.grange("capacity", "haproxy-config", "--config", self.file))
        config.write_text(config.read_text().replace("inter 1s fastinter", "inter 200ms fastinter"))
        command: list[str | Path] = [program(), "-W", "-S", self.run / "master", "-f", config]
        with (self.run / "haproxy.log").open("wb") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)

    def ask_haproxy(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(self.run / "haproxy"))
            asking.sendall(command.encode() + b"\n")
            with asking.makefile("rb") as answer:
                return answer.read().decode()

    def reload(self, haproxy: "subprocess.Popen[bytes]") -> None:
        """As haproxy.service does, with what the configuration says of it."""
        before = self.pid_of_haproxy()
        (self.run / "state").write_text(self.ask_haproxy("show servers state"))
        haproxy.send_signal(signal.SIGUSR2)
        until(lambda: self.pid_of_haproxy() != before, "HAProxy should reload")

    def pid_of_haproxy(self) -> str:
        told = self.ask_haproxy("show info")
        return told.split("\nPid: ")[1].split()[0]

    def build(self) -> "subprocess.Popen[str]":
        """Of both, where there is no place on this machine."""
        told = self.grange(
            "capacity", "nix-machines", "--config", self.file, "--key-file", self.root / "key",
            "--ca-file", self.root / "host-ca.pub", "--known-hosts-file", self.root / "known",
            "--json",
        )  # fmt: skip
        files = json.loads(told)
        for name, key in (("known", "known_hosts"), ("ssh", "ssh_config"), ("m", "machines")):
            (self.root / name).write_text(files[key])
        busybox = self.root / "busybox"
        (busybox / "bin").mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "/bin/busybox", busybox / "bin/busybox")
        for applet in APPLETS:
            (busybox / "bin" / applet.decode()).symlink_to("busybox")
        (self.root / "work.nix").write_text(WORK.format(busybox=busybox))
        environment = self.client_store.environment | {"NIX_SSHOPTS": f"-F {self.root}/ssh"}
        environment["NIX_CONFIG"] += f"builders = @{self.root}/m\nmax-jobs = 0\n"
        command = self.client_store.command(
            "nix-build", "--no-out-link", str(self.root / "work.nix")
        )
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    program()
    place = Place(tmp_path)
    yield place
    for each in place.started:
        each.stop()
    for pid in tmp_path.glob("state/instances/*/pid"):  # where the test failed
        with suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_nix_builds_on_slots_that_come_and_go_behind_haproxy(place: Place) -> None:
    with place.haproxy() as haproxy, CapacityClient(f"unix:{place.run}/autoscaler") as client:
        _elastic_build(place, haproxy, client, place.autoscaler("autoscaler"))


def _elastic_build(
    place: Place,
    haproxy: "subprocess.Popen[bytes]",
    client: CapacityClient,
    autoscaler: Process,
) -> None:
    def slots() -> dict[str, SlotView]:
        return {each.id: each for each in client.slots()}

    def answers() -> bool:
        try:
            return not client.status().troubles
        except OutsideError:
            return False

    until(answers, "it should answer", autoscaler)
    reserved = [
        client.reserve(ReserveRequest(key=key, system="x86_64-linux", deadline_s=600.0))
        for key in ("a", "b")
    ]

    def are_ready() -> bool:
        return all(client.renew(each.id).state == "ready" for each in reserved)

    until(are_ready, "both should have a place", autoscaler)
    until(lambda: {each.server for each in slots().values()} == {"ready"}, "both should serve")
    assert all(each.address.startswith("127.83.") for each in slots().values())

    build = place.build()
    try:
        until(
            lambda: (
                all((place.gates / f"began-{name}").exists() for name in "ab")
                or build.poll() is not None
            ),
            "both should build",
            autoscaler,
        )
        assert build.poll() is None, build.communicate()[1]
        until(lambda: {each.sessions for each in slots().values()} == {1}, "a session for each")

        autoscaler.kill()
        again = place.autoscaler("again")
        until(answers, "it should answer again", again)
        until(
            lambda: {(each.server, each.sessions) for each in slots().values()} == {("ready", 1)},
            "both should serve again, and be as busy as before",
            again,
        )

        request = SlotVerbRequest(reason="a look at it")
        client.say_of_slot(SLOTS[0], SlotVerb.DRAIN, request)
        client.release(client.reservation(_holder(slots(), SLOTS[0])).id)
        until(lambda: slots()[SLOTS[0]].server == "drain", "it should take no more")
        place.reload(haproxy)
        client.reconcile_now()
        client.reconcile_now()
        client.reconcile_now()
        drained = slots()[SLOTS[0]]
        assert (drained.state, drained.sessions) == ("draining", 1), (
            "its build is in an old process"
        )

        (place.gates / "open").touch()
        out, said = build.communicate(timeout=200)
        assert build.returncode == 0, said
    finally:
        build.kill()
        build.communicate()
    for name, path in zip("ab", out.split(), strict=True):
        real = place.client_store.root / path.removeprefix("/")
        assert real.read_text() == f"built {name}\n"
    for each in reserved:
        client.release(each.id)
    until(lambda: all(each.state == "empty" for each in slots().values()), "all should end")
    assert "MAINT" in place.ask_haproxy("show stat -1 4 -1")
    assert client.orphans() == []


def _holder(slots: dict[str, SlotView], slot: str) -> str:
    (reservation,) = slots[slot].reservations
    return reservation
