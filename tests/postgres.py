"""A private PostgreSQL for tests and benchmarks: real, durable, and gone afterwards.

It listens on a free port of the loopback only, trusts whoever connects, and flushes as a farm's
own would, so that what a crash keeps here it keeps there.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Final

from tests.ports import free_port

_READY: Final = "database system is ready to accept connections"
_START_S: Final = 200.0  # recovery after a crash, on a busy machine
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    # After a crash: not file by file, of which each database of a test has hundreds.
    "recovery_init_sync_method": "syncfs",
    "max_connections": "60",
    "logging_collector": "off",
    "log_destination": "stderr",
    "lc_messages": "C",
}


def binaries() -> Path | None:
    """Where `initdb` and `postgres` are: Debian keeps them out of PATH. None without them."""
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"),
        key=lambda path: float(path.parent.parent.name),
    )
    return versions[-1].parent if versions else None


class Postgres:
    """One cluster. It runs from `start` to `stop` or `kill`, and may be started again."""

    def __init__(self, folder: Path, binary_dir: Path) -> None:
        """`folder` must be one that the user who runs the server may enter."""
        self._data = folder / "data"
        self._binary_dir = binary_dir
        # The server refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        self._numbers = count(1)
        self._process: subprocess.Popen[str] | None = None
        self._reader: Thread | None = None
        self.log: list[str] = []  # the server's lines, for a test that failed
        self.port = free_port()
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8")

    @property
    def pid(self) -> int:
        assert self._process is not None, "PostgreSQL does not run"
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Return once it takes connections; after `kill` that includes recovery."""
        assert self._process is None
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        self._process = subprocess.Popen(
            [self._binary_dir / "postgres", "-D", self._data, "-p", str(self.port), *settings],
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which stop it themselves
        )
        ready, ended = Event(), Event()
        self._reader = Thread(target=self._read_log, args=(self._process, ready, ended))
        self._reader.start()
        if not ready.wait(_START_S) or ended.is_set():
            self.kill()
            raise AssertionError("PostgreSQL did not start:\n" + "".join(self.log[-20:]))

    def stop(self) -> None:
        """End it in good order, whoever is connected."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it as a crash would: nothing is written any more, and a start has to recover."""
        self._end(signal.SIGQUIT)

    def new_database(self) -> str:
        """The URL of an empty database of its own."""
        name = f"grange_{next(self._numbers)}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return self.url(name)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait()
        assert self._reader is not None
        self._reader.join()
        self._process = None

    def _read_log(self, process: subprocess.Popen[str], ready: Event, ended: Event) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self.log.append(line)
                if _READY in line:
                    ready.set()
        ended.set()
        ready.set()  # or the one who waits would do so in vain

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._binary_dir / program, *arguments],
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A cluster that runs, in a folder of its own that goes with it."""
    binary_dir = binaries()
    assert binary_dir is not None, "needs PostgreSQL (Debian: postgresql)"
    # Not below pytest's folders: those are closed to the user who runs the server.
    folder = Path(tempfile.mkdtemp(prefix="grange-postgres-"))
    try:
        postgres = Postgres(folder, binary_dir)
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()
    finally:
        shutil.rmtree(folder)
