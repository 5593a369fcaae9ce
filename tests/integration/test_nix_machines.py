"""What `grange capacity nix-machines` prints, as Nix, ssh and ssh-keygen read it."""

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from grange.autoscaler.wiring import NixClient, NixFiles, Wiring, haproxy_config, nix_machines
from grange.capacity.facts import Pool, PoolName
from grange.cli.wiring import haproxy_config_command
from grange.cli.wiring import nix_machines as nix_machines_command
from grange.cloud.haproxy import HaproxySettings
from grange.errors import OperatorError
from tests.peers import NixStore
from tests.ports import free_port

POOLS = (
    Pool(PoolName("x86"), ("x86_64-linux", "i686-linux"), ("big-parallel",), max=2, capacity=3),
    Pool(PoolName("kvm"), ("x86_64-linux",), ("kvm", "nixos-test"), ("kvm",), max=1),
)
FILE = """
[haproxy]
socket = "/run/haproxy/grange.sock"
[pools.x86]
cloud = "local"
systems = ["x86_64-linux"]
max = 2
local.command = ["sleep", "1"]
"""


@pytest.fixture
def files(tmp_path: Path) -> NixFiles:
    key = tmp_path / "ca"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    client = NixClient(
        str(tmp_path / "key"), str(tmp_path / "known"), key.with_suffix(".pub").read_text()
    )
    return nix_machines(Wiring(POOLS, port_first=free_port()), client)


def drv_of(feature: str, store: NixStore) -> str:
    features = f'requiredSystemFeatures = [ "{feature}" ];' if feature else ""
    expression = (
        f'derivation {{ name = "x"; system = "x86_64-linux"; builder = "/bin/sh"; {features} }}'
    )
    return store.run("nix-instantiate", "-E", expression).split("!")[0].strip()


@pytest.mark.peer
@pytest.mark.parametrize(
    ("feature", "tried"),
    [("kvm", {"kvm-1"}), ("big-parallel", {"x86-1", "x86-2"}), ("", {"x86-1", "x86-2"})],
)
def test_nix_offers_a_step_to_the_machines_of_its_features(
    nix_store: NixStore, files: NixFiles, tmp_path: Path, feature: str, tried: set[str]
) -> None:
    """Nobody listens there: so Nix tries all that suit, and says so."""
    (tmp_path / "ssh_config").write_text(files.ssh_config)
    environment = nix_store.environment
    environment["NIX_CONFIG"] += f"builders = {files.machines.replace(chr(10), ';')}\n"
    environment["NIX_SSHOPTS"] = f"-F {tmp_path / 'ssh_config'}"
    command = nix_store.command(
        "nix-build", "--max-jobs", "0", "--no-out-link", drv_of(feature, nix_store)
    )
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    said = done.stderr.decode()
    assert {
        name
        for name in ("x86-1", "x86-2", "kvm-1")
        if f"cannot build on 'ssh-ng://nix@{name}'" in said
    } == tried, said


def test_ssh_finds_the_port_of_each_slot_and_one_authority_for_all(
    files: NixFiles, tmp_path: Path
) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(files.ssh_config)
    ports = []
    for slot in ("x86-1", "x86-2", "kvm-1"):
        told = subprocess.run(
            ["ssh", "-G", "-F", config, slot], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        ports += [int(line.split()[1]) for line in told if line.startswith("port ")]
        assert {"hostname 127.0.0.1", "hostkeyalias grange-builder", "controlmaster false"} <= {
            *told
        }
    assert ports == [ports[0], ports[0] + 1, ports[0] + 1000]
    (tmp_path / "known").write_text(files.known_hosts)
    found = subprocess.run(
        ["ssh-keygen", "-F", "grange-builder", "-f", tmp_path / "known"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "CA ED25519" in found or "@cert-authority grange-builder ssh-ed25519" in found


def test_machines_and_haproxy_agree_on_ports() -> None:
    wiring = Wiring(POOLS)
    config = haproxy_config(wiring, HaproxySettings("/run/x.sock"))
    hosts = nix_machines(wiring, NixClient()).ssh_config.split("Host ")[1:]
    for host in hosts:
        name, port = host.split()[0], host.split("Port ")[1].split()[0]
        assert f"frontend {name}\n    bind 127.0.0.1:{port}\n" in config
    shared = nix_machines(wiring, NixClient(is_shared=True))
    assert (
        "ssh-ng://nix@x86 x86_64-linux,i686-linux /etc/nix/grange_ed25519 6 1 " in shared.machines
    )
    assert "Port 23000" in shared.ssh_config


def test_what_nix_would_misread_is_refused() -> None:
    with pytest.raises(OperatorError, match="'/etc/my key' is empty or has a blank"):
        nix_machines(Wiring(POOLS), NixClient(key_file="/etc/my key"))
    with pytest.raises(OperatorError, match="is no public key of a host CA"):
        nix_machines(Wiring(POOLS), NixClient(ca="-----BEGIN OPENSSH PRIVATE KEY-----"))
    many = Pool(PoolName("x86"), ("x86_64-linux",), max=1000)
    with pytest.raises(OperatorError, match="no ports for 1000 slots"):
        nix_machines(Wiring((many,)), NixClient())
    with pytest.raises(OperatorError, match="is one for 2 pools"):
        haproxy_config(Wiring(POOLS), HaproxySettings("/run/x.sock", backend="builders"))


def test_the_commands_print_them(tmp_path: Path) -> None:
    path = tmp_path / "autoscaler.toml"
    path.write_text(FILE)
    run = CliRunner()
    told = run.invoke(haproxy_config_command, ["--config", str(path)], catch_exceptions=False)
    assert "server x86-2 x86-2.invalid:1" in told.output
    told = run.invoke(nix_machines_command, ["--config", str(path)], catch_exceptions=False)
    assert "ssh-ng://nix@x86-2 x86_64-linux" in told.output
    assert "@cert-authority" in told.output
    told = run.invoke(nix_machines_command, ["--config", str(path), "--json", "--shared"])
    assert '"machines"' in told.output
    with pytest.raises(OperatorError, match=r"--ca-file .* cannot be read"):
        run.invoke(
            nix_machines_command,
            ["--config", str(path), "--ca-file", os.devnull + "x"],
            catch_exceptions=False,
        )
