"""Submission: what the farm lacks arrives whole and in order, once."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from grange.client import sources as sources_module
from grange.client import submit as submit_module
from grange.client.api import GrangeClient
from grange.client.closure import StorePlace
from grange.client.models import SubmitRequest
from grange.client.submit import submit
from grange.errors import OutsideError, PeerError
from grange.store.content import ContentAddress
from grange.store.hash import Hash
from grange.store.nar import nar_of_text
from grange.store.narinfo import PathInfo
from grange.store.path import NIX_STORE, StorePath
from tests.unit.fake_farm import FakeFarm, running
from tests.unit.test_client_closure import name, write

UUID = "00000000-0000-4000-8000-000000000000"


def source(label: str) -> StorePath:
    return StorePath.parse_base(f"{label:0>32}-{label}.sh")


class MemoryStore:
    """A store that holds small sources, by path: references and text."""

    def __init__(self, holds: dict[StorePath, tuple[list[StorePath], bytes]]) -> None:
        self._holds = holds
        self.is_closed = False

    async def path_info(self, path: StorePath) -> PathInfo | None:
        if path not in self._holds:
            return None
        references, text = self._holds[path]
        nar = nar_of_text(text)
        address = ContentAddress.parse(f"text:{Hash.of('sha256', text).nix()}")
        return PathInfo(
            path, Hash.of("sha256", nar), len(nar), tuple(references), content_address=address
        )

    async def nar(self, path: StorePath) -> AsyncIterator[bytes]:
        nar = nar_of_text(self._holds[path][1])
        yield nar[:50]
        yield nar[50:]

    async def aclose(self) -> None:
        self.is_closed = True


@pytest.fixture
def farm() -> Iterator[FakeFarm]:
    with running(FakeFarm()) as farm:
        yield farm


def run(farm: FakeFarm, directory: Path, root: StorePath, store: MemoryStore) -> None:
    place = StorePlace(NIX_STORE, str(directory))
    request = SubmitRequest(drv_paths=[NIX_STORE.show(root)], ids=[UUID])
    with GrangeClient(farm.url) as client:
        submit(client, request, place, lambda: store, lambda _: None)


def test_everything_arrives_in_order(farm: FakeFarm, tmp_path: Path) -> None:
    write(tmp_path, "1", [], [source("a")])
    root = write(tmp_path, "2", ["1"], [source("a"), source("b")])
    store = MemoryStore(
        {
            source("a"): ([], b"a"),
            source("b"): ([source("c")], b"b refers to c"),
            source("c"): ([source("c")], b"c refers to itself"),
        }
    )
    run(farm, tmp_path, root, store)
    assert [each for each, _ in farm.derivations] == [name("1"), root]
    assert farm.derivations[1][1] == (tmp_path / root).read_bytes()
    assert farm.nars == {
        source("a").hash_part: nar_of_text(b"a"),
        source("b").hash_part: nar_of_text(b"b refers to c"),
        source("c").hash_part: nar_of_text(b"c refers to itself"),
    }
    assert all(claim.content_address.startswith("text:sha256:") for claim in farm.claims)
    assert [each.drv_paths for each in farm.submitted] == [[NIX_STORE.show(root)]]
    assert store.is_closed


def test_what_the_farm_has_is_not_sent(farm: FakeFarm, tmp_path: Path) -> None:
    write(tmp_path, "1", [], [source("a")])
    root = write(tmp_path, "2", ["1"], [source("b")])
    farm.has_derivations = {NIX_STORE.show(name("1"))}
    farm.has_sources = {NIX_STORE.show(source("a"))}
    run(farm, tmp_path, root, MemoryStore({source("b"): ([], b"b")}))
    assert [each for each, _ in farm.derivations] == [root]
    assert list(farm.nars) == [source("b").hash_part]


def test_a_known_root_is_not_even_read(farm: FakeFarm, tmp_path: Path) -> None:
    farm.has_derivations = {NIX_STORE.show(name("1"))}
    run(farm, tmp_path, name("1"), MemoryStore({}))
    assert farm.submitted
    assert not farm.derivations


def test_a_source_that_is_gone_is_named_with_who_wants_it(farm: FakeFarm, tmp_path: Path) -> None:
    root = write(tmp_path, "1", [], [source("a")])
    store = MemoryStore({})
    with pytest.raises(PeerError, match=rf"{source('a')}, wanted by /nix/store/{root}, is not in"):
        run(farm, tmp_path, root, store)
    assert not farm.submitted
    assert store.is_closed


def test_a_source_without_content_address_is_refused(farm: FakeFarm, tmp_path: Path) -> None:
    class Built(MemoryStore):
        async def path_info(self, path: StorePath) -> PathInfo | None:
            info = await super().path_info(path)
            return info and replace(info, content_address=None)

    root = write(tmp_path, "1", [], [source("a")])
    with pytest.raises(PeerError, match=rf"{source('a')}, wanted by .*{root}, was built here"):
        run(farm, tmp_path, root, Built({source("a"): ([], b"a")}))


def test_a_reference_that_is_gone_is_named_with_its_referrer(
    farm: FakeFarm, tmp_path: Path
) -> None:
    root = write(tmp_path, "1", [], [source("a")])
    store = MemoryStore({source("a"): ([source("b")], b"a")})
    with pytest.raises(PeerError, match=rf"{source('b')}, wanted by /nix/store/{source('a')}, is"):
        run(farm, tmp_path, root, store)


@pytest.mark.parametrize("small_bytes", [0, 1 << 20])
def test_a_refused_upload_stops_it(
    farm: FakeFarm, tmp_path: Path, small_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "SMALL_BYTES_MAX", small_bytes)
    root = write(tmp_path, "1", [], [source("a")])
    farm.upload_status = 422
    with pytest.raises(PeerError, match="told so"):
        run(farm, tmp_path, root, MemoryStore({source("a"): ([], b"a")}))
    farm.upload_status = 503
    farm.has_sources.clear()
    with pytest.raises(OutsideError, match="told so"):
        run(farm, tmp_path, root, MemoryStore({source("a"): ([], b"a")}))
    assert not farm.submitted


def test_large_sources_go_on_their_own(
    farm: FakeFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "SMALL_BYTES_MAX", 1_000)
    root = write(tmp_path, "1", [], [source("a"), source("b")])
    large = bytes(range(256)) * 4_000
    run(farm, tmp_path, root, MemoryStore({source("a"): ([], large), source("b"): ([], b"b")}))
    assert farm.nars[source("a").hash_part] == nar_of_text(large)
    assert farm.nars[source("b").hash_part] == nar_of_text(b"b")


def test_many_derivations_go_in_batches(
    farm: FakeFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit_module, "BATCH_BYTES_MAX", 1_000)
    for number in range(1, 20):
        write(tmp_path, str(number), [str(number - 1)] if number > 1 else [])
    run(farm, tmp_path, name("19"), MemoryStore({}))
    assert [each for each, _ in farm.derivations] == [name(str(number)) for number in range(1, 20)]
