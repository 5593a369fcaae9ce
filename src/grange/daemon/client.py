"""The operations of a Nix daemon that a farm needs.

Source: Nix, libstore/daemon.cc and worker-protocol.cc, from where the numbers are too.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from grange.daemon import wire as w
from grange.daemon.body import Nar, exactly, pieces
from grange.daemon.connection import Connection
from grange.daemon.failure import DaemonError
from grange.daemon.link import Link
from grange.daemon.messages import DEAF, Listener
from grange.daemon.operations import BuildMode, GcAction, Op
from grange.daemon.options import Options
from grange.daemon.result import BuildResult, read_build_result
from grange.errors import OperatorError, PeerError
from grange.store.basic import BasicDerivation
from grange.store.narinfo import PathInfo
from grange.store.path import NIX_STORE, StoreDir, StorePath

# Older daemons (2.8 and 2.17 for certain) lose their place in a stream of many paths where one is
# valid already or becomes so meanwhile (NixOS/nix#8731); they are given one path at a time.
IMPORTS_MANY_SINCE: Final = (1, 38)
CLOSURE_PATHS_MAX: Final = 1_000_000  # a whole system has a few thousand
COLLECT_S: Final = 6 * 3600.0  # of silence: deleting a full disk of small files takes hours
SUBSTITUTE_S: Final = 3600.0  # of silence: a daemon that downloads says nothing of it
FREED_BYTES_MAX: Final = 2**64 - 1  # the daemon's own way to say: no limit


class Daemon:
    """A client of one nix-daemon. One operation at a time; operations raise DaemonError where the
    daemon refuses and DaemonGone where the connection is lost.

    Cancelling an operation closes the connection, and with it ends the build it waits for. All
    paths touched on a connection stay safe from garbage collection until it is closed.
    """

    def __init__(self, connection: Connection, listener: Listener) -> None:
        self._connection = connection
        self._wire = connection.wire
        self._store_dir = connection.wire.store_dir
        self._listener = listener
        self.builds_done = 0  # builds asked for on this connection, whatever their end

    @classmethod
    async def connect_stdio(
        cls,
        command: Sequence[str],
        store_dir: StoreDir = NIX_STORE,
        *,
        environment: Mapping[str, str] | None = None,
        listener: Listener = DEAF,
    ) -> Self:
        """Start a daemon, such as ``nix-daemon --stdio``, that ends with this connection.

        Raises OperatorError, or DaemonGone with what the command wrote to its standard error.
        """
        link = await Link.spawn(command, environment)
        return cls(await Connection.open(link, store_dir), listener)

    @classmethod
    async def connect_unix(
        cls,
        path: str | os.PathLike[str] = "/nix/var/nix/daemon-socket/socket",
        store_dir: StoreDir = NIX_STORE,
        *,
        listener: Listener = DEAF,
    ) -> Self:
        """Connect to a running daemon; raises OperatorError or DaemonGone where there is none."""
        return cls(await Connection.open(await Link.dial(path), store_dir), listener)

    @property
    def nix_version(self) -> str:
        return self._connection.nix_version

    @property
    def pid(self) -> int | None:
        """Of the process that `connect_stdio` started; None for a daemon of others."""
        return self._connection.link.pid

    @property
    def protocol(self) -> tuple[int, int]:
        """Major and minor of what both sides speak."""
        return self._connection.protocol

    @property
    def trusted(self) -> bool | None:
        """Whether the daemon says it trusts us; None where it says nothing (see `prove_trust`)."""
        return self._connection.trusted

    @property
    def is_broken(self) -> bool:
        """Whether no operation can be done any more."""
        return self._connection.is_broken

    async def aclose(self) -> None:
        """Close, and see a daemon that we started end, which ends its build."""
        self._connection.link.close()
        await self._connection.link.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _ask(self, op: Op, request: bytes, listener: Listener | None = None) -> None:
        await self._connection.ask(w.integer(op) + request, listener or self._listener)

    def _ask_each(self, op: Op, paths: Sequence[StorePath]) -> AsyncIterator[StorePath]:
        """Ask the same of each path, many ahead; yields each as its answer is to be read."""
        requests = [(path, w.integer(op) + self._shown(path)) for path in paths]
        return self._connection.ask_each(requests, self._listener)

    async def _ask_for_1(self, op: Op, request: bytes) -> None:
        """For operations whose answer is the number 1 and nothing else."""
        with self._connection.operation():
            await self._ask(op, request)
            await self._wire.integer()

    def _shown(self, path: StorePath) -> bytes:
        return w.string(self._store_dir.show(path))

    async def set_options(self, options: Options) -> None:
        """Set `options` for all that follows; a daemon that does not trust us ignores most."""
        with self._connection.operation():
            await self._ask(Op.SET_OPTIONS, options.encode())

    async def prove_trust(self) -> None:
        """Return if the daemon trusts us, which building and importing need; else OperatorError.

        A daemon before protocol 1.35 does not say, so it is asked to repair no paths at all:
        nothing to do, and allowed to trusted users only. A refusal closes the connection.
        """
        trusted = self.trusted
        if trusted is None:
            request = w.strings(()) + w.integer(BuildMode.REPAIR)
            try:
                await self._ask_for_1(Op.BUILD_PATHS, request)
                trusted = True
            except DaemonError as error:
                if "trusted-users" not in error.message:
                    raise
                trusted = False
        if not trusted:
            self._connection.link.close()
            raise OperatorError(
                f"the nix-daemon at {self._connection.link.name} does not trust the user"
                f" {os.geteuid()}; add the user to trusted-users in its nix.conf"
                " and restart the daemon"
            )

    async def query_valid_paths(
        self, paths: Iterable[StorePath], *, substitute: bool = False
    ) -> set[StorePath]:
        """Those of `paths` that are in the store, after trying to substitute them if asked to."""
        request = w.store_paths(paths, self._store_dir) + w.integer(substitute)
        with self._connection.operation():
            if substitute:
                self._wire.patience_s = SUBSTITUTE_S
            await self._ask(Op.QUERY_VALID_PATHS, request)
            return set(await self._wire.store_paths())

    async def query_path_info(self, path: StorePath) -> PathInfo | None:
        return (await self.query_path_infos((path,))).get(path)

    async def query_path_infos(self, paths: Iterable[StorePath]) -> dict[StorePath, PathInfo]:
        """The path infos of those of `paths` that are valid, with few round trips."""
        todo = list(dict.fromkeys(paths))
        infos: dict[StorePath, PathInfo] = {}
        with self._connection.operation():
            async for path in self._ask_each(Op.QUERY_PATH_INFO, todo):
                if await self._wire.boolean():
                    infos[path] = await self._wire.path_info(path)
        return infos

    async def query_closure(self, paths: Iterable[StorePath]) -> dict[StorePath, PathInfo]:
        """The runtime closure of `paths`; DaemonError where a path in it is not valid."""
        closure: dict[StorePath, PathInfo] = {}
        wave = set(paths)
        while wave:
            found = await self.query_path_infos(sorted(wave))
            if missing := wave - found.keys():
                raise self._not_valid(min(missing))
            closure |= found
            if len(closure) > CLOSURE_PATHS_MAX:
                raise PeerError(f"a closure has more than {CLOSURE_PATHS_MAX} paths")
            wave = {path for info in found.values() for path in info.references} - closure.keys()
        return closure

    async def add_temp_root(self, path: StorePath) -> None:
        """Keep `path`, valid or yet to come, until this connection closes."""
        await self.add_temp_roots((path,))

    async def add_temp_roots(self, paths: Sequence[StorePath]) -> None:
        """`add_temp_root` for many, with few round trips."""
        with self._connection.operation():
            async for _ in self._ask_each(Op.ADD_TEMP_ROOT, paths):
                await self._wire.integer()

    async def add_indirect_root(self, link: str) -> None:
        """Register a symlink into the store, absolute on the daemon's machine, as a root.

        The root lasts until the symlink is removed, across restarts of everything.
        """
        await self._ask_for_1(Op.ADD_INDIRECT_ROOT, w.string(link))

    async def add_perm_root(self, path: StorePath, link: str) -> None:
        """Have the daemon make `link` and register it; needs protocol 1.36 (else OperatorError)."""
        if self.protocol < (1, 36):
            raise OperatorError(
                f"Nix {self.nix_version} cannot make roots for its clients;"
                " install Nix 2.20 or later"
            )
        with self._connection.operation():
            await self._ask(Op.ADD_PERM_ROOT, self._shown(path) + w.string(link))
            await self._wire.string()

    async def find_roots(self) -> list[tuple[str, StorePath]]:
        """All roots: a link or a description of what holds a path, and the path."""
        with self._connection.operation():
            await self._ask(Op.FIND_ROOTS, b"")
            count = await self._wire.bounded(w.LIST_ITEMS_MAX, "a number of roots")
            return [(await self._wire.text(), await self._wire.store_path()) for _ in range(count)]

    async def collect_garbage(
        self,
        action: GcAction = GcAction.DELETE_DEAD,
        *,
        paths: Iterable[StorePath] = (),
        freed_bytes_max: int = FREED_BYTES_MAX,
    ) -> tuple[tuple[StorePath, ...], int]:
        """Find or delete garbage; the paths found or deleted, and the bytes freed.

        Deleting stops once `freed_bytes_max` is reached. Paths this or any other open connection
        has touched are alive.
        """
        request = b"".join(
            (
                w.integer(action),
                w.store_paths(paths, self._store_dir),
                w.integer(0),  # ignore liveness: never allowed
                w.integer(freed_bytes_max),
                w.integer(0) * 3,  # obsolete
            )
        )
        with self._connection.operation():
            self._wire.patience_s = COLLECT_S
            await self._ask(Op.COLLECT_GARBAGE, request)
            names = await self._wire.strings()
            freed_bytes = await self._wire.integer()
            await self._wire.integer()  # obsolete
        # Left-over locks and temporary files are listed too: they are no store paths.
        return tuple(self._store_paths_among(names)), freed_bytes

    def _store_paths_among(self, names: Iterable[str]) -> Iterable[StorePath]:
        for name in names:
            try:
                yield self._store_dir.parse(name)
            except PeerError:
                continue

    async def ensure_path(self, path: StorePath) -> None:
        """Have `path` in the store, by substitution where needed; DaemonError where that fails."""
        with self._connection.operation():
            self._wire.patience_s = SUBSTITUTE_S
            await self._ask(Op.ENSURE_PATH, self._shown(path))
            await self._wire.integer()

    async def nar_from_path(self, path: StorePath) -> AsyncGenerator[bytes, None]:
        """The NAR of a path, in pieces; DaemonError before the first where it is not valid.

        The hash is not checked: a daemon that fails to read a file says so in the midst of the NAR,
        where nothing tells its words from the file's. The connection is busy until the last piece
        is taken; leaving earlier closes it (use `contextlib.aclosing`).
        """
        await self.add_temp_root(path)
        info = await self.query_path_info(path)
        if info is None:
            raise self._not_valid(path)
        with self._connection.operation():
            await self._ask(Op.NAR_FROM_PATH, self._shown(path))
            left = info.nar_bytes
            while left:
                piece = await self._wire.some(left)
                left -= len(piece)
                yield piece

    def _not_valid(self, path: StorePath) -> DaemonError:
        return DaemonError(
            f"path '{self._store_dir.show(path)}' is not valid in the daemon's store"
        )

    async def add_multiple_to_store(
        self,
        paths: Sequence[tuple[PathInfo, Nar]],
        *,
        repair: bool = False,
        check_signatures: bool = True,
    ) -> None:
        """Import paths with their NARs, each after all it refers to.

        The daemon checks every NAR against its path info, and signatures unless one it trusts
        says not to; what came before a refused path stays. A NAR may be a stream; PeerError where
        its length is not `nar_bytes`, which like any error of a stream closes the connection.
        """
        flags = w.integer(repair) + w.integer(not check_signatures)
        with self._connection.operation():
            if self.protocol >= IMPORTS_MANY_SINCE:
                request = w.integer(Op.ADD_MULTIPLE_TO_STORE) + flags
                await self._connection.ask_framed(request, self._all_in_one(paths), self._listener)
                return
            for info, nar in paths:
                request = w.integer(Op.ADD_TO_STORE_NAR) + w.path_info(info, self._store_dir)
                await self._connection.ask_framed(
                    request + flags, exactly(info, nar), self._listener
                )

    async def _all_in_one(
        self, paths: Sequence[tuple[PathInfo, Nar]]
    ) -> AsyncGenerator[bytes, None]:
        yield w.integer(len(paths))
        for info, nar in paths:
            yield w.path_info(info, self._store_dir)
            async for piece in exactly(info, nar):
                yield piece

    async def add_to_store(
        self,
        name: str,
        method: str,
        data: bytes,
        references: Iterable[StorePath] = (),
    ) -> PathInfo:
        """Add content under the path that follows from it.

        `method` says what `data` is: "text:sha256" a file that may have references, such as a
        ``.drv``; "fixed:sha256" a file; "fixed:r:sha256" a NAR.
        """
        request = b"".join(
            (
                w.integer(Op.ADD_TO_STORE),
                w.string(name),
                w.string(method),
                w.store_paths(references, self._store_dir),
                w.integer(0),  # do not repair
            )
        )
        with self._connection.operation():
            await self._connection.ask_framed(request, pieces(data), self._listener)
            return await self._wire.path_info(await self._wire.store_path())

    async def build_derivation(
        self,
        drv_path: StorePath,
        derivation: BasicDerivation,
        on_log: Callable[[bytes], None],
        on_phase: Callable[[str], None] = lambda _: None,
        *,
        mode: BuildMode = BuildMode.NORMAL,
    ) -> BuildResult:
        """Build `derivation`, whose inputs must be valid or substitutable; needs trust.

        `drv_path` is recorded as the deriver and need not exist. A failed build is a result;
        DaemonError says that the daemon could not even try. It waits as long as the build takes:
        limits are set by `set_options`. CHECK needs all outputs in the store.
        """
        request = self._shown(drv_path) + w.basic_derivation(derivation, self._store_dir)
        listener = Listener(on_log, on_phase, self._listener.on_message)
        self.builds_done += 1
        with self._connection.operation():
            self._wire.patience_s = None
            await self._ask(Op.BUILD_DERIVATION, request + w.integer(mode), listener)
            return await read_build_result(self._wire, self.protocol)
