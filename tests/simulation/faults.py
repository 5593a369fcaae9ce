"""What may go wrong in a run, and how often: drawn anew for every seed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from random import Random


@contextmanager
def faults_are_meant() -> Iterator[None]:
    """Nothing is logged of what goes wrong meanwhile."""
    logger = logging.getLogger("grange")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass(slots=True)
class Rates:
    """Faults an hour (`_h`) in the whole farm, or the probability (`_p`) of each chance to fail."""

    cut_h: float = 0.0  # a tunnel breaks; both ends notice in their own time
    stall_h: float = 0.0  # a tunnel holds back everything for up to two leases
    one_way_h: float = 0.0  # the same in one direction alone: its other end hears as ever
    sleep_h: float = 0.0  # an agent's machine sleeps for up to two leases; its tunnel stays
    break_h: float = 0.0  # an agent fails at whatever it is given, for up to five minutes
    kill_h: float = 0.0  # an agent's process dies and is started again
    vanish_h: float = 0.0  # an agent dies; the first one comes back when faults end, others never
    drain_h: float = 0.0  # an agent hands in what it has and leaves for a while
    refuse_h: float = 0.0  # an agent takes no work for a while, for reasons of its own
    crash_h: float = 0.0  # the coordinator's process dies
    usurp_h: float = 0.0  # the coordinator is paused, and another on its journal takes over
    freeze_h: float = 0.0  # the coordinator's machine, and the world with it, sleeps for a while
    attempt_p: float = 0.0  # an attempt fails for reasons of its agent
    hang_p: float = 0.0  # an attempt stands still in some phase, until it is stopped
    repeat_p: float = 0.0  # of news of an attempt: it is told a second time, much later
    upload_p: float = 0.0  # an upload fails and is given up
    lose_h: float = 0.0  # a published file vanishes from the store, or is cut short
    put_p: float = 0.0  # a narinfo cannot be put, or a file not be looked at
    slow_put_p: float = 0.0  # putting a narinfo takes up to a minute
    slow_store_p: float = 0.0  # granting an upload, or verifying what came, takes up to a minute
    unstored_p: float = 0.0  # an upload comes in whole and cannot be stored
    refused_p: float = 0.0  # a commit certainly does not apply
    doubt_p: float = 0.0  # a commit fails, and has applied or not
    crash_p: float = 0.0  # the coordinator dies in a commit, before or after it applies
    slow_p: float = 0.0  # a commit takes seconds
    stuck_p: float = 0.0  # a commit takes longer than a lease
    unread_p: float = 0.0  # the journal cannot be read back
    doomed_p: float = 0.0  # of a derivation: its builds fail
    cancel_p: float = 0.0  # of a build
    retry_p: float = 0.0  # of a build that did not succeed
    limit_p: float = 0.0  # of a build: it may not take as long as it likes
    check_p: float = 0.0  # of a build: its root is built again to compare
    flaky_p: float = 0.0  # of a derivation: its builds fail now and then
    foreign_p: float = 0.0  # of a derivation: it is for a system that few agents offer, or none
    fickle_p: float = 0.0  # of a derivation: it builds something else each time
    twice_p: float = 0.0  # of a submission: it is sent a second time
    skew_p: float = 0.0  # of a start of the coordinator: its wall clock is wrong by up to an hour

    @classmethod
    def draw(cls, random: Random, haste: float) -> "Rates":
        """A swarm: each kind is absent from half of the runs, so that the others show alone.

        Those of a time are as much higher as `haste` says.
        """
        rates = cls()
        for field in fields(cls):
            most = _MOST[field.name] * (haste if field.name.endswith("_h") else 1.0)
            setattr(rates, field.name, round(random.uniform(0, most), 4) * random.choice((0, 1)))
        return rates

    def heal(self) -> None:
        """No more faults. What derivations are and people want stays as it was drawn."""
        for field in fields(self):
            if field.name not in _LASTING:
                setattr(self, field.name, 0.0)

    @property
    def is_calm(self) -> bool:
        """Nothing at all may go wrong, and nobody changes their mind."""
        return all(getattr(self, field.name) == 0 for field in fields(self))

    def __str__(self) -> str:
        shown = [
            f"{f.name}={getattr(self, f.name):g}" for f in fields(self) if getattr(self, f.name)
        ]
        return " ".join(shown) or "calm"


_LASTING = frozenset(
    {
        "doomed_p",
        "flaky_p",
        "foreign_p",
        "fickle_p",
        "limit_p",
        "check_p",
        "cancel_p",
        "retry_p",
        "twice_p",
    }
)
_MOST = {
    "cut_h": 200.0,
    "stall_h": 60.0,
    "one_way_h": 40.0,
    "sleep_h": 20.0,
    "break_h": 20.0,
    "kill_h": 60.0,
    "vanish_h": 12.0,
    "drain_h": 20.0,
    "refuse_h": 20.0,
    "crash_h": 30.0,
    "usurp_h": 15.0,
    "freeze_h": 10.0,
    "attempt_p": 0.5,
    "hang_p": 0.1,
    "repeat_p": 0.3,
    "upload_p": 0.2,
    "lose_h": 30.0,
    "put_p": 0.3,
    "slow_put_p": 0.2,
    "slow_store_p": 0.2,
    "unstored_p": 0.2,
    "refused_p": 0.1,
    "doubt_p": 0.03,
    "crash_p": 0.02,
    "slow_p": 0.05,
    "stuck_p": 0.003,
    "unread_p": 0.3,
    "doomed_p": 0.08,
    "cancel_p": 0.3,
    "retry_p": 0.7,
    "limit_p": 0.5,
    "check_p": 0.4,
    "flaky_p": 0.2,
    "foreign_p": 0.1,
    "fickle_p": 0.1,
    "twice_p": 0.4,
    "skew_p": 0.5,
}
