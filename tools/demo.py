"""The demo: a farm with two agents on this machine, from the first build to a checked output.

Everything is kept in .demo/ of the checkout, so that a second run finds all in the farm's cache.
Leaves no process behind, unless --keep is given.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grange.client.api import GrangeClient
from grange.errors import GrangeError, OutsideError

ROOT: Final = Path(__file__).parent.parent.resolve()
DEMO: Final = ROOT / ".demo"
GRANGE: Final = ROOT / ".venv/bin/grange"
ADMIN_TOKEN: Final = DEMO / "farm/admin-token"  # made by the farm at its first start
EXAMPLES: Final = ROOT / "examples"
AGENTS: Final = ("agent-1", "agent-2")
START_S: Final = 60.0  # a busy machine takes its time to start an interpreter
DRAIN_S: Final = 5.0  # then what builds is aborted
ABORT_S: Final = 10.0  # then it is killed

# Nix without an installation of its own: as root it would want a group of build users.
NIX_CONFIG: Final = "experimental-features = nix-command\nsubstituters =\nbuild-users-group =\n"


@dataclass(frozen=True, slots=True)
class Service:
    """A process of the farm: its name in .demo/, and its process group's leader."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Ports:
    http: int
    agents: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the farm running")
    parser.add_argument("--clean", action="store_true", help="stop the farm and remove .demo")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stop_left_over()
    if options.clean:
        remove(DEMO)
        return 0
    os.environ |= {
        "NIX_CONFIG": NIX_CONFIG,
        "XDG_CACHE_HOME": str(DEMO / "nix-cache"),
        "GRANGE_TOKEN_FILE": str(ADMIN_TOKEN),
    }
    try:
        with ExitStack() as farm:
            ports = start_farm(farm)
            show(ports)
            if options.keep:
                farm.pop_all()  # so that nothing is stopped
            say_where_next(ports, is_kept=options.keep)
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running. What was built stays in .demo/.")
        return 130
    except GrangeError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 3
    return 0


# --- The farm ---------------------------------------------------------------------------------


def start_farm(farm: ExitStack) -> Ports:
    """Start coordinator and agents, to be stopped when `farm` closes, agents first."""
    ports = Ports(*free_ports(2))
    say("A farm: one coordinator and two agents, each with a private store in .demo/")
    serve = ["serve", "--listen", f"127.0.0.1:{ports.http}"]
    serve += ["--listen-agents", f"127.0.0.1:{ports.agents}", "--state-dir", f"{DEMO}/farm"]
    coordinator = start(farm, "coordinator", serve)
    with client_of(ports) as client:
        wait(coordinator, lambda: answers(client))
        agents = [start(farm, name, agent_command(name, ports)) for name in AGENTS]
        for agent in agents:
            wait(agent, lambda: client.status().agents_connected >= len(AGENTS))
    return ports


def agent_command(name: str, ports: Ports) -> list[str]:
    where = [
        "--token-file",
        f"{DEMO}/farm/agent-token",
        "--state-dir",
        f"{DEMO}/{name}/state",
        "--store",
        f"{DEMO}/{name}/store",
    ]
    coordinator = f"127.0.0.1:{ports.agents}"
    return ["agent", "run", "--coordinator", coordinator, "--name", name, "--max-jobs", "2", *where]


def client_of(ports: Ports) -> GrangeClient:
    return GrangeClient(ports.url, token_file=ADMIN_TOKEN)


def free_ports(number: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(client: GrangeClient) -> bool:
    try:
        client.status()
    except OutsideError:
        return False
    return True


def start(farm: ExitStack, name: str, arguments: Sequence[str]) -> Service:
    """Start `grange` with these arguments in a session of its own, out of reach of Ctrl-C."""
    for directory in (DEMO / "logs", DEMO / "run"):
        directory.mkdir(parents=True, exist_ok=True)
    with open(DEMO / f"logs/{name}.log", "w") as log:
        process = subprocess.Popen(
            [GRANGE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    service = Service(name, process.pid)
    farm.callback(stop, service)
    pid_file(name).write_text(f"{process.pid} {started(process.pid)}")
    return service


def wait(service: Service, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not is_ready():
        log = DEMO / f"logs/{service.name}.log"
        if started(service.pid) is None:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise OutsideError(f"{service.name} has ended; {log} ends with:\n{tail}")
        if time.monotonic() > deadline:
            raise OutsideError(f"{service.name} is not ready after {START_S:.0f} s; see {log}")
        time.sleep(0.05)


def pid_file(name: str) -> Path:
    return DEMO / f"run/{name}.pid"


def started(pid: int) -> str | None:
    """When a process was started, in clock ticks; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def stop(service: Service) -> None:
    """End a service: ask, insist, kill; whatever it started goes with it."""
    # Another Ctrl-C would leave half a farm behind.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for signal_, patience_s in ((signal.SIGTERM, DRAIN_S), (signal.SIGTERM, ABORT_S)):
        if started(service.pid) is not None:
            os.kill(service.pid, signal_)
            wait_for_end(service.pid, patience_s)
    try:
        os.killpg(service.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        os.waitpid(service.pid, 0)
    except ChildProcessError:
        pass  # left over from another run of this script
    pid_file(service.name).unlink(missing_ok=True)
    signal.signal(signal.SIGINT, interrupt)


def wait_for_end(pid: int, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while started(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.05)


def stop_left_over() -> None:
    """Stop what an earlier run was told to keep. A pid that is someone else's now is left alone."""
    for name in (*AGENTS, "coordinator"):
        try:
            pid, began = pid_file(name).read_text().split()
        except (OSError, ValueError):
            continue
        if started(int(pid)) == began:
            print(f"Stopping the {name} of an earlier demo.")
            stop(Service(name, int(pid)))


# --- What is shown ----------------------------------------------------------------------------


def show(ports: Ports) -> None:
    say("Building the examples: every path travels from here to an agent and back, signed")
    if run_grange(ports, "build", "-f", EXAMPLES, "--store", DEMO / "here"):
        raise OutsideError(f"the examples should build; see above and {DEMO}/logs")
    hello = output_of("hello", ports)
    fetch(ports, hello)
    say("The program, run from that third store")
    print(run_in_store(DEMO / "client", f"{hello}/bin/hello"), end="")
    say("What a failing build looks like")
    code = run_grange(ports, "build", "-f", EXAMPLES, "-A", "failing", "--store", DEMO / "here")
    if code != 1:
        raise OutsideError(f"that build should have failed with 1, not {code}; see {DEMO}/logs")


def output_of(attribute: str, ports: Ports) -> str:
    """The output of an example, as the farm knows it."""
    command = [str(GRANGE), "build", "--json", "--url", ports.url, "-A", attribute]
    command += ["-f", str(EXAMPLES), "--store", f"{DEMO}/here"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise OutsideError(f"{attribute} should have been built; see {DEMO}/logs")
    output = json.loads(done.stdout)["builds"][0]["outputs"]["out"]
    assert isinstance(output, str)
    return output


def fetch(ports: Ports, path: str) -> None:
    """Have the stock Nix client fetch `path`, first without and then with the farm's key."""
    with client_of(ports) as client:
        status = client.status()
    store = DEMO / "client"
    remove(store)
    say("Fetching with the stock Nix client into a third store, which checks the signature")
    if nix_copy(status.cache_url, store, path, keys="") == 0:
        raise OutsideError("Nix took a path without knowing the farm's key; it should refuse")
    print("  without the farm's key Nix refuses it, as it should")
    keys = " ".join(status.public_keys)
    if nix_copy(status.cache_url, store, path, keys=keys):
        raise OutsideError(f"Nix would not take {path} from {status.cache_url}; see above")
    count = sum(1 for each in (store / "nix/store").iterdir() if not each.name.startswith("."))
    print(f"  nix copy --from {status.cache_url} --to .demo/client {path}")
    print(f"  {count} paths fetched, every signature by {keys.partition(':')[0]}")


def nix_copy(url: str, store: Path, path: str, *, keys: str) -> int:
    command = ["nix", "copy", "--from", url, "--to", str(store), path]
    command += ["--option", "trusted-public-keys", keys, "--option", "require-sigs", "true"]
    errors = None if keys else subprocess.DEVNULL
    return subprocess.run(command, check=False, stderr=errors).returncode


def run_in_store(store: Path, program: str) -> str:
    """The output of a program whose whole runtime closure is in a chroot store."""
    as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    command = [*as_root, "chroot", str(store), program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise OutsideError(f"{program} ended with {done.returncode} in {store}; see above")
    return done.stdout


def run_grange(ports: Ports, *arguments: str | Path) -> int:
    command = [GRANGE, *arguments, "--url", ports.url]
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # it heard the same Ctrl-C, and has a last word
        raise


def say(text: str) -> None:
    style, plain = ("\x1b[1;34m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    if "NO_COLOR" in os.environ:
        style = plain = ""
    print(f"\n{style}== {text}{plain}", flush=True)


def say_where_next(ports: Ports, *, is_kept: bool) -> None:
    say("Where to look next")
    if is_kept:
        print(f"  The farm goes on: {ports.url}, and agents at 127.0.0.1:{ports.agents}")
        print(f"  export GRANGE_URL={ports.url} GRANGE_TOKEN_FILE={ADMIN_TOKEN}")
        print(f"  export PATH={GRANGE.parent}:$PATH")
        print("  grange status; grange agents; grange list; grange show BUILD; grange log BUILD")
        print('  grange build -f examples --argstr salt "$(date)"    all of it anew')
        print(f"  {ports.url}/api/docs    the HTTP API")
        print("  make clean-demo    stops and removes it")
    else:
        print("  make demo              again: everything is in the farm's cache")
        print("  make demo KEEP=1       leaves the farm running for you to play with")
        print("  make clean-demo        removes .demo/")
    print("  examples/default.nix   what was built; README.md   how to run a farm by hand")


def remove(directory: Path) -> None:
    """Remove a directory; those of a store are read-only, and are made writable first."""
    if not directory.exists():
        return
    for path, names, _ in os.walk(directory):
        for each in (path, *(f"{path}/{name}" for name in names)):
            if not os.path.islink(each):
                os.chmod(each, 0o700)
    shutil.rmtree(directory)


if __name__ == "__main__":
    sys.exit(main())
