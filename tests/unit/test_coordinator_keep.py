"""Which builds keep their outputs, and which paths are too young to go."""

from hypothesis import given
from hypothesis import strategies as st

from grange.coordinator.keep import (
    DAY_S,
    KeepRule,
    RetentionRules,
    kept_builds,
    old_builds,
    young_paths,
)
from grange.ports import EndedBuild, StoredPath
from grange.scheduler.facts import BuildId, Outcome
from grange.store.path import StorePath

NOW = 1_000 * DAY_S
PATH = StorePath.parse_base("0a" * 16 + "-x")


def ended(
    number: int, days_ago: float, *, name: str = "hello-2.12", project: str = "web",
    outcome: Outcome = Outcome.SUCCEEDED,
) -> EndedBuild:  # fmt: skip
    id_ = BuildId(f"00000000-0000-4000-8000-{number:012}")
    return EndedBuild(id_, project, PATH, name, NOW - days_ago * DAY_S, outcome)


def test_the_last_of_each_name_whatever_its_version() -> None:
    builds = [
        ended(1, 40, name="hello-2.10"),
        ended(2, 50, name="hello-2.9"),
        ended(3, 60, name="hello"),
        ended(4, 60, name="hello-doc-2.9"),
        ended(5, 60, project="other"),
    ]
    rules = RetentionRules(KeepRule(last=1, days=30), {"other": KeepRule(last=0, days=0)})
    assert {each.id for each in kept_builds(builds, rules, NOW)} == {builds[0].id, builds[3].id}


def test_those_of_the_last_days_however_many() -> None:
    builds = [ended(number, number) for number in range(10)]
    rules = RetentionRules(KeepRule(last=2, days=4.5))
    assert kept_builds(builds, rules, NOW) == builds[:5]
    rules = RetentionRules(KeepRule(last=7, days=4.5))
    assert kept_builds(builds, rules, NOW) == builds[:7]


def test_failures_keep_nothing_and_do_not_count() -> None:
    builds = [ended(1, 1, outcome=Outcome.BUILD_FAILED), ended(2, 90)]
    rules = RetentionRules(KeepRule(last=1, days=30))
    assert kept_builds(builds, rules, NOW) == [builds[1]]


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from(["a-1", "a-2", "b"]))), st.integers())
def test_the_order_builds_come_in_does_not_matter(
    drawn: list[tuple[float, str]], seed: int
) -> None:
    builds = [ended(number, days, name=name) for number, (days, name) in enumerate(drawn)]
    turned = builds[seed % (len(builds) + 1) :] + builds[: seed % (len(builds) + 1)]
    rules = RetentionRules(KeepRule(last=2, days=20))
    assert kept_builds(builds, rules, NOW) == kept_builds(turned[::-1], rules, NOW)


def test_records_go_when_old_and_not_kept() -> None:
    builds = [ended(1, 100), ended(2, 100), ended(3, 1)]
    assert old_builds(builds, RetentionRules(), (), NOW) == []
    rules = RetentionRules(builds_days=50)
    assert old_builds(builds, rules, {builds[0].id}, NOW) == [builds[1].id]


def test_young_paths_stay_unless_room_is_short() -> None:
    upstream = "https://cache.example.org"

    def stored(origin: str, seen: float | None, url: str = "nar/x") -> StoredPath:
        return StoredPath(PATH, origin, 1, url, 1, seen)

    new, old = stored("", NOW - DAY_S), stored("", NOW - 8 * DAY_S)
    unmet, source = stored("", None), stored("source", NOW - DAY_S)
    mirrored = stored(upstream, NOW - DAY_S)  # in the cache as well, and can be had again
    away = stored(upstream, NOW - DAY_S, f"{upstream}/nar/x")  # takes no room
    every = [new, old, unmet, source, mirrored, away]
    rules = RetentionRules(unreferenced_days=7)
    young = [new, unmet, source, mirrored, away]
    assert young_paths(every, rules, NOW, is_pressed=False) == young
    assert young_paths(every, rules, NOW, is_pressed=True) == [source, away]
    assert young_paths(every, RetentionRules(unreferenced_days=0), NOW, is_pressed=False) == []
