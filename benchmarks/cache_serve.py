"""`cache-serve`: narinfos and NARs over HTTP from one core, ours and nginx on the same files.

The server has one core to itself and wrk, which is faster than either, the other. Ours and nginx
run at the same time, but only one is asked at a time, in turns. What counts is what a server gives
for each second that its core works for it: on a machine of its own that is a second of the clock,
and on a busy one others' work does not count. By the clock it is told as well.
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
    GRANGE,
    Place,
    descendants_cpu_s,
    free_port,
    own_cpu_s,
    process,
    wait_until,
)
from benchmarks.report import Result, Series
from grange.errors import OperatorError, OutsideError
from grange.store.hash import BASE32_CHARS, Hash
from grange.store.keys import SEED_BYTES, SecretKey
from grange.store.narinfo import NarInfo, PathInfo, fingerprint, show
from grange.store.path import NIX_STORE, StorePath

NARINFOS: Final = 2_000
NARS: Final = 16
NAR_BYTES: Final = 16 << 20
SECONDS: Final = 5  # for each figure of each run
NARINFO_CLIENTS: Final = 16
NAR_CLIENTS: Final = 4
SERVER_CORE: Final = 0
CLIENT_CORE: Final = 1
NARINFO_AIM: Final = 5_000

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
  server {{ listen 127.0.0.1:{port}; root {store}; }}
}}
"""

# Asks for one path after another; requests are made up before the first leaves.
_WRK: Final = """\
local requests, at = {}, 0
init = function()
  for path in io.lines("%s") do requests[#requests + 1] = wrk.format("GET", path) end
end
request = function() at = at %% #requests + 1; return requests[at] end
done = function(summary, latency)
  local bad = summary.errors
  print(string.format("RESULT %%d %%d %%d %%d", summary.requests, summary.bytes, summary.duration,
    bad.connect + bad.read + bad.write + bad.status + bad.timeout))
end
"""
_RESULT: Final = re.compile(r"^RESULT (\d+) (\d+) (\d+) (\d+)$", re.MULTILINE)


def cache_serve(place: Place, runs: int) -> Result:
    """NAR GB/s and narinfos a second of `grange cache` and of nginx."""
    if (os.cpu_count() or 1) < 2:
        raise OperatorError("cache-serve needs two cores: one for the server, one for the client")
    store = place.folder("store")
    narinfos, nars = _fill(store)
    scripts = {"narinfo": _script(place, "narinfo", narinfos), "nar": _script(place, "nar", nars)}
    asked = {"narinfo": NARINFO_CLIENTS, "nar": NAR_CLIENTS}
    rates: dict[tuple[str, str], list[_Rate]] = {}
    with _servers(place, store) as servers:
        for server in servers.values():
            _measure(place, server, scripts["nar"], NAR_CLIENTS, 1)  # brings the files into memory
        for _ in range(runs):
            for name, server in servers.items():
                for what, clients in asked.items():
                    rate = _measure(place, server, scripts[what], clients, SECONDS)
                    rates.setdefault((name, what), []).append(rate)

    def nar_series(name: str, label: str, *, by_clock: bool = False) -> Series:
        found = [each.bytes(by_clock=by_clock) / 1e9 for each in rates[name, "nar"]]
        return Series(f"NARs, {label}", "GB/s", found)

    def narinfo_series(name: str, label: str, *, by_clock: bool = False) -> Series:
        found = [each.answers(by_clock=by_clock) for each in rates[name, "narinfo"]]
        return Series(f"narinfos, {label}", "1/s", found)

    ours, rival = nar_series("grange", "grange cache"), nar_series("nginx", "nginx")
    own_narinfos = narinfo_series("grange", "grange cache")
    rival_narinfos = narinfo_series("nginx", "nginx")
    return Result(
        "cache-serve",
        f"ratio >= 0.9; narinfos >= {NARINFO_AIM}/s",
        ours,
        rival,
        [
            own_narinfos,
            rival_narinfos,
            nar_series("grange", "grange cache, by the clock", by_clock=True),
            nar_series("nginx", "nginx, by the clock", by_clock=True),
            narinfo_series("grange", "grange cache, by the clock", by_clock=True),
            narinfo_series("nginx", "nginx, by the clock", by_clock=True),
        ],
        {
            "narinfos_per_s": own_narinfos.median,
            "narinfo_ratio": own_narinfos.median / rival_narinfos.median,
        },
        [
            f"one core each for server and wrk; {NARS} NARs of {NAR_BYTES >> 20} MiB to "
            f"{NAR_CLIENTS} clients, {NARINFOS} narinfos to {NARINFO_CLIENTS}",
        ],
    )


def _fill(store: Path) -> tuple[list[str], list[str]]:
    """Write the files; the paths of their URLs, narinfos and NARs."""
    key = SecretKey.generate("bench-1", bytes(SEED_BYTES))
    (store / "nar").mkdir()
    (store / "nix-cache-info").write_text("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n")
    noise = os.urandom(NAR_BYTES)
    nars = []
    for number in range(NARS):
        nars.append(f"/nar/{Hash.of('sha256', bytes([number])).base32()}.nar.zst")
        (store / nars[-1][1:]).write_bytes(noise)
    paths = [_path(number) for number in range(NARINFOS)]
    for number, path in enumerate(paths):
        references = tuple(sorted(paths[max(0, number - 8) : number]))
        info = PathInfo(path, Hash.of("sha256", path.encode()), 12_345_678, references, path)
        signature = key.sign(fingerprint(info, NIX_STORE))
        info = PathInfo(path, info.nar_hash, 12_345_678, references, path, None, (signature,))
        url = nars[number % NARS][1:]
        narinfo = NarInfo(info, url, "zstd", Hash.of("sha256", noise), NAR_BYTES)
        (store / f"{path.hash_part}.narinfo").write_text(show(narinfo, NIX_STORE))
    return [f"/{path.hash_part}.narinfo" for path in paths], nars


def _path(number: int) -> StorePath:
    digest = Hash.of("sha256", str(number).encode()).digest
    return StorePath("".join(BASE32_CHARS[byte % 32] for byte in digest) + "-package-1.2.3")


def _script(place: Place, name: str, paths: Sequence[str]) -> Path:
    listed = place.root / f"{name}.paths"
    listed.write_text("".join(f"{path}\n" for path in paths))
    script = place.root / f"{name}.lua"
    script.write_text(_WRK % listed)
    return script


@dataclass(frozen=True, slots=True)
class _Server:
    url: str
    pid: int

    def cpu_s(self) -> float:
        return own_cpu_s(self.pid) + descendants_cpu_s(self.pid)


@dataclass(frozen=True, slots=True)
class _Rate:
    requests: int
    size: int
    wall_s: float
    cpu_s: float

    def answers(self, *, by_clock: bool) -> float:
        return self.requests / (self.wall_s if by_clock else self.cpu_s)

    def bytes(self, *, by_clock: bool) -> float:
        return self.size / (self.wall_s if by_clock else self.cpu_s)


@contextmanager
def _servers(place: Place, store: Path) -> Iterator[Mapping[str, _Server]]:
    """Both servers, on one core, by name."""
    folder = place.folder("nginx")
    nginx, wrk = shutil.which("nginx", path="/usr/sbin:" + os.environ["PATH"]), shutil.which("wrk")
    if nginx is None or wrk is None:
        raise OperatorError("cache-serve needs nginx and wrk; install Debian's nginx-light and wrk")
    own_port, port = free_port(), free_port()
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, store=store))
    for parent in (place.root, store, store / "nar", folder):
        parent.chmod(0o755)  # nginx's worker is another user
    core = ["taskset", "-c", str(SERVER_CORE)]
    own = [*core, GRANGE, "cache", "--store", str(store), "--listen", f"127.0.0.1:{own_port}"]
    rival = [*core, nginx, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    urls = {"grange": f"http://127.0.0.1:{own_port}", "nginx": f"http://127.0.0.1:{port}"}
    with process(place, own, "cache.log") as ours, process(place, rival, "nginx.log") as theirs:
        wait_until(lambda: _answers(urls["grange"]), ours, "grange cache to answer")
        wait_until(lambda: _answers(urls["nginx"]), theirs, "nginx to answer")
        yield {
            "grange": _Server(urls["grange"], ours.pid),
            "nginx": _Server(urls["nginx"], theirs.pid),
        }


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/nix-cache-info", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _measure(place: Place, server: _Server, script: Path, clients: int, seconds: int) -> _Rate:
    command = ["taskset", "-c", str(CLIENT_CORE), "wrk", "-t1", f"-c{clients}", f"-d{seconds}s"]
    before = server.cpu_s()
    _, _, output = place.run([*command, "--timeout", "60s", "-s", str(script), server.url])
    cpu_s = server.cpu_s() - before
    found = _RESULT.search(output)
    if found is None or int(found[4]):
        raise OutsideError(f"wrk had errors at {server.url}: {output[-2000:]}")
    requests, size, duration_us = (int(each) for each in found.groups()[:3])
    return _Rate(requests, size, duration_us / 1e6, cpu_s)
