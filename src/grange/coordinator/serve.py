"""A coordinator's process: listening, starting, stopping."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Generator
from typing import Any

import uvicorn

from grange.coordinator.doorkeeper import shown_by
from grange.coordinator.farm import Farm
from grange.coordinator.http_protocol import http_config
from grange.coordinator.tls import ServerTls
from grange.errors import GrangeError, OperatorError
from grange.identity import Identity
from grange.store.path import StoreDir
from grange.wire.callers import Caller
from grange.wire.server import add_runner_service, new_server
from grange.wire.tls import server_credentials

log = logging.getLogger(__name__)

EXIT_FAULT = 70  # EX_SOFTWARE of sysexits.h
GOODBYE_S = 3.0  # for calls under way when the process ends


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        advice = "stop what listens there, or choose another port"
        if error.errno != errno.EADDRINUSE:
            advice = "choose an address of this machine, and a port that its user may take"
        raise OperatorError(
            f"cannot listen on {host}:{port}: {error.strerror}; {advice}"
        ) from error
    bound.setblocking(False)
    return bound


class Http(uvicorn.Server):
    """Leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(
    farm: Farm,
    app: Any,
    http: socket.socket,
    agents: str,
    store_dir: StoreDir,
    *,
    tls: ServerTls | None,
    reread: Callable[[], None] | None = None,
) -> None:
    """Run the farm until SIGTERM or SIGINT; SIGHUP has the certificate and the farm's rules read
    anew, these by `reread`, which raises OperatorError where they stay as they were. `agents` is
    host:port for gRPC. Without `tls` all is said in the clear.

    Raises GrangeError where it cannot go on, SystemExit upon a fault of its own.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, tls, reread)
    grpc_server = new_server()

    async def identify(caller: Caller) -> Identity:
        return await farm.door.identify(shown_by(caller), caller.address)

    add_runner_service(
        grpc_server,
        farm.agents,
        store_dir,
        identify=identify,
        check_serving=farm.check_leading,
        ping_s=farm.ping_s,
    )
    try:
        if tls is None:
            port = grpc_server.add_insecure_port(agents)
        else:
            credentials = server_credentials(lambda: tls.pems)
            port = grpc_server.add_secure_port(agents, credentials)
    except RuntimeError as error:
        raise OperatorError(
            f"cannot listen for agents on {agents}; stop what listens there, or choose another "
            "port with --listen-agents"
        ) from error
    web = _web_server(app, tls)
    working = asyncio.create_task(farm.run())
    stop = asyncio.create_task(stopping.wait())
    ready = asyncio.create_task(farm.loop.ready.wait())
    try:
        if not farm.leadership.is_shared:  # else others can be asked while this one reads
            await asyncio.wait((working, stop, ready), return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and not stop.done():
            await grpc_server.start()
            serving = asyncio.create_task(web.serve(sockets=[http]))
            log.info("agents: %s, port %d", agents, port)
            await asyncio.wait((working, stop, serving), return_when=asyncio.FIRST_COMPLETED)
            await _end(working)  # first, and then the lead: another may have it at once
            await farm.leadership.release()
            web.should_exit = True
            await grpc_server.stop(GOODBYE_S / 2)
            await asyncio.wait((serving,))
        if working.done() and not working.cancelled() and (fault := working.exception()):
            raise blame(fault)
    finally:
        for task in (working, stop, ready):
            await _end(task)
        await farm.leadership.release()


def _web_server(app: Any, tls: ServerTls | None) -> Http:
    config = http_config(app, GOODBYE_S)
    config.load()
    config.ssl = None if tls is None else tls.context
    return Http(config)


def _reload(tls: ServerTls | None, reread: Callable[[], None] | None) -> None:
    """Upon SIGHUP; what cannot be read leaves the rest to be read all the same."""
    if tls is None and reread is None:
        log.info("there is nothing to read anew: no [tls], and no --config")
    for what, read in (
        ("the certificate", None if tls is None else tls.reload),
        ("the farm file", reread),
    ):
        if read is None:
            continue
        try:
            read()
        except OperatorError as error:
            log.error("%s could not be read anew, all stays as it was: %s", what, error)
        else:
            log.info("%s was read anew", what)


def blame(error: BaseException) -> BaseException:
    """What to end the process with: an error for its operator, or a fault of our own, logged."""
    told = error
    while isinstance(told, BaseExceptionGroup):
        told = told.exceptions[0]
    if isinstance(told, GrangeError):
        return told
    log.critical(
        "a fault of Grange's own ends this coordinator: %r; nothing that was told is lost, and "
        "another start may do; please report what follows",
        told,
        exc_info=error,
    )
    return SystemExit(EXIT_FAULT)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait((task,))
