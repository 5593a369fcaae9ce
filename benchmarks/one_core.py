"""Servers that have one core to themselves, asked by wrk, which has the other.

What counts is what a server gives for each second that its core works for it: on a machine of its
own that is a second of the clock, and on a busy one others' work does not count.
"""

import os
import re
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.private import (
    Place,
    descendants_cpu_s,
    free_port,
    own_cpu_s,
    process,
    wait_until,
)
from grange.errors import OperatorError, OutsideError

SERVER_CORE: Final = 0
CLIENT_CORE: Final = 1

_NGINX: Final = """\
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;
  types {{ text/x-nix-narinfo narinfo; }}
  default_type application/x-nix-nar;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""

# Asks for one path after another; requests are made up before the first leaves.
_WRK: Final = """\
local requests, at = {}, 0
local headers = {%s}
init = function()
  for path in io.lines("%s") do
    requests[#requests + 1] = wrk.format("GET", path, headers)
  end
end
request = function() at = at %% #requests + 1; return requests[at] end
done = function(summary, latency)
  local bad = summary.errors
  print(string.format("RESULT %%d %%d %%d %%d %%d", summary.requests, summary.bytes,
    summary.duration, latency:percentile(50),
    bad.connect + bad.read + bad.write + bad.status + bad.timeout))
end
"""
_RESULT: Final = re.compile(r"^RESULT (\d+) (\d+) (\d+) (\d+) (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    pid: int

    def cpu_s(self) -> float:
        return own_cpu_s(self.pid) + descendants_cpu_s(self.pid)


@dataclass(frozen=True, slots=True)
class Rate:
    requests: int
    size: int
    wall_s: float
    cpu_s: float
    median_ms: float  # of an answer

    def answers(self, *, by_clock: bool = False) -> float:
        """In a second."""
        return self.requests / (self.wall_s if by_clock else self.cpu_s)

    def bytes(self, *, by_clock: bool = False) -> float:
        """In a second."""
        return self.size / (self.wall_s if by_clock else self.cpu_s)


def on_server_core(command: Sequence[str]) -> list[str]:
    return ["taskset", "-c", str(SERVER_CORE), *command]


@contextmanager
def nginx(place: Place, root: Path) -> Iterator[Server]:
    """What lies in `root`, its files and folders readable to others, served by nginx."""
    if (os.cpu_count() or 1) < 2:
        raise OperatorError("this needs two cores: one for the server, one for the client")
    program, wrk = (
        shutil.which("nginx", path="/usr/sbin:" + os.environ["PATH"]),
        shutil.which("wrk"),
    )
    if program is None or wrk is None:
        raise OperatorError("this needs nginx and wrk; install Debian's nginx-light and wrk")
    folder, port = place.folder("nginx"), free_port()
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, root=root))
    for parent in (place.root, folder, root, *[each for each in root.rglob("*") if each.is_dir()]):
        parent.chmod(0o755)  # nginx's worker is another user
    command = [program, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    url = f"http://127.0.0.1:{port}"
    with process(place, on_server_core(command), "nginx.log") as running:
        wait_until(lambda: answers(f"{url}/{next(_files(root))}"), running, "nginx to answer")
        yield Server(url, running.pid)


def _files(root: Path) -> Iterator[Path]:
    return (each.relative_to(root) for each in root.rglob("*") if each.is_file())


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    request = urllib.request.Request(url, headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def script(
    place: Place, name: str, paths: Sequence[str], headers: Mapping[str, str] | None = None
) -> Path:
    """For `measure`: these paths, one after another."""
    listed = place.root / f"{name}.paths"
    listed.write_text("".join(f"{path}\n" for path in paths))
    written = place.root / f"{name}.lua"
    told = ", ".join(f'["{key}"] = "{value}"' for key, value in (headers or {}).items())
    written.write_text(_WRK % (told, listed))
    return written


def measure(place: Place, server: Server, asked: Path, clients: int, seconds: int) -> Rate:
    """What `server` answers to `asked`. Raises OutsideError where one answer is an error."""
    command = ["taskset", "-c", str(CLIENT_CORE), "wrk", "-t1", f"-c{clients}", f"-d{seconds}s"]
    before = server.cpu_s()
    _, _, output = place.run([*command, "--timeout", "60s", "-s", str(asked), server.url])
    cpu_s = server.cpu_s() - before
    found = _RESULT.search(output)
    if found is None or int(found[5]):
        raise OutsideError(f"wrk had errors at {server.url}: {output[-2000:]}")
    requests, size, duration_us, median_us = (int(each) for each in found.groups()[:4])
    return Rate(requests, size, duration_us / 1e6, cpu_s, median_us / 1e3)
