"""What a gate does when: keys, patience, retries and hints, without Buildbot and without I/O."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, Self
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from grange.capacity.facts import ReservationState
from grange.client.capacity_models import HINT_MAX_S, KEY_MAX
from grange.client.models import NAME_MAX
from grange.errors import OperatorError

DEFAULT_URL: Final = "unix:/run/grange/autoscaler.sock"
KEEPER: Final = "grange-capacity"  # the service's name in Buildbot
BACKOFF_MIN_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0  # a daemon that is back is found within half a minute
HINTED_MAX: Final = 10_000  # places; more than any farm has free

# Of buildbot-nix's property `cacheStatus`, from nix-eval-jobs: nothing is built for these.
_THERE: Final = frozenset({"cached", "local"})


class WhenDown(StrEnum):
    """What a gate does when the autoscaler cannot be asked for longer than `down_s`."""

    WAIT = "wait"
    PROCEED = "proceed"  # builds without a reservation
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Settings:
    """What an installation may set; times are seconds."""

    # The autoscaler's: unix:/path or http(s)://host:port; several of one farm with commas between.
    url: str = DEFAULT_URL
    token_file: str | None = None  # of a token with the role submit; a socket wants none
    suffixes: tuple[str, ...] = ("/nix-build",)  # builders whose names end so wait for capacity
    eval_suffixes: tuple[str, ...] = ("/nix-eval",)  # and when these begin, it is prepared
    attempts_max: int = 3  # of a build that loses its slot; the last is on demand
    when_down: WhenDown = WhenDown.WAIT
    down_s: float = 600.0
    loss_wait_s: float = 15.0  # for a build that failed to hear whether its slot was lost
    size: int = 1  # places of a slot that a build takes
    features: tuple[str, ...] = ()  # asked for beside those that derivations require
    # Lines of nix.conf for the build, where {slot}, {address}, {system} and {features} stand for
    # what was reserved, so that it builds there and nowhere else.
    nix_config: str = ""
    demand_s: float = 30.0  # between two reports of requests that wait for a worker
    # Places by system that an evaluation will want at least, and for how long they are kept ready.
    eval_hints: Mapping[str, int] = field(default_factory=dict)
    eval_hint_s: float = 900.0
    store_dir: str = "/nix/store"
    master: str = ""  # what tells its reservations from others'; its host and directory

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """From what a master.cfg says; raises OperatorError."""
        known = ", ".join(each.name for each in fields(cls))
        for name in said.keys() - {each.name for each in fields(cls)}:
            raise OperatorError(f"{name}: there is no such setting; there are {known}")
        try:
            settings = TypeAdapter(cls).validate_python(dict(said))
        except ValidationError as error:
            where = error.errors()[0]
            name = ".".join(map(str, where["loc"]))
            raise OperatorError(f"{name}: {where['msg']}") from None
        troubles = settings.troubles()
        if troubles:
            raise OperatorError("; ".join(troubles))
        return settings

    def troubles(self) -> list[str]:
        """What is wrong with them, each with the remedy."""
        found = []
        for url in self.urls:
            if not url.startswith(("unix:/", "http://", "https://")):
                found.append(
                    f"url {url!r} is no address of an autoscaler; write unix:/path/of/its.sock "
                    "or http(s)://host:port"
                )
        if not self.suffixes or not all(self.suffixes):
            found.append("suffixes is empty, so that no builder or every builder would wait")
        if self.attempts_max < 1:
            found.append("attempts_max counts the first attempt too; set it to 1 or more")
        if self.size < 1:
            found.append("size is the number of places a build takes; set it to 1 or more")
        for name in ("down_s", "demand_s", "eval_hint_s"):
            if not 0 < getattr(self, name) <= HINT_MAX_S / 3:
                found.append(
                    f"{name} is a number of seconds above 0 and up to {HINT_MAX_S / 3:.0f}"
                )
        if not 0 <= self.loss_wait_s <= 600:
            found.append("loss_wait_s is a number of seconds up to 600; 0 asks once only")
        if not self.store_dir.startswith("/") or self.store_dir.endswith("/"):
            found.append("store_dir is an absolute path without a slash at its end")
        try:
            self.nix_conf("", "", "", ())
        except (KeyError, ValueError, IndexError, AttributeError):
            found.append("nix_config may name {slot}, {address}, {system} and {features} only")
        return found

    def nix_conf(self, slot: str, address: str, system: str, features: Sequence[str]) -> str:
        """Lines for a build with this reservation."""
        return self.nix_config.format(
            slot=slot, address=address, system=system, features=",".join(features)
        )

    @property
    def urls(self) -> list[str]:
        return [url.strip().rstrip("/") for url in self.url.split(",")]


# --- Names --------------------------------------------------------------------------------------


def project_of(builder: str, suffixes: Sequence[str]) -> str | None:
    """Whose builder this is; None where it ends with none of `suffixes`."""
    for suffix in suffixes:
        if builder.endswith(suffix):
            return builder.removesuffix(suffix) or builder
    return None


def key_prefix(master: str) -> str:
    """What keys of all reservations and hints of a master begin with, and no other master's."""
    prefix = f"buildbot:{quote(master, safe='/', errors='replace')}:"
    if len(prefix) <= KEY_MAX // 2:
        return prefix
    return f"buildbot:{sha256(master.encode(errors='replace')).hexdigest()}:"


def reservation_key(master: str, request: int, attempt: int) -> str:
    """One for each build of a build request."""
    return f"{key_prefix(master)}{request}:{attempt}"


def line(text: str) -> str:
    """What the API takes as a line for people, whatever `text` is."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown[:NAME_MAX] or "-"


# --- The gate -----------------------------------------------------------------------------------


def is_there(cache_status: object) -> bool:
    """Its outputs exist or will be downloaded: there is nothing to reserve for."""
    return cache_status in _THERE


def backoff_s(failures: int, key: str) -> float:
    """How long to wait after so many failures in a row, the first being 1.

    Waits double up to a limit, and differ by `key`, so that all gates do not ask in one moment.
    """
    whole = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(failures - 1, 10))
    share = sha256(f"{key}:{failures}".encode()).digest()[0] / 255
    return whole * (0.5 + 0.5 * share)


def verdict_on_silence(settings: Settings, silent_s: float) -> WhenDown:
    """What to do about an autoscaler that could not be asked for so long."""
    return settings.when_down if silent_s >= settings.down_s else WhenDown.WAIT


class Next(StrEnum):
    """What a gate does about how its reservation stands."""

    BUILD = "build"
    WAIT = "wait"
    ASK_ANEW = "ask anew"  # under another key
    FAIL = "fail"
    STOP = "stop"


def next_of(state: ReservationState, *, is_first: bool) -> Next:
    """`is_first`: it is the answer to asking for it, so that whatever ended it was not meant for
    this build: an earlier life of this master had the same numbers."""
    match state:
        case ReservationState.PENDING:
            return Next.WAIT
        case ReservationState.READY:
            return Next.BUILD
        case ReservationState.FAILED:
            return Next.FAIL
        case ReservationState.LOST | ReservationState.EXPIRED:
            return Next.ASK_ANEW
        case ReservationState.RELEASED | ReservationState.CANCELLED:
            return Next.ASK_ANEW if is_first else Next.STOP


# --- The release --------------------------------------------------------------------------------


class AfterFailure(StrEnum):
    """What becomes of a build that failed."""

    FAILED = "failed"  # by itself: its capacity was there to the end
    RETRY = "retry"
    GIVE_UP = "give up"  # not the build's failure, and tried often enough


def after_failure(settings: Settings, *, is_lost: bool, losses: int) -> AfterFailure:
    """`losses` counts attempts of the build request that lost their slot before this one."""
    if not is_lost:
        return AfterFailure.FAILED
    return AfterFailure.RETRY if losses + 1 < settings.attempts_max else AfterFailure.GIVE_UP


def is_last(settings: Settings, losses: int) -> bool:
    """The attempt after so many lost ones is the last, which is worth an instance on demand."""
    return losses > 0 and losses + 1 >= settings.attempts_max


# --- Hints --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """Work that is alike."""

    project: str
    system: str
    features: tuple[str, ...] = ()


def demand_of(waiting: Iterable[Kind], size: int) -> dict[Kind, int]:
    """Places that requests which no worker has taken will ask for."""
    return {kind: min(HINTED_MAX, n * size) for kind, n in Counter(waiting).items()}


def expected_of(
    project: str, seen: Mapping[Kind, int], least: Mapping[str, int]
) -> dict[Kind, int]:
    """Places that an evaluation of `project` will soon ask for: as many as its latest did, and for
    each system at least those in `least`."""
    found = {kind: places for kind, places in seen.items() if kind.project == project and places}
    for system, places in least.items():
        plain = Kind(project, system)
        found[plain] = max(found.get(plain, 0), places)
    return {kind: min(HINTED_MAX, places) for kind, places in found.items() if places > 0}


def hint_key(master: str, what: str, kind: Kind) -> str:
    """The same for the same kind of work, whatever its names are."""
    names = "\0".join([what, kind.project, kind.system, *kind.features])
    return f"{key_prefix(master)}{what}:{sha256(names.encode()).hexdigest()[:24]}"
