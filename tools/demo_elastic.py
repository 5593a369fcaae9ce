"""The demo of elastic capacity: a farm without agents, and a pool of processes of this machine.

A build arrives, agents start, build, have nothing to do, are drained and stop. All is in
.demo/elastic of the checkout, made anew each time; no process is left behind.
"""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import demo_farm
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from grange.capacity.facts import InstanceState, LaunchOrder, SlotState
from grange.cli.capacity_screens import SLOT_STYLES
from grange.client.api import GrangeClient
from grange.client.capacity import CapacityClient
from grange.client.capacity_models import CapacityEventView, SlotView
from grange.clock import SystemClock
from grange.cloud.local import LocalCloud, LocalCommand
from grange.errors import GrangeError, OutsideError

HERE: Final = demo_farm.DEMO / "elastic"
STATE: Final = HERE / "farm"
ADMIN_TOKEN: Final = STATE / "admin-token"
SLOTS: Final = 3
PRICE: Final = 0.17  # dollars an hour: as of a machine of 4 CPUs
PART_S: Final = 3.0  # that a step of the example takes
END_S: Final = 80.0  # by then all should be over
LOOK_S: Final = 0.2
_BUILD: Final = "the build"

CONFIG: Final = f"""\
[capacity]
interval_s = 0.5

[pools.here]
cloud = "local"
systems = ["{os.uname().machine}-linux"]
max = {SLOTS}
capacity = 2           # builds at once in each
batch_s = 1            # let demand come together
idle_s = 4             # minutes, on a farm that pays by the hour
life_min_s = 0
types.process = {{ on_demand = {PRICE}, vcpus = 4 }}
# So that it runs on a machine that is in use, too.
local.agent_options = ["--load-per-cpu", "1000", "--store-free-percent", "0"]

[local]
grace_s = 10
"""


def main() -> int:
    demo_farm.settle(ADMIN_TOKEN)
    try:
        end_instances()  # of a run that was killed
        demo_farm.remove(HERE)
        HERE.mkdir(parents=True)
        with ExitStack() as farm:
            farm.callback(end_instances)
            run(farm)
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.")
        return 130
    except GrangeError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 3
    return 0


def run(farm: ExitStack) -> None:
    ports = demo_farm.Ports(*demo_farm.free_ports(2))
    config = HERE / "farm.toml"
    config.write_text(CONFIG)
    demo_farm.say(f"A farm without agents, and a pool of {SLOTS} at most: .demo/elastic/farm.toml")
    serve = demo_farm.serve_command(ports, STATE, "--config", str(config))
    coordinator = demo_farm.start(farm, "elastic", serve)
    with GrangeClient(ports.url, token_file=ADMIN_TOKEN) as client:
        demo_farm.wait(coordinator, lambda: demo_farm.answers(client))
        if client.status().agents_connected:
            raise OutsideError("the farm should have no agents yet")
    with CapacityClient(ports.url, token_file=ADMIN_TOKEN) as capacity:
        demo_farm.wait(coordinator, lambda: knows_pools(capacity))
        demo_farm.say("A build of seven steps arrives")
        watched = Watched(capacity, begin_build(farm, ports), coordinator)
        watch(watched)
        tell_cost(watched)
    demo_farm.say("Where to look next")
    print("  examples/elastic.nix          what was built")
    print("  docs/operating/capacity.md    pools of processes, and of machines in a cloud")


def knows_pools(capacity: CapacityClient) -> bool:
    try:
        return len(capacity.slots()) == SLOTS
    except OutsideError:
        return False


def begin_build(farm: ExitStack, ports: demo_farm.Ports) -> "subprocess.Popen[bytes]":
    command: list[str | Path] = [demo_farm.GRANGE, "build", "--url", ports.url]
    command += ["-f", demo_farm.EXAMPLES / "elastic.nix", "--store", HERE / "here"]
    with open(demo_farm.DEMO / "logs/elastic-build.log", "wb") as log:
        build = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def end() -> None:
        build.terminate()
        build.wait()

    farm.callback(end)
    return build


# --- What is shown ----------------------------------------------------------------------------


@dataclass
class Watched:
    capacity: CapacityClient
    build: "subprocess.Popen[bytes]"
    coordinator: demo_farm.Service
    began: float = field(default_factory=time.monotonic)
    slots: list[SlotView] = field(default_factory=list)
    events: list[CapacityEventView] = field(default_factory=list)
    began_wall: float = field(default_factory=time.time)
    has_worked: bool = False

    def look(self) -> list[CapacityEventView]:
        """See how things stand; returns what is new."""
        try:
            self.slots = self.capacity.slots()
            told = list(reversed(self.capacity.events(limit=1000)))
        except OutsideError:  # it may have been busy for a moment; `check` tells if it has ended
            return []
        known = self.events[-1].id if self.events else 0
        new = [each for each in told if each.id > known]
        self.events += new
        self.has_worked |= any(slot.state is SlotState.READY for slot in self.slots)
        return new

    @property
    def is_over(self) -> bool:
        is_empty = all(slot.state is SlotState.EMPTY for slot in self.slots)
        return self.build.poll() is not None and self.has_worked and is_empty

    def check(self) -> None:
        """Raises OutsideError where this can come to no good end."""
        logs = f"{demo_farm.DEMO}/logs"
        if self.build.poll():
            tail = (demo_farm.DEMO / "logs/elastic-build.log").read_text(errors="replace")[-2000:]
            raise OutsideError(f"the build failed; {logs}/elastic-build.log ends with:\n{tail}")
        if demo_farm.started(self.coordinator.pid) is None:
            raise OutsideError(f"the farm has ended; see {logs}/elastic.log")
        if time.monotonic() - self.began > END_S:
            raise OutsideError(f"this should be over after {END_S:.0f} s; see {logs}/elastic.log")

    @property
    def building(self) -> str:
        return "is built" if self.build.poll() == 0 else "waits or builds"


def watch(watched: Watched) -> None:
    """Until the build is done and all agents are gone."""
    console = Console(highlight=False)
    if not console.is_terminal:
        was_built = False
        while not watched.is_over:
            for event in watched.look():
                print(line(watched, event).plain, flush=True)
            if watched.build.poll() == 0 and not was_built:
                was_built = True
                print(f"{time.monotonic() - watched.began:6.1f} s  {_BUILD} is built", flush=True)
            watched.check()
            time.sleep(LOOK_S)
        return
    with Live(console=console, auto_refresh=False) as live:
        while not watched.is_over:
            for event in watched.look():
                live.console.print(line(watched, event))
            live.update(table(watched), refresh=True)
            watched.check()
            time.sleep(LOOK_S)
        live.update(table(watched), refresh=True)


def line(watched: Watched, event: CapacityEventView) -> Text:
    after_s = max(0.0, event.time - watched.began_wall)
    return Text(f"{after_s:6.1f} s  {event.slot or event.pool or ''}  {event.text}", "dim")


def table(watched: Watched) -> Group:
    shown = Table(box=None, padding=(0, 2))
    for name in ("slot", "state", "for", "builds"):
        shown.add_column(name)
    for slot in watched.slots:
        state = Text(slot.state, SLOT_STYLES[slot.state])
        shown.add_row(slot.id, state, f"{slot.since_s:.0f} s", "▪" * slot.builds)
    return Group("", shown, Text(f"  {_BUILD} {watched.building}", "bold"))


def tell_cost(watched: Watched) -> None:
    demo_farm.say("What it would have cost")
    begun = [each for each in watched.events if each.text.startswith("empty to launching")]
    gone = [each for each in watched.events if each.text.startswith("terminating to empty")]
    lived_s = sum(each.time for each in gone) - sum(each.time for each in begun)
    [cost] = watched.capacity.cost()
    print(f"  {len(begun)} agents lived for {lived_s:.0f} s together: ${cost.spent:.4f}, at "
          f"${PRICE:.2f} an hour and a minute at least for each")  # fmt: skip
    print(f"  {SLOTS} that are always there: ${SLOTS * PRICE * 24:.2f} a day")


# --- Processes --------------------------------------------------------------------------------


def end_instances() -> None:
    """End what the farm launched, should there be any left."""
    folder = STATE / "instances"
    if folder.is_dir():
        asyncio.run(_end(folder))


async def _end(folder: Path) -> None:
    async def never(_order: LaunchOrder) -> LocalCommand:
        raise AssertionError("nothing is launched here")

    # A builder outlives an agent that is killed: so they have time to end by themselves.
    cloud = LocalCloud(folder, never, clock=SystemClock(), grace_s=2 * PART_S)
    until = time.monotonic() + END_S
    while True:
        left = [e for e in await cloud.instances() if e.state is not InstanceState.TERMINATED]
        if not left:
            return
        if time.monotonic() > until:
            raise OutsideError(f"agents are still running: {', '.join(each.id for each in left)}")
        for each in left:
            await cloud.terminate(each.id)
        await asyncio.sleep(LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
