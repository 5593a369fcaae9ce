"""A coordinator's process: listening, starting, stopping."""

import asyncio
import contextlib
import fcntl
import logging
import signal
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from grange.coordinator.farm import Farm
from grange.errors import OperatorError
from grange.store.path import StoreDir
from grange.wire.server import add_runner_service, new_server

log = logging.getLogger(__name__)

GOODBYE_S = 3.0  # for calls under way when the process ends


@contextlib.contextmanager
def only_coordinator(state_dir: Path) -> Iterator[None]:
    """Hold the state directory, made if need be, for this process alone."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise OperatorError(
            f"the state directory {state_dir} cannot be used: {error.strerror}; "
            "choose another with --state-dir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OperatorError(
                f"another coordinator runs on {state_dir}; stop it, or give this one its own "
                "--state-dir"
            ) from None
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OperatorError(
            f"cannot listen on {host}:{port}: {error.strerror}; stop what listens there, or choose "
            "another port"
        ) from error
    bound.setblocking(False)
    return bound


class _Http(uvicorn.Server):
    """Leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(
    farm: Farm, app: Any, http: socket.socket, agents: str, store_dir: StoreDir
) -> None:
    """Run the farm until SIGTERM or SIGINT. `agents` is host:port for gRPC."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    grpc_server = new_server()
    add_runner_service(grpc_server, farm.agents, store_dir)
    try:
        port = grpc_server.add_insecure_port(agents)
    except RuntimeError as error:
        raise OperatorError(
            f"cannot listen for agents on {agents}; stop what listens there, or choose another "
            "port with --listen-agents"
        ) from error
    web = _Http(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=int(GOODBYE_S),
        )
    )
    working = asyncio.create_task(farm.run())
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait(
            (working, stop, ready := asyncio.create_task(farm.loop.ready.wait())),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if ready.done():
            await grpc_server.start()
            serving = asyncio.create_task(web.serve(sockets=[http]))
            log.info("agents: %s, port %d", agents, port)
            await asyncio.wait((working, stop, serving), return_when=asyncio.FIRST_COMPLETED)
            web.should_exit = True
            await grpc_server.stop(GOODBYE_S / 2)
            await asyncio.wait((serving,))
        if working.done():
            working.result()
    finally:
        for task in (working, stop, ready):
            task.cancel()
        await asyncio.gather(working, stop, ready, return_exceptions=True)
