"""What becomes of a trace's builds, and how long an instance is held by one."""

from dataclasses import dataclass
from typing import Final

from grange.capacity.facts import ReservationId
from grange.simulator.cloud import Climate, Machine
from grange.simulator.trace import Build

TRIES: Final = 3  # after an instance was lost; the last is on demand
BYTES_PER_MB: Final = 1_000_000


@dataclass(slots=True, eq=False)
class Job:
    """A build of the trace, and how it goes."""

    number: int
    build: Build
    tries: int = 0  # that ended without it being built
    asked_at: float = 0.0
    waited_s: float = 0.0  # over all tries
    started_at: float = 0.0  # of the latest try
    done_at: float | None = None
    machine: Machine | None = None  # that it is on
    lost_s: float = 0.0  # held in vain
    is_given_up: bool = False

    @property
    def is_over(self) -> bool:
        return self.done_at is not None or self.is_given_up

    @property
    def delay_s(self) -> float:
        """From being ready to the beginning of the try that built it."""
        return self.started_at - self.build.ready_at


def reservation_of(job: Job) -> ReservationId:
    return ReservationId(f"{job.number}.{job.tries}")


def hold_min_s(climate: Climate, build: Build) -> float:
    """How long a place is held at the least: it is alone there, and nothing needs fetching."""
    return build.duration + build.input_bytes / BYTES_PER_MB / climate.upload_mb_s


def begin(climate: Climate, machine: Machine, build: Build, now: float) -> float:
    """When a build that begins now on this instance ends, if nothing happens to it."""
    upload_s = build.input_bytes / BYTES_PER_MB / climate.upload_mb_s
    machine.upload_until = max(now, machine.upload_until) + upload_s
    builds_at = machine.upload_until
    if machine.warm_at is None:
        machine.warm_at = builds_at + climate.cold_s
    return max(builds_at, machine.warm_at) + build.duration
