"""What a gate does when, without a Buildbot."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grange.buildbot import policy
from grange.buildbot.policy import AfterFailure, Kind, Next, Settings, WhenDown
from grange.capacity.facts import ReservationState
from grange.client.capacity_models import HintRequest, ReserveRequest
from grange.errors import OperatorError

ANY_TEXT = st.text(max_size=400)


@given(ANY_TEXT, st.integers(1, 10**9), st.integers(1, 1000))
def test_keys_are_taken_by_the_api_and_begin_with_the_masters_own(
    master: str, request: int, attempt: int
) -> None:
    key = policy.reservation_key(master, request, attempt)
    assert key.startswith(policy.key_prefix(master))
    ReserveRequest(key=f"{key}:12", system="x86_64-linux")


@given(ANY_TEXT, ANY_TEXT | st.integers(1, 9).map(str))
@example("host:/srv", "1")
def test_masters_of_other_names_have_other_keys(one: str, more: str) -> None:
    other = f"{one}:{more}"
    prefixes = policy.key_prefix(one), policy.key_prefix(other)
    # Nor does one begin with the other, so that no master releases what another holds.
    assert not policy.reservation_key(one, 1, 1).startswith(prefixes[1])
    assert not policy.reservation_key(other, 1, 1).startswith(prefixes[0])


@given(ANY_TEXT)
def test_any_name_becomes_a_line_that_the_api_takes(text: str) -> None:
    shown = policy.line(text)
    ReserveRequest(key="k", system="s", project=shown, by=shown)
    HintRequest(key=policy.hint_key(text, "eval", Kind(text, "s")), system="s", project=shown)


def test_projects_are_what_stands_before_the_suffix() -> None:
    suffixes = ("/nix-build", "/package")
    assert policy.project_of("org/repo/nix-build", suffixes) == "org/repo"
    assert policy.project_of("org/repo/nix-eval", suffixes) is None
    assert policy.project_of("/package", suffixes) == "/package"


@given(st.integers(1, 10_000), ANY_TEXT)
def test_waits_grow_up_to_a_limit_and_are_never_nothing(failures: int, key: str) -> None:
    wait_s = policy.backoff_s(failures, key)
    assert policy.BACKOFF_MIN_S / 2 <= wait_s <= policy.BACKOFF_MAX_S
    assert wait_s <= policy.BACKOFF_MIN_S * 2.0 ** min(failures - 1, 10)
    assert wait_s == policy.backoff_s(failures, key)


def test_gates_do_not_ask_in_one_moment() -> None:
    assert len({policy.backoff_s(6, str(number)) for number in range(50)}) > 20


@pytest.mark.parametrize("chosen", list(WhenDown))
def test_until_down_s_every_gate_waits(chosen: WhenDown) -> None:
    settings = Settings(when_down=chosen, down_s=10.0)
    assert policy.verdict_on_silence(settings, 9.9) is WhenDown.WAIT
    assert policy.verdict_on_silence(settings, 10.0) is chosen


@given(st.integers(1, 20))
def test_lost_builds_are_tried_as_often_as_said_the_last_on_demand(attempts_max: int) -> None:
    settings = Settings(attempts_max=attempts_max)
    on_demand, losses = [], 0
    while True:
        on_demand.append(policy.is_last(settings, losses))
        after = policy.after_failure(settings, is_lost=True, losses=losses)
        if after is not AfterFailure.RETRY:
            break
        losses += 1
    assert after is AfterFailure.GIVE_UP
    assert len(on_demand) == attempts_max
    assert on_demand[-1] is (attempts_max > 1), "who is tried once is tried as its pool has it"
    assert not any(on_demand[:-1])


@given(st.integers(0, 20), st.integers(1, 20))
def test_what_failed_by_itself_has_failed(losses: int, attempts_max: int) -> None:
    settings = Settings(attempts_max=attempts_max)
    assert policy.after_failure(settings, is_lost=False, losses=losses) is AfterFailure.FAILED


@pytest.mark.parametrize("is_first", [True, False])
def test_a_gate_lets_builds_through_with_a_slot_only(is_first: bool) -> None:
    passed = {s for s in ReservationState if policy.next_of(s, is_first=is_first) is Next.BUILD}
    assert passed == {ReservationState.READY}
    waits = {s for s in ReservationState if policy.next_of(s, is_first=is_first) is Next.WAIT}
    assert waits == {ReservationState.PENDING}


def test_who_takes_a_reservation_back_stops_its_build_but_not_a_later_one_of_that_number() -> None:
    taken = ReservationState.CANCELLED
    assert policy.next_of(taken, is_first=False) is Next.STOP
    assert policy.next_of(taken, is_first=True) is Next.ASK_ANEW
    # What nobody can serve is asked for once.
    assert policy.next_of(ReservationState.FAILED, is_first=True) is Next.FAIL


@given(st.lists(st.sampled_from([Kind("p", "a"), Kind("p", "b", ("kvm",)), Kind("q", "a")])))
def test_demand_counts_places(waiting: list[Kind]) -> None:
    demand = policy.demand_of(waiting, 3)
    assert sum(demand.values()) == 3 * len(waiting)
    assert all(demand.values())


def test_an_evaluation_expects_what_its_latest_brought_and_the_least_that_is_set() -> None:
    mine, other = Kind("p", "x86_64-linux"), Kind("q", "x86_64-linux")
    kvm = Kind("p", "x86_64-linux", ("kvm",))
    seen = {mine: 2, kvm: 7, other: 50}
    least = {"x86_64-linux": 4, "aarch64-linux": 1, "riscv64-linux": 0}
    assert policy.expected_of("p", seen, least) == {
        mine: 4,
        kvm: 7,
        Kind("p", "aarch64-linux"): 1,
    }


def test_settings_are_read_as_a_master_cfg_writes_them() -> None:
    settings = Settings.of({"suffixes": ["/nix-build", "/x"], "when_down": "proceed", "down_s": 5})
    assert settings.suffixes == ("/nix-build", "/x")
    assert settings.when_down is WhenDown.PROCEED
    assert Settings.of({"url": "http://a:1/, unix:/b"}).urls == ["http://a:1", "unix:/b"]


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"url": "localhost:80"}, "no address of an autoscaler"),
        ({"suffixes": ()}, "suffixes is empty"),
        ({"suffixes": ("",)}, "suffixes is empty"),
        ({"attempts_max": 0}, "attempts_max counts the first attempt"),
        ({"size": 0}, "size is the number of places"),
        ({"down_s": 0}, "down_s is a number of seconds"),
        ({"down_s": float("nan")}, "down_s is a number of seconds"),
        ({"loss_wait_s": -1}, "loss_wait_s"),
        ({"store_dir": "nix/store"}, "store_dir is an absolute path"),
        ({"when_down": "panic"}, "when_down: "),
        ({"suffix": "/nix-build"}, "suffix: "),
        ({"nix_config": "builders = {host}"}, "nix_config may name"),
        ({"nix_config": "builders = {"}, "nix_config may name"),
    ],
)
def test_wrong_settings_are_named_with_the_remedy(said: dict[str, object], complaint: str) -> None:
    with pytest.raises(OperatorError, match=complaint):
        Settings.of(said)
