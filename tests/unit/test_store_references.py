"""Scanning for references: exactly what a naive search finds, whatever the chunks."""

import random
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.store.hash import BASE32_CHARS
from grange.store.references import ReferenceScanner


def hash_parts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(BASE32_CHARS, k=32)) for _ in range(count)]


def scan(candidates: list[str], chunks: list[bytes]) -> set[str]:
    scanner = ReferenceScanner(candidates)
    for chunk in chunks:
        scanner.feed(memoryview(bytearray(chunk)))
    return scanner.found


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


# Few characters make runs that resemble each other; the last pieces end a run.
pieces = st.one_of(
    st.sampled_from(hash_parts(12)).map(str.encode),
    st.tuples(st.sampled_from(hash_parts(12)), st.integers(1, 31)).map(
        lambda p: p[0][: p[1]].encode()
    ),
    st.tuples(st.sampled_from(hash_parts(12)), st.integers(1, 31)).map(
        lambda p: p[0][p[1] :].encode()
    ),
    st.integers(1, 1500).map(lambda size: b"0" * size),
    st.integers(1, 5000).map(bytes),
    st.text(BASE32_CHARS, min_size=1, max_size=40).map(str.encode),
    st.sampled_from([b"/nix/store/", b"e", b"\xff", b"-"]),
)


@given(st.lists(pieces, max_size=12).map(b"".join), st.integers(0, 12), st.data())
def test_finds_what_a_naive_search_finds(data: bytes, count: int, draw: st.DataObject) -> None:
    candidates = hash_parts(12)[:count]
    if len(data) > 32:
        at = draw.draw(st.integers(0, len(data) - 32))
        if set(place := data[at : at + 32].decode("latin-1")) <= set(BASE32_CHARS):
            candidates.append(place)
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=6))
    expected = {candidate for candidate in candidates if candidate.encode() in data}
    assert scan(candidates, cut(data, cuts)) == expected


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("filler", [b"\0", b"0", b"e"])
@pytest.mark.parametrize("sizes", [(10_000, 10_000), (10_000, 40), (40, 10_000), (40, 40)])
def test_finds_what_lies_across_a_border(count: int, filler: bytes, sizes: tuple[int, int]) -> None:
    candidates = hash_parts(count)
    target = candidates[-1]
    for before in range(33):
        first = filler * (sizes[0] - before) + target[:before].encode()
        second = target[before:].encode() + filler * (sizes[1] - 32 + before)
        assert scan(candidates, [first, second]) == {target}


@pytest.mark.parametrize("count", [3, 20])
def test_finds_what_comes_in_single_bytes(count: int) -> None:
    candidates = hash_parts(count)
    data = f"/nix/store/{candidates[0]}-x{candidates[1]}{candidates[2]}".encode()
    assert scan(candidates, [bytes([byte]) for byte in data]) == set(candidates[:3])


@pytest.mark.parametrize("run", [32, 33, 40, 511, 512, 513, 700, 5000])
def test_finds_at_every_place_of_a_run(run: int) -> None:
    """Among base 32 on both sides, where only the characters tell a hash part apart."""
    candidates = hash_parts(20)
    target = candidates[7].encode()
    draw = random.Random(run)
    spots = range(run - 31)
    for at in {*spots[:40], *spots[-40:]}:
        noise = "".join(draw.choices(BASE32_CHARS, k=run - 32)).encode()
        data = b"=" * draw.randrange(8) + noise[:at] + target + noise[at:] + b"=" * 5000
        assert scan(candidates, [data]) == {target.decode()}
        wrong = bytes([*target[:-1], ord("0") if target[-1] != ord("0") else ord("1")])
        assert scan(candidates, [data.replace(target, wrong)]) == set()


def test_finds_at_every_alignment_next_to_what_ends_a_run() -> None:
    candidates = hash_parts(20)
    for shift in range(40):
        for end in (b"e", b"\0", b"E", b"u", b"/", b""):
            data = b"\xff" * (5000 + shift) + end + candidates[3].encode() + end
            assert scan(candidates, [data]) == {candidates[3]}


def test_finds_many_at_once_and_overlapping() -> None:
    long = "".join(hash_parts(40, seed=1))
    candidates = [long[at : at + 32] for at in range(0, len(long) - 32, 5)]
    assert scan(candidates, [b"-" * 5000 + long.encode()]) == set(candidates)
    assert scan(candidates, [long.encode()]) == set(candidates)


def test_finds_behind_false_and_true_runs_of_one_chunk() -> None:
    candidates = hash_parts(20)
    others = hash_parts(20, seed=2)
    text = "/".join(f"{other}/{mine}" for other, mine in zip(others, candidates, strict=True))
    assert scan(candidates, [text.encode()]) == set(candidates)


def test_goes_on_finding_when_few_are_missing() -> None:
    candidates = hash_parts(8)
    chunks = [b"-" * 5000 + candidate.encode() for candidate in candidates]
    assert scan(candidates, chunks) == set(candidates)


def test_nothing_to_find_costs_nothing() -> None:
    scanner = ReferenceScanner([])
    scanner.feed(b"0" * 5000)
    assert scanner.found == set()
    assert scanner._tail == b""  # it did not even look


def test_nothing_left_to_find_costs_nothing() -> None:
    candidates = hash_parts(3)
    scanner = ReferenceScanner(candidates)
    scanner.feed("-".join(candidates).encode())
    tail = scanner._tail
    scanner.feed(b"more")
    assert scanner.found == set(candidates)
    assert scanner._tail == tail


def test_does_not_keep_what_it_was_fed() -> None:
    chunk = random.Random(3).randbytes(1 << 16)
    scanner = ReferenceScanner(hash_parts(100))
    scanner.feed(chunk)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        scanner.feed(chunk)
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert held < 2000
    assert len(scanner._tail) == 31
