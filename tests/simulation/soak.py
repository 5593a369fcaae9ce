"""Seeds by the thousand: ``python -m tests.simulation.soak --minutes 60``.

Every finding is printed at once, with the command that repeats it, and does not end the soak. The
last line is the total as JSON; the exit status is 1 where anything was found, else 0.
"""

import argparse
import gc
import json
import multiprocessing
import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Final

from tests.simulation.run import simulate

CHUNK: Final = 50  # seeds handed to a worker at once: less than some seconds of work
SEED_CPU_S: Final = 60.0  # a run that needs more goes round in circles; a large one needs 2
SHOW_EVERY_S: Final = 10.0
FIRST_MAX: Final = 1_000  # millions; where to begin unless told


@dataclass(frozen=True, slots=True)
class Finding:
    seed: int
    problem: str  # a verdict, or a traceback

    def __str__(self) -> str:
        again = f"python -m tests.simulation --from {self.seed} --seeds 1 --show"
        return f"{self.problem}\n  repeat: {again}"


@dataclass(frozen=True, slots=True)
class Share:
    """What came of some seeds."""

    seeds: int
    attempts: int
    virtual_s: float
    findings: tuple[Finding, ...]


class EndlessError(Exception):
    pass


def _give_up(_: int, __: FrameType | None) -> None:
    raise EndlessError(f"no end after {SEED_CPU_S:g} s of CPU time")


def prepare() -> None:
    """Make this process a worker: people's interrupts are for its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGVTALRM, _give_up)
    gc.freeze()  # modules and classes stay: no collection need look at them


def try_seeds(seeds: range) -> Share:
    """Run these, each on its own whatever became of the one before."""
    findings = []
    attempts, virtual_s = 0, 0.0
    for seed in seeds:
        signal.setitimer(signal.ITIMER_VIRTUAL, SEED_CPU_S)
        try:
            verdict = simulate(seed)
        except Exception:
            findings.append(Finding(seed, f"seed {seed} ended in\n{traceback.format_exc()}"))
        else:
            attempts += verdict.attempts
            virtual_s += verdict.virtual_s
            if verdict.problem:
                findings.append(Finding(seed, str(verdict)))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
    return Share(len(seeds), attempts, virtual_s, tuple(findings))


def chunks(first: int, count: int | None, deadline_s: float | None) -> Iterator[range]:
    """Ranges of seeds, ascending, until there were `count` or the monotonic deadline is past."""
    seed = first
    while deadline_s is None or time.monotonic() < deadline_s:
        size = CHUNK if count is None else min(CHUNK, first + count - seed)
        if size <= 0:
            return
        yield range(seed, seed + size)
        seed += size


class Total:
    def __init__(self, first: int) -> None:
        self._first = first
        self._began_s = time.monotonic()
        self._shown_s = self._began_s
        self._seeds = 0
        self._attempts = 0
        self._virtual_s = 0.0
        self.findings: list[Finding] = []

    def add(self, share: Share) -> None:
        self._seeds += share.seeds
        self._attempts += share.attempts
        self._virtual_s += share.virtual_s
        self.findings += share.findings
        for finding in share.findings:
            print(finding, flush=True)
        if time.monotonic() - self._shown_s >= SHOW_EVERY_S:
            self._shown_s = time.monotonic()
            rate = self._seeds / (self._shown_s - self._began_s)
            print(
                f"{self._seeds} seeds, {rate:.0f}/s, {len(self.findings)} findings",
                file=sys.stderr,
                flush=True,
            )

    def as_json(self) -> str:
        return json.dumps(
            {
                "first": self._first,
                "seeds": self._seeds,
                "findings": sorted(finding.seed for finding in self.findings),
                "attempts": self._attempts,
                "virtual_hours": round(self._virtual_s / 3600.0, 1),
                "seconds": round(time.monotonic() - self._began_s, 1),
            }
        )


def soak(first: int, count: int | None, minutes: float | None, workers: int) -> Total:
    """Run seeds from `first` on until `count` or `minutes` are reached, or someone interrupts."""
    total = Total(first)
    deadline_s = None if minutes is None else time.monotonic() + minutes * 60.0
    ahead = multiprocessing.BoundedSemaphore(2 * workers)  # the pool would take all chunks at once

    def supply() -> Iterator[range]:
        for chunk in chunks(first, count, deadline_s):
            ahead.acquire()
            yield chunk

    with multiprocessing.get_context("fork").Pool(workers, prepare) as pool:
        try:
            for share in pool.imap_unordered(try_seeds, supply()):
                ahead.release()
                total.add(share)
        except KeyboardInterrupt:
            pass  # what is known by now is told
    return total


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.soak", description=__doc__)
    parser.add_argument("--seeds", type=int, help="how many to run at most")
    parser.add_argument("--minutes", type=float, help="how long to run at most (10 unless --seeds)")
    parser.add_argument("--from", type=int, dest="first", help="the first seed; else by chance")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    minutes = 10.0 if options.minutes is None and options.seeds is None else options.minutes
    first = options.first
    if first is None:
        first = secrets.randbelow(FIRST_MAX) * 1_000_000
    print(f"from seed {first} on, {options.workers} workers", file=sys.stderr, flush=True)
    total = soak(first, options.seeds, minutes, options.workers)
    print(total.as_json(), flush=True)
    return len(total.findings) > 0


if __name__ == "__main__":
    sys.exit(main())
