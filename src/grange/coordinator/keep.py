"""Which builds keep their outputs: pure rules over what the journal tells."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from grange.ports import EndedBuild, StoredPath
from grange.scheduler.facts import BuildId

DAY_S: Final = 86_400.0
_VERSION: Final = re.compile(r"-[0-9].*\Z")  # as Nix tells a version from a name


@dataclass(frozen=True, slots=True)
class KeepRule:
    """What successful builds of a project keep; either is enough."""

    last: int = 3  # builds of each name, its version left out
    days: float = 30.0
    inputs: bool = False  # also all that it took to build them


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """Zero in a period of records: for ever; in `every_hours` and `free_bytes`: never."""

    keep: KeepRule = field(default_factory=KeepRule)  # of projects that say nothing
    projects: Mapping[str, KeepRule] = field(default_factory=dict)
    unreferenced_days: float = 7.0  # a path that nothing keeps stays so long after it was first met
    every_hours: float = 0.0  # how often it is collected without being asked
    free_bytes: int = 0  # where less is free on the cache's disk, it is collected at once
    promise_s: float = 3600.0  # from "the farm has that" to the build that counts on it
    grace_s: float = 3600.0  # a file outlives its last path, for downloads under way
    orphan_hours: float = 24.0  # a file that no path has may be an upload under way
    builds_days: float = 0.0  # records of builds that keep nothing
    logs_days: float = 0.0  # logs and records of attempts

    def of(self, project: str) -> KeepRule:
        return self.projects.get(project, self.keep)


def kept_builds(
    builds: Iterable[EndedBuild], rules: RetentionRules, now: float
) -> list[EndedBuild]:
    """Those whose outputs are kept by their projects' rules."""
    counts: Counter[tuple[str, str]] = Counter()
    kept = []
    for build in sorted(builds, key=lambda each: (-each.finished, each.id)):
        if not build.outcome.is_success:
            continue
        rule = rules.of(build.project)
        name = build.project, _VERSION.sub("", build.name)
        counts[name] += 1
        if counts[name] <= rule.last or now - build.finished < rule.days * DAY_S:
            kept.append(build)
    return kept


def old_builds(
    builds: Iterable[EndedBuild], rules: RetentionRules, kept: Collection[BuildId], now: float
) -> list[BuildId]:
    """Those whose records go."""
    if not rules.builds_days:
        return []
    since = now - rules.builds_days * DAY_S
    return [each.id for each in builds if each.finished < since and each.id not in kept]


def young_paths(
    paths: Iterable[StoredPath], rules: RetentionRules, now: float, *, is_pressed: bool
) -> list[StoredPath]:
    """Those that were met too lately to go; where room is short, only what can neither be made nor
    be had from an upstream again."""
    since = now - rules.unreferenced_days * DAY_S
    return [
        each
        for each in paths
        if rules.unreferenced_days
        and (each.seen is None or each.seen > since)
        and not (is_pressed and (each.origin == "" or _is_mirrored(each)))
    ]


def _is_mirrored(path: StoredPath) -> bool:
    return "://" in path.origin and "://" not in path.url
