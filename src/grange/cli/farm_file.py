"""The file that `grange serve --config` reads: limits and patience, for all and by project."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from grange.errors import OperatorError
from grange.scheduler.facts import Limits, Policy

_SECTIONS: Final = ("limits", "projects", "retries", "present_outputs")
_PRESENT: Final = ("reuse", "delete")
_LEASE: Final = "lease_s"  # has its own option: agents are told of it
_COUNTS: Final = ("build_tries", "failures_max", "losses_max", "aside_failures")  # the first counts

FactsT = TypeVar("FactsT", Limits, Policy)


@dataclass(frozen=True, slots=True)
class FarmFile:
    limits: Limits  # of every build that is in no project with limits of its own
    projects: Mapping[str, Limits] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)  # but for its lease
    is_fresh: bool = False  # outputs that an agent's store has already are built again

    @property
    def log_bytes_max(self) -> int:
        """What the log of any build may hold; zero for no limit."""
        most = [self.limits.log_bytes, *[each.log_bytes for each in self.projects.values()]]
        return max(most) if all(most) else 0


def read_farm_file(path: Path, limits: Limits) -> FarmFile:
    """Read TOML; `limits` hold where the file sets none.

    Raises OperatorError for a file that cannot be read, a key that is not known, or a value that
    makes no sense.
    """
    try:
        said = tomllib.loads(path.read_text())
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path} is not TOML: {error}") from error
    _only(path, "the file", said, _SECTIONS)
    limits = _facts(path, "[limits]", limits, _table(path, "[limits]", said.get("limits", {})))
    policy = _table(path, "[retries]", said.get("retries", {}))
    if _LEASE in policy:
        raise OperatorError(f"{path}: {_LEASE} is not set in [retries]; say it with --lease")
    present = said.get("present_outputs", _PRESENT[0])
    if present not in _PRESENT:
        raise OperatorError(f"{path}: present_outputs is {present!r}; write one of {_PRESENT}")
    return FarmFile(
        limits,
        {
            name: _project(path, name, limits, value)
            for name, value in _table(path, "[projects]", said.get("projects", {})).items()
        },
        _facts(path, "[retries]", Policy(), policy),
        is_fresh=present == "delete",
    )


def _project(path: Path, name: str, limits: Limits, value: object) -> Limits:
    where = f"[projects.{name}]"
    said = _table(path, where, value)
    _only(path, where, said, ("limits",))
    where = f"[projects.{name}.limits]"
    return _facts(path, where, limits, _table(path, where, said.get("limits", {})))


def _facts(path: Path, where: str, default: FactsT, said: Mapping[str, Any]) -> FactsT:
    """`default` with what was said; numbers of the kind that the fields hold."""
    kinds = {each.name: type(getattr(default, each.name)) for each in fields(default)}
    _only(path, where, said, [name for name in kinds if name != _LEASE])
    for name, value in said.items():
        is_number = isinstance(value, kinds[name] if kinds[name] is int else int | float)
        least = 1 if name in _COUNTS else 0
        if not is_number or isinstance(value, bool) or not least <= value < float("inf"):
            what = "a whole number" if kinds[name] is int else "a number"
            what += f" of at least {least}"
            raise OperatorError(f"{path}: {name} in {where} is {value!r}; {what} is wanted")
    return replace(default, **{name: kinds[name](value) for name, value in said.items()})


def _table(path: Path, where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OperatorError(f"{path}: {where} is {value!r}; a table is wanted")
    return value


def _only(path: Path, where: str, said: Mapping[str, Any], known: Any) -> None:
    if unknown := sorted(said.keys() - set(known)):
        raise OperatorError(
            f"{path}: {where} has no {', '.join(unknown)}; what it may have: {', '.join(known)}"
        )
