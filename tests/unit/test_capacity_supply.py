"""What counts as supply, what does not, and how trouble of one slot is kept from the others."""

from dataclasses import replace

from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.facts import (
    Claim,
    DrainCause,
    InstanceId,
    LaunchFailure,
    Need,
    Notice,
    Offering,
    PoolName,
    ReadyBy,
    ReservationId,
    ReservationState,
    Server,
    Slot,
    SlotState,
)
from tests.unit.capacity_place import POOL, SYSTEM, Place


def seated(place: Place) -> Slot:
    (slot,) = (each for each in place.core.slots() if each.instance)
    return slot


def live(place: Place) -> int:
    return len(place.states())


def renew(place: Place) -> None:
    place.tell(*(on.ReservationRenewed(each) for each in place.asked))


def sessions(place: Place, slot: Slot, n: int) -> None:
    server = place.servers[slot.id]
    place.servers[slot.id] = Server(slot.id, server.address, server.mode, True, n)


def test_what_drains_is_no_supply() -> None:
    place = Place()
    place.ask("b")
    place.looks(4)
    place.tell(on.OperatorSaid(on.Verb.DRAIN, seated(place).id))
    other = place.ask("o")
    place.looks(4)
    assert place.state(other) is ReservationState.READY
    assert live(place) == 2


def test_and_yet_it_counts_against_the_most() -> None:
    place = Place(replace(POOL, max=1))
    place.ask("b")
    place.looks(4)
    place.tell(on.OperatorSaid(on.Verb.DRAIN, seated(place).id))
    other = place.ask("o")
    place.looks(10)
    assert place.state(other) is ReservationState.PENDING
    assert len(place.orders) == 1


def test_a_drain_that_does_not_end_holds_nobody_up() -> None:
    place = Place()
    build = place.ask("b")
    place.looks(4)
    slot = seated(place)
    place.tell(on.OperatorSaid(on.Verb.DRAIN, slot.id), on.ReservationReleased(build))
    for n in range(20):
        sessions(place, slot, 1)
        each = place.ask(f"n{n}")
        place.looks(4)
        assert place.state(each) is ReservationState.READY
        place.tell(on.ReservationReleased(each))
    assert place.core.seats[slot.id].slot.state is SlotState.DRAINING
    assert len(place.orders) == 2


def test_the_emptiest_slots_beyond_the_least_go_and_no_other() -> None:
    place = Place(replace(POOL, min=1, capacity=2))
    asked = [place.ask(f"b{n}") for n in range(8)]
    place.looks(4)
    assert live(place) == 4
    for each in asked[1:]:
        place.tell(on.ReservationReleased(each))
    for _ in range(30):
        place.look(30.0)
        renew(place)
    assert live(place) == 1
    assert place.state(asked[0]) is ReservationState.READY


def test_a_slot_that_is_unwell_gets_no_work_and_is_replaced() -> None:
    place = Place()
    build = place.ask("b")
    place.looks(4)
    sick = seated(place)

    def sicken() -> None:
        old = place.servers[sick.id]
        place.servers[sick.id] = replace(old, is_healthy=False)

    place.tell(on.ReservationReleased(build))
    sicken()
    place.look()
    other = place.ask("o")
    assert place.state(other) is ReservationState.PENDING
    for _ in range(20):
        sicken()
        place.look(10.0)
        renew(place)
    told = place.core.reservation(other)
    assert told is not None
    assert told.state is ReservationState.READY
    assert told.slot != sick.id
    causes = [e.slot.drain_cause for e in place.effects if isinstance(e, do.SaveSlot)]
    assert DrainCause.UNHEALTHY in causes


def test_one_that_only_flaps_stays() -> None:
    place = Place()
    place.ask("b")
    place.looks(4)
    slot = seated(place)
    for number in range(60):
        old = place.servers[slot.id]
        place.servers[slot.id] = replace(old, is_healthy=bool(number % 3))
        place.look(10.0)
        renew(place)
    assert place.states() == ["ready"]
    assert len(place.orders) == 1


def test_a_launch_that_never_shows_is_given_up_and_another_made() -> None:
    place = Place(replace(POOL, max=1))
    place.answer = LaunchFailure.UNKNOWN
    build = place.ask("b")
    place.look()
    token = place.orders[0].token
    for _ in range(40):
        place.look(30.0)
        renew(place)
        if place.orders[-1].token != token:
            place.answer = None
    assert place.state(build) is ReservationState.READY
    assert len(place.instances) == 1


def test_launches_of_unknown_outcome_count_against_the_most() -> None:
    place = Place(replace(POOL, max=2))
    place.answer = LaunchFailure.UNKNOWN
    for n in range(5):
        place.ask(f"b{n}")
    place.looks(20)
    assert len({order.token for order in place.orders}) == 2


def test_work_for_another_system_launches_nothing_here() -> None:
    arm = replace(POOL, name=PoolName("arm"), systems=("aarch64-linux",))
    place = Place(POOL, arm, by=ReadyBy.AGENT)
    place.needs = (Need("aarch64-linux", waiting=1), Need("riscv64-linux", waiting=3))
    place.looks(4)
    assert [order.pool.name for order in place.orders] == ["arm"]


def test_vcpus_of_all_pools_have_a_limit() -> None:
    big = Offering("big", "a", 0.1, 0.3, 8)
    pools = [replace(POOL, name=PoolName(n), offerings=(big,)) for n in ("x", "y")]
    place = Place(*pools)
    place.core = type(place.core)(replace(place.rules, vcpus_max=20), pools)
    place.tell(on.Recalled(wall_s=place.core._memory.wall_s))
    for n in range(6):
        place.ask(f"b{n}")
    place.looks(4)
    assert len(place.orders) == 2
    said = " ".join(place.core.explain(pool.name) for pool in pools)
    assert "vcpus_max is 20" in said


def test_a_hint_has_an_end() -> None:
    place = Place()
    place.tell(on.HintCame("eval", Need(SYSTEM, waiting=2, is_hint=True), 60.0))
    place.looks(4)
    assert live(place) == 2
    for _ in range(10):
        place.look(POOL.idle_s / 2)
    assert live(place) == 0


def test_a_hint_counts_with_what_it_announced_and_not_beside_it() -> None:
    place = Place()
    place.tell(on.HintCame("eval", Need(SYSTEM, waiting=2, is_hint=True), 600.0))
    place.looks(4)
    for n in range(2):
        place.ask(f"b{n}")
    place.looks(4)
    assert len(place.orders) == 2


def test_a_mere_recommendation_to_move_drains_without_a_term() -> None:
    place = Place()
    build = place.ask("b")
    place.looks(4)
    slot = seated(place)
    assert slot.instance is not None
    place.tell(on.NoticeCame(Notice(slot.instance, None, "sqs")))
    told = place.core.reservation(build)
    assert told is not None
    assert "may soon be taken away" in told.at_risk
    place.look()
    place.again()
    for _ in range(20):
        place.look(30.0)
        renew(place)
    assert place.state(build) is ReservationState.READY
    place.tell(on.ReservationReleased(build))
    place.looks(5)
    assert live(place) == 0


def test_a_notice_of_who_is_not_here_changes_nothing() -> None:
    place = Place()
    place.look()
    assert place.tell(on.NoticeCame(Notice(InstanceId("i-none"), 120.0, "sqs"))) == []


def test_an_agent_that_joins_at_the_last_moment_is_not_ended() -> None:
    """It may have been given work since we looked."""
    terms = replace(POOL.timeouts, bind_s=60.0, boot_s=60.0)
    place = Place(replace(POOL, timeouts=terms), by=ReadyBy.AGENT)
    place.needs = (Need(SYSTEM, waiting=1),)
    place.looks(1)
    place.observe(presences=())
    place.now += 70.0
    place.tell(on.Tick())
    assert place.states() == ["binding"]
    place.observe(presences=None)
    assert place.states() == ["binding"]
    place.observe()
    assert place.states() == ["ready"]


def test_and_one_that_never_joins_is() -> None:
    terms = replace(POOL.timeouts, bind_s=60.0, boot_s=60.0)
    place = Place(replace(POOL, timeouts=terms), by=ReadyBy.AGENT)
    place.needs = (Need(SYSTEM, waiting=1),)
    place.looks(1)
    place.observe(presences=())
    place.now += 70.0
    place.observe(presences=())
    assert "terminating" in place.states()


def test_a_pause_outlives_its_pool() -> None:
    place = Place()
    place.tell(on.OperatorSaid(on.Verb.PAUSE, pool=POOL.name, reason="upgrade"))
    other = replace(POOL, name=PoolName("other"), max=0)
    place.tell(on.PoolsChanged((other,)))
    place.look()
    place.tell(on.PoolsChanged((POOL,)))
    build = place.ask("b")
    place.looks(3)
    assert (place.orders, "upgrade" in place.core.why(build)) == ([], True)
    place.tell(on.PoolsChanged((other,)))
    place.look()
    place.tell(on.OperatorSaid(on.Verb.RESUME))
    assert do.SavePause(POOL.name, None) in place.effects
    place.tell(on.PoolsChanged((POOL,)))
    place.ask("c")
    place.looks(3)
    assert len(place.orders) == 1


def test_what_is_kept_for_a_pool_that_is_gone_has_no_new_work() -> None:
    place = Place(replace(POOL, max=2, min=2))
    place.looks(4)
    place.tell(on.PoolsChanged((replace(POOL, max=1),)))
    place.tell(
        *(on.ReservationAsked(ReservationId(n), Claim(n, SYSTEM)) for n in ("a", "b")),
    )
    slots = [each.reservation.slot for each in place.core.held.values()]
    assert sorted(map(str, slots)) == ["None", "x86-1"]


def test_priority_goes_before_age() -> None:
    place = Place(replace(POOL, max=1))
    place.look()
    place.is_mute = True
    late, soon = place.ask("late"), place.ask("soon", priority=5)
    place.is_mute = False
    for order in place.orders:
        place.tell(place._launch(order))
    place.looks(4)
    assert place.state(soon) is ReservationState.READY
    assert place.state(late) is ReservationState.PENDING


def test_an_undrained_slot_gets_work_after_the_next_look() -> None:
    """Until then its server is shut."""
    place = Place()
    build = place.ask("b")
    place.looks(4)
    slot = seated(place)
    place.tell(on.OperatorSaid(on.Verb.DRAIN, slot.id), on.ReservationReleased(build))
    place.look()
    place.tell(on.OperatorSaid(on.Verb.UNDRAIN, slot.id))
    other = place.ask("o")
    assert place.state(other) is ReservationState.PENDING
    place.looks(2)
    assert place.state(other) is ReservationState.READY


def test_in_a_pause_launches_of_unknown_outcome_are_not_asked_for_again() -> None:
    """They are waited for in the lists of the cloud."""
    place = Place()
    place.answer = LaunchFailure.UNKNOWN
    place.ask("b")
    place.looks(2)
    n = len(place.orders)
    place.tell(on.OperatorSaid(on.Verb.PAUSE, pool=POOL.name))
    place.looks(20, after_s=20.0)
    assert len(place.orders) == n
    place.answer = None
    place.tell(on.OperatorSaid(on.Verb.RESUME, pool=POOL.name))
    build = place.ask("c")
    place.looks(10, after_s=5.0)
    assert place.state(build) is ReservationState.READY


def test_a_pool_that_comes_back_looks_for_its_instances_before_it_launches() -> None:
    place = Place(replace(POOL, max=2))
    for n in range(2):
        place.ask(f"b{n}")
    place.looks(4)
    place.forget(replace(POOL, name=PoolName("other")))
    place.looks(2)
    place.tell(on.PoolsChanged((replace(POOL, max=2),)), on.PoolsChanged(place.pools))
    build = place.ask("c")
    place.tell(on.Tick())
    assert len(place.orders) == 2
    place.looks(5)
    assert place.state(build) is ReservationState.READY
    assert len(place.orders) == 2


def test_a_slot_that_is_too_old_is_replaced_when_its_work_is_done() -> None:
    place = Place(replace(POOL, min=1, age_max_s=3600.0))
    build = place.ask("b")
    for _ in range(140):
        place.look(30.0)
        renew(place)
    first = place.core.reservation(build)
    assert first is not None
    assert first.slot is not None
    assert place.core.seats[first.slot].slot.drain_cause is DrainCause.AGE
    assert live(place) == 2, "another is there for new work"
    place.tell(on.ReservationReleased(build))
    place.looks(4)
    assert live(place) == 1
    assert len(place.orders) == 2


def test_a_pool_that_comes_back_has_spent_what_it_had() -> None:
    pool = replace(POOL, monthly_budget=0.05)
    place = Place(pool)
    build = place.ask("b")
    for _ in range(40):
        place.look(60.0)
        renew(place)
    place.tell(on.ReservationReleased(build))
    place.looks(10, after_s=60.0)
    place.tell(on.PoolsChanged((replace(pool, name=PoolName("other")),)))
    place.look()
    place.tell(on.PoolsChanged((pool,)))
    place.ask("c")
    place.looks(4)
    assert len(place.orders) == 1
    assert "is used up" in place.core.explain(POOL.name)
