"""Layers of a closure: complete, within the budget, the same for the same facts, and lasting."""

import random
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.oci.descriptor import Member, layer_key, root_key
from grange.oci.plan import BUDGET, PATHS_MAX, Group, plan
from grange.store.hash import Hash, base32_encode
from grange.store.narinfo import PathInfo
from grange.store.path import StoreDir, StorePath

CODEC = "gzip-6-zlib-1.3"


def closure(
    sizes: Sequence[int], references: Sequence[set[int]], changed: int | None = None
) -> list[PathInfo]:
    """Path `n` refers to earlier ones; with `changed`, that and all that needs it is built anew."""
    infos: list[PathInfo] = []
    anew: set[int] = set()
    for number, (size, earlier) in enumerate(zip(sizes, references, strict=True)):
        if number == changed or anew & earlier:
            anew.add(number)
        digest = sha256(f"{number} {number in anew}".encode()).digest()
        path = StorePath.parse_base(f"{base32_encode(digest[:20])}-package-{number}")
        refers = {infos[each].path for each in earlier}
        if number % 3 == 0:
            refers.add(path)
        infos.append(PathInfo(path, Hash("sha256", digest), size, tuple(sorted(refers))))
    return infos


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[int], list[set[int]]]:
    count = draw(st.integers(1, 60))
    sizes = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    chance = draw(st.randoms(use_true_random=False))
    references = [
        {chance.randrange(number) for _ in range(chance.randrange(4))} if number else set()
        for number in range(count)
    ]
    return sizes, references


def large(count: int, seed: int = 7) -> tuple[list[int], list[set[int]]]:
    """Sizes over four powers of ten, and references as packages have them."""
    chance = random.Random(seed)
    sizes = [chance.randrange(1, 100) * 10 ** chance.randrange(2, 6) for _ in range(count)]
    near = [
        {chance.randrange(max(0, number - 30), number) for _ in range(2)} if number else set()
        for number in range(count)
    ]
    return sizes, near


def names(groups: Sequence[Group]) -> list[list[str]]:
    return [sorted(member.path.name[8:] for member in group.members) for group in groups]


@given(graphs(), st.integers(2, 70), st.randoms())
def test_every_path_is_in_one_layer_and_order_is_none(
    graph: tuple[list[int], list[set[int]]], budget: int, chance: random.Random
) -> None:
    infos = closure(*graph)
    groups = plan(infos, budget)
    members = [member for group in groups for member in group.members]
    assert sorted(members) == sorted(Member(info.path, info.nar_hash) for info in infos)
    assert all(group.members == tuple(sorted(group.members)) != () for group in groups)
    assert sum(group.nar_bytes for group in groups) == sum(info.nar_bytes for info in infos)
    assert len(groups) == min(len(infos), budget - 1)
    shuffled = [
        replace(info, references=tuple(chance.sample(info.references, len(info.references))))
        for info in chance.sample(infos, len(infos))
    ]
    assert plan([*shuffled, *infos[:3]], budget) == groups


@given(graphs(), st.integers(2, 70))
def test_a_layer_of_one_lies_above_the_layers_of_one_it_needs(
    graph: tuple[list[int], list[set[int]]], budget: int
) -> None:
    place: dict[StorePath, int] = {}
    for number, group in enumerate(plan(closure(*graph), budget)):
        if len(group.members) == 1:
            place[group.members[0].path] = number
    for info in closure(*graph):
        for reference in info.references:
            if info.path in place and reference in place:
                assert place[reference] <= place[info.path]


def test_the_largest_are_alone_and_the_rest_goes_with_who_needs_it() -> None:
    # 5 and 6 are large; 0 is shared by both, 1 is for 5 alone, 2 and 3 for 6, 4 for none.
    sizes = [10, 9, 8, 7, 6, 1000, 900]
    references: list[set[int]] = [set(), set(), set(), {2}, set(), {0, 1}, {0, 3}]
    infos = closure(sizes, references)
    groups = plan(infos, 7)
    assert names(groups) == [["0"], ["1"], ["4"], ["2", "3"], ["5"], ["6"]]
    told = [[path.name[8:] for path in group.needed_by] for group in groups]
    assert [sorted(each) for each in told] == [["5", "6"], ["5"], [], ["6"], [], []]
    assert [group.nar_bytes for group in groups] == [10, 9, 6, 15, 1000, 900]


def test_an_image_of_no_paths_has_no_layers_of_paths() -> None:
    assert plan([]) == ()


def test_the_plan_is_the_same_bytes_everywhere() -> None:
    groups = plan(closure(*large(300)))
    assert len(groups) == BUDGET - 1
    told = "\n".join(f"{layer_key(CODEC, group.members)} {group.nar_bytes}" for group in groups)
    assert sha256(told.encode()).hexdigest() == PLAN_GOLDEN


PLAN_GOLDEN = "ecb1c4a44da7cb5aeb6f624cf077757baf0cdac310015702076617e71e92377e"


def _fetched_again(old: Sequence[Group], new: Sequence[Group]) -> int:
    known = {layer_key(CODEC, group.members) for group in old}
    return sum(group.nar_bytes for group in new if layer_key(CODEC, group.members) not in known)


def test_one_changed_file_costs_little_more_than_what_is_built_anew() -> None:
    sizes, references = large(200)
    before = plan(closure(sizes, references))
    total, anew, again = 0, 0, 0
    for changed in range(0, 200, 8):
        infos = closure(sizes, references, changed)
        same = set(closure(sizes, references))
        again += _fetched_again(before, plan(infos))
        anew += sum(info.nar_bytes for info in infos if info not in same)
        total += sum(sizes)
    # What one catch-all layer costs is `total`; nothing can cost less than `anew`, a third of it.
    assert again - anew < 0.05 * total


def test_a_change_that_nothing_depends_on_changes_one_layer() -> None:
    sizes, references = large(200)
    top = 199
    before = plan(closure(sizes, references))
    after = plan(closure(sizes, references, top))
    keys = {layer_key(CODEC, group.members) for group in before}
    changed = [group for group in after if layer_key(CODEC, group.members) not in keys]
    assert len(changed) == 1
    assert any(member.path.name == f"package-{top}" for member in changed[0].members)


def test_what_changes_last_lies_above_what_stays() -> None:
    """Clients reuse the layers below the first that changed."""
    sizes, references = [5, 4, 3, 2], [set(), {0}, {1}, {2}]
    before, after = plan(closure(sizes, references)), plan(closure(sizes, references, changed=2))
    assert names(before) == names(after) == [["0"], ["1"], ["2"], ["3"]]
    assert [group.members for group in before[:2]] == [group.members for group in after[:2]]


@pytest.mark.parametrize("changed", range(0, 40, 4))
def test_paths_of_one_size_stay_where_they_are_when_they_are_built_anew(changed: int) -> None:
    alike = [100] * 40, [{number - 1} if number % 4 else set[int]() for number in range(40)]
    assert names(plan(closure(*alike, changed), 16)) == names(plan(closure(*alike), 16))


def test_a_closure_with_a_hole_is_refused() -> None:
    infos = closure([1, 2], [set(), {0}])
    with pytest.raises(PeerError, match=r"lacks .*package-0, to which .*package-1 refers"):
        plan(infos[1:])


def test_a_path_with_two_contents_is_refused() -> None:
    (info,) = closure([1], [set()])
    with pytest.raises(PeerError, match="twice"):
        plan([info, replace(info, nar_hash=Hash.of("sha256", b""))])


def test_a_closure_too_large_is_refused() -> None:
    (info,) = closure([1], [set()])
    many = [
        replace(info, path=StorePath(f"{info.path}{number}"), references=())
        for number in range(PATHS_MAX + 1)
    ]
    with pytest.raises(PeerError, match=f"{PATHS_MAX} are the most"):
        plan(many)


def test_keys_tell_all_that_decides_a_layers_bytes() -> None:
    one, two = (Member(info.path, info.nar_hash) for info in closure([1, 1], [set(), set()]))
    key = layer_key(CODEC, [one, two], format_version="tar-1")
    assert key == KEY_GOLDEN
    assert layer_key(CODEC, [two, one], format_version="tar-1") == key
    others = {
        layer_key(CODEC, [one], format_version="tar-1"),
        layer_key("gzip-9-zlib-1.3", [one, two], format_version="tar-1"),
        layer_key(CODEC, [one, two], format_version="tar-2"),
        layer_key(CODEC, [one, two], StoreDir("/gnu/store"), format_version="tar-1"),
        layer_key(CODEC, [one, replace(two, nar_hash=one.nar_hash)], format_version="tar-1"),
    }
    assert len(others | {key}) == 6


def test_the_key_of_an_images_root_tells_its_packages_and_files() -> None:
    one, two = (Member(info.path, info.nar_hash) for info in closure([1, 1], [set(), set()]))
    files = {b"etc/passwd": b"root", b"etc/group": b"wheel"}
    key = root_key(CODEC, [one, two], files, format_version="tar-1")
    assert key == ROOT_KEY_GOLDEN
    turned = dict(reversed([*files.items()]))
    assert root_key(CODEC, [two, one], turned, format_version="tar-1") == key
    others = {
        root_key(CODEC, [one], files, format_version="tar-1"),
        root_key(CODEC, [one, two], {}, format_version="tar-1"),
        root_key(CODEC, [one, two], {**files, b"etc/group": b""}, format_version="tar-1"),
        root_key("gzip-9-zlib-1.3", [one, two], files, format_version="tar-1"),
        root_key(CODEC, [one, two], files, StoreDir("/gnu/store"), format_version="tar-1"),
        root_key(CODEC, [one, two], files, format_version="tar-2"),
        layer_key(CODEC, [one, two], format_version="tar-1"),
    }
    assert len(others | {key}) == 8


ROOT_KEY_GOLDEN = "f77f90590418b40df965def4d007d9c6054d52004cd55db72df46b20777f7573"
KEY_GOLDEN = "cb5dd2a85c90e65a9572eca7a07b29a1b710badfc441f3ae1d73970319827a68"
