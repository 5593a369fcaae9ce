"""The order of a hook's deliveries, whatever ends, fails and comes in between."""

from hypothesis import given, settings
from hypothesis import strategies as st

from grange.coordinator.hooks.lanes import Entry, Lanes
from grange.ports import FarmEvent
from grange.scheduler.facts import EventKind


def event(id_: int, lane: str) -> FarmEvent:
    return FarmEvent(id_, EventKind.BUILD_STARTED, 0.0, lane, "p", {})


def add(lanes: Lanes, *names: str) -> None:
    for id_, name in enumerate(names, 1):
        lanes.add(Entry(event(id_, name)))


def taken(lanes: Lanes, now: float = 0.0) -> list[int]:
    found = []
    while (entry := lanes.take(now)) is not None:
        found.append(entry.event.id)
    return found


def entry(lanes: Lanes, id_: int) -> Entry:
    return next(each for each in lanes if each.event.id == id_)


def test_one_of_each_lane_goes_and_the_oldest_first() -> None:
    lanes = Lanes(3)
    add(lanes, "a", "a", "b", "c", "d")
    assert taken(lanes) == [1, 3, 4]
    lanes.ended(entry(lanes, 3))
    assert taken(lanes) == [5]
    lanes.ended(entry(lanes, 1))
    assert taken(lanes) == [2]
    assert lanes.next_at() is None


def test_a_failure_holds_up_its_own_lane_and_no_other() -> None:
    lanes = Lanes(2)
    add(lanes, "a", "a", "b")
    assert taken(lanes) == [1, 3]
    lanes.failed(entry(lanes, 1), 50.0, "no")
    lanes.ended(entry(lanes, 3))
    assert taken(lanes, 49.0) == []
    assert lanes.next_at() == 50.0
    assert [each.is_stuck for each in lanes] == [True, True]
    assert taken(lanes, 50.0) == [1]
    assert (entry(lanes, 1).tries, entry(lanes, 1).error) == (1, "no")
    lanes.ended(entry(lanes, 1))
    assert [each.is_stuck for each in lanes] == [False]
    assert taken(lanes, 50.0) == [2]


def test_one_taken_up_again_goes_before_what_is_behind_it() -> None:
    lanes = Lanes(1)
    lanes.add(Entry(event(7, "a")))
    lanes.add(Entry(event(5, "a")))
    assert taken(lanes) == [5]


def test_what_is_dropped_holds_up_nobody() -> None:
    lanes = Lanes(1)
    add(lanes, "a", "a")
    assert taken(lanes) == [1]
    assert not lanes.drop(1)  # it is on its way
    lanes.failed(entry(lanes, 1), 50.0, "no")
    assert lanes.drop(1)
    assert not lanes.drop(1)
    assert taken(lanes, 0.0) == [2]


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from("abc"), max_size=20),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 99), st.sampled_from(["ok", "fail", "fail", "drop"]))),
)
def test_each_lane_is_told_in_order_at_most_so_many_at_once(
    names: list[str], parallel: int, ends: list[tuple[int, str]]
) -> None:
    lanes = Lanes(parallel)
    add(lanes, *names)
    told: dict[str, list[int]] = {}
    gone: set[int] = set()
    flying: list[Entry] = []
    now = 0.0
    ends = [*ends, *[(0, "ok")] * 100]
    for which, how in ends:
        while (entry := lanes.take(now)) is not None:
            flying.append(entry)
        assert len(flying) == lanes.flying <= parallel
        assert len({each.event.lane for each in flying}) == len(flying), "one at once in a lane"
        if how == "drop":
            event_id = which % 20 + 1
            if lanes.drop(event_id):
                gone.add(event_id)
        elif flying:
            entry = flying.pop(which % len(flying))
            if how == "ok":
                lanes.ended(entry)
                told.setdefault(entry.event.lane, []).append(entry.event.id)
            else:
                lanes.failed(entry, now + which, "no")
        elif (next_at := lanes.next_at()) is not None:
            now = max(now, next_at)
    assert len(lanes) == 0, "all end"
    assert all(ids == sorted(ids) for ids in told.values())
    everything = [id_ for ids in told.values() for id_ in ids]
    assert sorted([*everything, *gone]) == list(range(1, len(names) + 1)), "each once"
