"""The demo: a farm with two agents on this machine, from the first build to a checked output.

Everything is kept in .demo/ of the checkout, so that a second run finds all in the farm's cache.
Leaves no process behind, unless --keep is given.
"""

import argparse
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from demo_farm import (
    DEMO,
    EXAMPLES,
    GRANGE,
    SERVICES,
    Ports,
    agent_command,
    answers,
    free_ports,
    remove,
    run_in,
    say,
    serve_command,
    settle,
    start,
    stop_left_over,
    wait,
)

from grange.client.api import GrangeClient
from grange.errors import GrangeError, OutsideError

FARM: Final = DEMO / "farm"
ADMIN_TOKEN: Final = FARM / "admin-token"  # made by the farm at its first start
AGENTS: Final = ("agent-1", "agent-2")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the farm running")
    parser.add_argument("--clean", action="store_true", help="stop the farm and remove .demo")
    options = parser.parse_args()
    settle(ADMIN_TOKEN)
    stop_left_over(SERVICES if options.clean else (*AGENTS, "coordinator"))
    if options.clean:
        remove(DEMO)
        return 0
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
    coordinator = start(farm, "coordinator", serve_command(ports, FARM))
    with client_of(ports) as client:
        wait(coordinator, lambda: answers(client))
        agents = [
            start(farm, name, agent_command(name, ports, FARM, DEMO / name)) for name in AGENTS
        ]
        for agent in agents:
            wait(agent, lambda: client.status().agents_connected >= len(AGENTS))
    return ports


def client_of(ports: Ports) -> GrangeClient:
    return GrangeClient(ports.url, token_file=ADMIN_TOKEN)


# --- What is shown ----------------------------------------------------------------------------


def show(ports: Ports) -> None:
    say("Building the examples: every path travels from here to an agent and back, signed")
    if run_grange(ports, "build", "-f", EXAMPLES, "--store", DEMO / "here"):
        raise OutsideError(f"the examples should build; see above and {DEMO}/logs")
    hello = output_of("hello", ports)
    fetch(ports, hello)
    say("The program, run from that third store")
    print(run_in(DEMO / "client", f"{hello}/bin/hello"), end="")
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


def run_grange(ports: Ports, *arguments: str | Path) -> int:
    command = [GRANGE, *arguments, "--url", ports.url]
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # it heard the same Ctrl-C, and has a last word
        raise


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


if __name__ == "__main__":
    sys.exit(main())
