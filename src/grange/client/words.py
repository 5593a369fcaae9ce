"""Every outcome in plain words: what happened, whose fault it is, and what to do."""

from dataclasses import dataclass
from typing import Final

from grange.scheduler.facts import Cause, Outcome

BUILD: Final = "the build"
REQUEST: Final = "the request"
FARM: Final = "the farm"
NOBODY: Final = "nobody"

_READ_LOG: Final = "read the end of its log, mend it, and build again"
_RAISE: Final = "make it use less, or allow more with a larger limit, and build again"
_AGENTS: Final = "look at its agents (`grange agents`), then `grange retry`"


@dataclass(frozen=True, slots=True)
class Words:
    happened: str  # continues "hello-2.12: "
    fault: str
    advice: str  # an imperative without a full stop; "" where there is nothing to do


_WORDS: Final = {
    Outcome.SUCCEEDED: Words("it was built", NOBODY, ""),
    Outcome.CACHED: Words("everything was in the cache already", NOBODY, ""),
    Outcome.BUILD_FAILED: Words("its builder failed", BUILD, _READ_LOG),
    Outcome.FAILED_WITH_OUTPUT: Words(
        "it built, and says in nix-support/failed that it failed", BUILD, _READ_LOG
    ),
    Outcome.TIMED_OUT: Words("it ran longer than allowed", BUILD, _RAISE),
    Outcome.SILENT_TOO_LONG: Words("it logged nothing for longer than allowed", BUILD, _RAISE),
    Outcome.LOG_LIMIT: Words("it logged more than allowed", BUILD, _RAISE),
    Outcome.OUTPUT_TOO_LARGE: Words("an output is larger than allowed", BUILD, _RAISE),
    Outcome.NOT_DETERMINISTIC: Words(
        "built again, it came out otherwise",
        BUILD,
        "find what the differing files depend on: time, order, chance or the machine",
    ),
    Outcome.DEPENDENCY_FAILED: Words(
        "something it needs failed", BUILD, "look at what failed; it is named with it"
    ),
    Outcome.CANCELLED: Words("it was cancelled", NOBODY, "`grange retry` takes it up again"),
    Outcome.REQUEST_WRONG: Words(
        "it cannot be built as it was asked for", REQUEST, "change the request and submit it again"
    ),
    Outcome.INPUTS_MISSING: Words(
        "inputs of it are gone from the farm",
        FARM,
        "submit it again from where its sources are: what is gone is sent anew",
    ),
    Outcome.FETCH_FAILED: Words("fetching its inputs failed", FARM, _AGENTS),
    Outcome.UPLOAD_FAILED: Words("uploading its outputs failed", FARM, _AGENTS),
    Outcome.AGENT_FAILED: Words("its agent failed", FARM, _AGENTS),
    Outcome.AGENT_LOST: Words(
        "its agents were lost",
        FARM,
        "see whether the build itself brings them down, such as for want of memory; then "
        "`grange retry`",
    ),
    Outcome.AGENT_OUT_OF_DISK: Words(
        "its agent's disk was full", FARM, "make room on the agent, then `grange retry`"
    ),
    Outcome.OUTPUT_NOT_REMOVED: Words(
        "an older output of it could not be removed from the agent's store",
        FARM,
        "see what keeps it there, such as a root for the garbage collector; then `grange retry`",
    ),
    Outcome.UNSUPPORTED: Words(
        "no agent can build it",
        REQUEST,
        "start an agent that offers what it asks for, or ask for less; then `grange retry`",
    ),
    Outcome.RETURNED: Words("its agent gave it back unbuilt", FARM, ""),
}


def words_of(outcome: Outcome) -> Words:
    return _WORDS[outcome]


def explain(cause: Cause) -> str:
    """What happened, with the limit that was overrun where there is one."""
    happened = words_of(cause.outcome).happened
    limit = cause.limit
    if not limit:
        return happened
    match cause.outcome:
        case Outcome.TIMED_OUT | Outcome.SILENT_TOO_LONG:
            return f"{happened}: {limit} s is its limit"
        case Outcome.LOG_LIMIT | Outcome.OUTPUT_TOO_LARGE:
            return f"{happened}: {limit:,} bytes is its limit"
        case _:
            return happened


def said_of(outcome: str | None) -> Words:
    """As `words_of`, for a value that a farm sent: one of a newer release is its own words."""
    try:
        return words_of(Outcome(outcome or ""))
    except ValueError:
        return Words(outcome or "", FARM, "")
