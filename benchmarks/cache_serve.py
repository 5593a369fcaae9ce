"""`cache-serve`: narinfos and NARs over HTTP from one core, ours and nginx on the same files.

Ours and nginx run at the same time, but only one is asked at a time, in turns. By the clock it is
told as well as by what the servers' core works.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.one_core import Rate, Server, answers, measure, nginx, on_server_core, script
from benchmarks.private import GRANGE, Place, free_port, process, wait_until
from benchmarks.report import Result, Series
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
NARINFO_AIM: Final = 5_000


def cache_serve(place: Place, runs: int) -> Result:
    """NAR GB/s and narinfos a second of `grange cache` and of nginx."""
    store = place.folder("store")
    narinfos, nars = _fill(store)
    scripts = {"narinfo": script(place, "narinfo", narinfos), "nar": script(place, "nar", nars)}
    asked = {"narinfo": NARINFO_CLIENTS, "nar": NAR_CLIENTS}
    rates: dict[tuple[str, str], list[Rate]] = {}
    with _servers(place, store) as servers:
        for server in servers.values():
            measure(place, server, scripts["nar"], NAR_CLIENTS, 1)  # brings the files into memory
        for _ in range(runs):
            for name, server in servers.items():
                for what, clients in asked.items():
                    rate = measure(place, server, scripts[what], clients, SECONDS)
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


@contextmanager
def _servers(place: Place, store: Path) -> Iterator[Mapping[str, Server]]:
    """Both servers, on one core, by name."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [GRANGE, "cache", "--store", str(store), "--listen", f"127.0.0.1:{port}"]
    with (
        nginx(place, store) as rival,
        process(place, on_server_core(command), "cache.log") as ours,
    ):
        wait_until(lambda: answers(f"{url}/nix-cache-info"), ours, "grange cache to answer")
        yield {"grange": Server(url, ours.pid), "nginx": rival}
