"""hooks: from events in the journal to hooks that took them, and each one's progress durable.

The real service on a real journal, on an event loop of its own as in a coordinator. Programs are
`true` with the event on its input and a token; URLs are a server in a process of its own.
"""

import asyncio
import subprocess
import sys
import time
from typing import Final

import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.database import Databases, leading
from benchmarks.private import Place
from benchmarks.report import Result, Series
from grange.clock import SystemClock
from grange.coordinator.hooks.metrics import HookMetrics
from grange.coordinator.hooks.rules import EventRules, HookRule
from grange.coordinator.hooks.service import Hooks
from grange.scheduler.effects import SaveFarmEvent
from grange.scheduler.facts import BuildId, EventKind
from grange.store.path import NIX_STORE

EVENTS: Final = 4_000
BUILDS: Final = 1_000
PARALLEL: Final = 4
KINDS: Final = frozenset({EventKind.BUILD_STARTED})

# Answers each request of a connection with 204, and prints its port first.
_SERVER: Final = """
import asyncio, re, uvloop
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
    def data_received(self, data):
        self.data += data
        head, end, rest = self.data.partition(b"\\r\\n\\r\\n")
        size = re.search(rb"content-length: (\\d+)", head, re.I)
        if end and size and len(rest) >= int(size[1]):
            self.data = rest[int(size[1]):]
            self.transport.write(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
async def main():
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
uvloop.run(main())
"""


def hooks(place: Place, runs: int) -> Result:
    """Events a second, to programs and to URLs."""
    programs: list[float] = []
    urls: list[float] = []
    signed: list[float] = []
    secret = place.root / "secret"
    secret.write_text("x" * 32)
    with (
        Databases.running(place) as databases,
        subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE) as server,
    ):
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/"
            program = HookRule("program", KINDS, command=("/bin/true",), parallel=PARALLEL)
            posted = HookRule("url", KINDS, url=url, parallel=PARALLEL)
            sealed = HookRule("url", KINDS, url=url, parallel=PARALLEL, secret_file=secret)
            for number in range(runs):
                for rates, rule in ((programs, program), (urls, posted), (signed, sealed)):
                    database = databases.new(f"hooks-{len(rates)}-{id(rates)}-{number}")
                    rates.append(uvloop.run(_deliver(database, rule)))
        finally:
            server.kill()
    return Result(
        bench=f"hooks{databases.suffix}",
        aim="value >= 100",
        ours=Series("events to programs", "events/s", programs),
        others=[
            Series("events to a URL", "events/s", urls),
            Series("events to a URL, signed", "events/s", signed),
        ],
        notes=(
            f"{EVENTS} events of {BUILDS} builds, {PARALLEL} at once; {databases.what}",
            "programs are /bin/true, with a token and a folder of their own each time",
        ),
    )


async def _deliver(url: str, rule: HookRule) -> float:
    """Events a second, until the last is taken and that is durable."""
    async with leading(url) as (journal, leadership):
        await leadership.acquire()
        clock = SystemClock()
        metrics = HookMetrics(CollectorRegistry())
        service = Hooks(
            EventRules((rule,)),
            journal.events,
            clock,
            store_dir=NIX_STORE,
            url="http://127.0.0.1:1",
            issue_token=lambda *_: "grange_token",
            metrics=metrics,
        )
        cursors = await service.begin()
        await journal.commit(
            [
                SaveFarmEvent(
                    EventKind.BUILD_STARTED, 1.0, BuildId(f"build {number % BUILDS}"), "p"
                )
                for number in range(EVENTS)
            ]
        )
        began = time.perf_counter()
        running = asyncio.create_task(service.run(cursors))
        while (await service.states())[0].behind:
            if running.done():
                running.result()
            await asyncio.sleep(0.01)
        rate = EVENTS / (time.perf_counter() - began)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return rate
