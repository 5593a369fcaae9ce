"""What every implementation of `grange.ports.Catalog` does."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from grange.db.images import SETS_KEPT
from grange.errors import FencedError, OutsideError
from grange.oci.descriptor import LayerDescriptor, Member, layer_key, root_key
from grange.oci.manifest import (
    DOCKER_GZIP,
    OCI_GZIP,
    PLATFORMS,
    Document,
    Image,
    Layer,
    Runtime,
    image,
    index,
)
from grange.ports import (
    Catalog,
    ImageKey,
    ImageRecord,
    Journal,
    Lack,
    NoPackage,
    Package,
    PackageSet,
    Resolution,
    RuntimeWish,
    StoredLayer,
    StoredSegment,
)
from grange.store.hash import Hash
from tests.contract.journal_kinds import (
    JournalKind,
    PostgresKind,
    add,
    completed,
    drv,
    execute,
    narinfo,
    path,
    saved_paths,
)

NOW = 1_800_000_000.0
HOUR_S = 3600.0
GZIP = "gzip-6-zlib-1.3"
ZSTD = "zstd-3-libzstd-1.5"
PACKAGES = PackageSet("nixpkgs", "5" * 64, "c" * 40)
X86 = "x86_64-linux"


def digest(text: str) -> str:
    return f"sha256:{sha256(text.encode()).hexdigest()}"


def member(name: str, content: bytes = b"content") -> Member:
    """As `narinfo` has it."""
    return Member(path(name), Hash.of("sha256", content))


def segment(each: Member, codec: str = GZIP) -> StoredSegment:
    text = f"{codec} {each.path} {each.nar_hash.nix()}"
    return StoredSegment(each, digest(text), len(text))


def layer(*members: Member, codec: str = GZIP) -> StoredLayer:
    key = layer_key(codec, members)
    each = tuple(sorted(members))
    facts = LayerDescriptor(digest(f"diff {key}"), digest(f"blob {key}"), 1000)
    return StoredLayer(key, codec, facts, each, tuple([segment(m, codec) for m in each]))


def root(*members: Member, codec: str = GZIP) -> StoredLayer:
    key = root_key(codec, members, {})
    facts = LayerDescriptor(digest(f"diff {key}"), digest(f"blob {key}"), 10)
    return StoredLayer(key, codec, facts, tuple(sorted(members)), (), is_root=True)


def made(*layers: StoredLayer, packages: str = "hello") -> Image:
    runtime = Runtime(labels={"grange.packages": packages})
    told = [Layer(each.descriptor, "a layer") for each in layers]
    return image(OCI_GZIP, PLATFORMS[X86], runtime, told)


def record(name: str, *layers: StoredLayer, created: float = NOW) -> ImageRecord:
    both = made(*layers, packages=name)
    return ImageRecord(
        ImageKey(name, PACKAGES, OCI_GZIP),
        both.manifest,
        both.config,
        tuple([each.key for each in layers]),
        (path(name),),
        created,
        created,
    )


@pytest.fixture
def catalog(kind: JournalKind) -> Catalog:
    return kind.journal.images  # type: ignore[attr-defined, no-any-return]


async def reopened(kind: JournalKind) -> Catalog:
    return (await kind.reopen()).images  # type: ignore[attr-defined, no-any-return]


async def save(catalog: Catalog, *layers: StoredLayer) -> None:
    for each in layers:
        await catalog.save_layer(each)


async def damage(kind: JournalKind, file: Path, *statements: str) -> None:
    """What a failing disk may do: rows go that others refer to. `file` is SQLite's."""
    if isinstance(kind, PostgresKind):
        await execute(kind.url, "; ".join(["SET session_replication_role = replica", *statements]))
        return
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("; ".join(statements))


# --- Package sources --------------------------------------------------------------------------


async def test_the_latest_of_a_tag_holds(kind: JournalKind, catalog: Catalog) -> None:
    first = Resolution("nixpkgs", "unstable", "a" * 40, NOW)
    later = replace(first, commit="b" * 40, resolved=NOW + 1)
    other = replace(first, tag="23.05")
    assert await catalog.resolution("nixpkgs", "unstable") is None
    for each in (first, other, replace(first, source="ours"), later):
        await catalog.save_resolution(each)
    catalog = await reopened(kind)
    assert await catalog.resolution("nixpkgs", "unstable") == later
    assert await catalog.resolutions("nixpkgs") == [other, later]  # by tag
    assert await catalog.resolutions("theirs") == []


async def test_names_are_known_by_set_system_and_way(kind: JournalKind, catalog: Catalog) -> None:
    every = tuple([f"package{number}" for number in range(25_000)])
    names = {(): every, ("python3Packages",): ("requests", 'a "b"\n'), ("hello",): ()}
    await catalog.save_names(PACKAGES, X86, names)
    catalog = await reopened(kind)
    ways = [(), ("python3Packages",), ("hello",), ("python3Packages", "requests")]
    assert await catalog.names(PACKAGES, X86, ways) == names
    assert await catalog.names(PACKAGES, "aarch64-linux", ways) == {}
    assert await catalog.names(replace(PACKAGES, settings="6" * 64), X86, ways) == {}
    assert await catalog.names(PACKAGES, X86, [("hello",)]) == {("hello",): ()}
    await catalog.save_names(PACKAGES, X86, {("hello",): ["override"]})
    assert await catalog.names(PACKAGES, X86, [("hello",)]) == {("hello",): ("override",)}


async def test_answers_of_evaluations_are_known(kind: JournalKind, catalog: Catalog) -> None:
    git = Package(
        ("gitFull",), path("git.drv"), (("out", path("git")), ("doc", path("git-doc"))), "git"
    )
    deep = Package(("a", "b.c", 'd"'), path("d.drv"), (("out", path("d")),))
    gone = NoPackage(("unrar",), Lack.UNFREE, "it has an unfree license (“unrar”)")
    await catalog.save_evaluated(PACKAGES, X86, [git, deep, gone])
    catalog = await reopened(kind)
    every = [git.attribute, deep.attribute, gone.attribute, ("hello",)]
    found = await catalog.evaluated(PACKAGES, X86, every)
    assert found == {each.attribute: each for each in (git, deep, gone)}
    assert await catalog.evaluated(replace(PACKAGES, commit="d" * 40), X86, every) == {}
    assert await catalog.evaluated(PACKAGES, "aarch64-linux", every) == {}
    freed = Package(gone.attribute, path("unrar.drv"), (("out", path("unrar")),))
    await catalog.save_evaluated(PACKAGES, X86, [gone, freed])
    assert await catalog.evaluated(PACKAGES, X86, [gone.attribute]) == {gone.attribute: freed}


# --- Layers -----------------------------------------------------------------------------------


async def test_layers_are_found_as_they_were_saved(kind: JournalKind, catalog: Catalog) -> None:
    a, b, c = member("a"), member("b"), member("c")
    layers = [layer(a, b), layer(c), layer(a, b, codec=ZSTD), root(a, c), layer(b)]
    await save(catalog, *layers)
    catalog = await reopened(kind)
    found = await catalog.layers([*[each.key for each in layers], "f" * 64])
    assert found == {each.key: each for each in layers}
    assert await catalog.layers([]) == {}
    for each in layers:
        assert await catalog.layer_with(each.descriptor.digest) == each
    assert await catalog.layer_with(digest("nothing")) is None


async def test_a_layer_that_is_there_stays_as_it_is(catalog: Catalog) -> None:
    first = layer(member("a"))
    other = replace(first, descriptor=LayerDescriptor(digest("x"), digest("y"), 1))
    await save(catalog, first, other)
    assert await catalog.layers([first.key]) == {first.key: first}


async def test_segments_are_found_by_codec_and_content(catalog: Catalog) -> None:
    a, b, changed = member("a"), member("b"), member("a", b"changed")
    await save(catalog, layer(a, b), layer(changed), root(a, member("c")))
    found = await catalog.segments(GZIP, [a, b, member("c")])
    assert found == {a: segment(a), b: segment(b)}
    assert await catalog.segments(GZIP, [changed]) == {changed: segment(changed)}
    assert await catalog.segments(ZSTD, [a, b]) == {}
    assert await catalog.segments(GZIP, [member("b", b"changed")]) == {}


async def test_diff_ids_are_of_one_path_alone(kind: JournalKind, catalog: Catalog) -> None:
    a, b, c = member("a"), member("b"), member("c")
    await catalog.save_diff_ids({a: digest("a"), c: digest("c")})
    await catalog.save_diff_ids({a: digest("another")})
    alone = layer(b, codec=ZSTD)
    e, f = member("e"), member("f")
    await save(catalog, layer(a, c), alone, root(member("d")), layer(e, f))
    catalog = await reopened(kind)
    wanted = [a, b, c, member("d"), e, f, member("a", b"changed")]
    known = {a: digest("a"), b: alone.descriptor.diff_id, c: digest("c")}
    assert await catalog.diff_ids(wanted) == known


async def test_paths_that_no_codec_has_compressed_are_told(
    journal: Journal, catalog: Catalog
) -> None:
    away = replace(narinfo("away"), url="https://cache.example.org/nar/away.nar.xz")
    await journal.add_paths([narinfo("a"), narinfo("b"), narinfo("c")], "source")
    await journal.add_paths([away], "https://cache.example.org")
    (step,) = await add(journal, drv("published"))
    await journal.commit([saved_paths(step, "published")])  # not yet in place
    await save(catalog, layer(member("a")), layer(member("b", b"another content")))
    every = sorted([path("b"), path("c")])
    assert await catalog.paths_without_segments(GZIP, 10) == every
    assert await catalog.paths_without_segments(GZIP, 1) == every[:1]
    assert await catalog.paths_without_segments(ZSTD, 10) == sorted([path("a"), *every])
    await journal.commit(completed(step, 1, "published"))
    every = sorted([path("published"), *every])
    assert await catalog.paths_without_segments(GZIP, 10) == every


# --- Images -----------------------------------------------------------------------------------


async def test_an_image_is_found_by_all_that_decides_it(
    kind: JournalKind, catalog: Catalog
) -> None:
    layers = [layer(member(name)) for name in ("c", "a", "b")]
    await save(catalog, *layers)
    hello = record("hello", *layers, root(member("a")))
    with pytest.raises(AssertionError, match="add_image_use"):
        await catalog.save_image(hello)  # a layer of it is not known
    assert await catalog.image(hello.key) is None
    assert await catalog.document(hello.manifest.digest) is None
    await save(catalog, root(member("a")))
    wish = RuntimeWish(("/bin/sh", "-c"), ("exit",), "65532:65532")
    wished = replace(record("x", *layers), key=replace(hello.key, wish=wish))
    for each in (hello, wished):
        await catalog.save_image(each)
    catalog = await reopened(kind)
    assert await catalog.image(hello.key) == hello
    assert await catalog.image(wished.key) == wished
    for key in (
        replace(hello.key, name="hello/git"),
        replace(hello.key, packages=replace(PACKAGES, commit="d" * 40)),
        replace(hello.key, packages=replace(PACKAGES, settings="6" * 64)),
        replace(hello.key, packages=replace(PACKAGES, source="ours")),
        replace(hello.key, variant=DOCKER_GZIP),
        replace(hello.key, wish=replace(wish, user="")),
    ):
        assert await catalog.image(key) is None
    for document in (hello.manifest, hello.config):
        assert await catalog.document(document.digest) == document


async def test_a_document_of_other_bytes_is_none(
    kind: JournalKind, catalog: Catalog, tmp_path: Path
) -> None:
    file = tmp_path / "journal.db"
    if not isinstance(kind, PostgresKind) and not file.exists():
        return  # nobody gets at one in memory
    layers = [layer(member("a"))]
    await save(catalog, *layers)
    hello = record("hello", *layers)
    await catalog.save_image(hello)
    lost = hello.config.digest
    changed = "body = substr(body, 1, 9)"
    await damage(kind, file, f"UPDATE image_documents SET {changed} WHERE digest = '{lost}'")
    with pytest.raises(OutsideError, match=f"has other bytes of {lost}"):
        await catalog.document(lost)
    assert await catalog.document(hello.manifest.digest) == hello.manifest
    assert await catalog.image(hello.key) is not None
    lost = hello.manifest.digest
    await damage(kind, file, f"UPDATE image_documents SET {changed} WHERE digest = '{lost}'")
    with pytest.raises(OutsideError, match=f"has other bytes of {lost}"):
        await catalog.image(hello.key)


async def test_an_image_that_is_there_stays_as_it_is(catalog: Catalog) -> None:
    await save(catalog, layer(member("a")), layer(member("b")))
    first = record("hello", layer(member("a")))
    other = replace(record("other", layer(member("b"))), key=first.key)
    await catalog.save_image(first)
    await catalog.save_image(other)
    assert await catalog.image(first.key) == first
    assert await catalog.document(other.manifest.digest) is None


async def test_images_are_listed_latest_first(catalog: Catalog) -> None:
    await save(catalog, layer(member("a")))
    records = [record(f"r{n}", layer(member("a")), created=NOW + n) for n in range(4)]
    for each in (records[2], records[0], records[3], records[1]):
        await catalog.save_image(each)
    assert await catalog.images(limit=9) == records[::-1]
    assert await catalog.images(limit=2) == [records[3], records[2]]
    assert await catalog.images(limit=2, before=NOW + 2) == [records[1], records[0]]


async def test_use_is_known_to_the_hour(catalog: Catalog) -> None:
    await save(catalog, layer(member("a")))
    a, b = record("a", layer(member("a"))), record("b", layer(member("a")))
    await catalog.save_image(a)
    await catalog.save_image(b)
    await catalog.touch_images([a.manifest.digest], NOW + 2 * HOUR_S + 59)
    await catalog.touch_images([a.manifest.digest, digest("nothing")], NOW + HOUR_S)
    assert await catalog.image(a.key) == replace(a, used=NOW + 2 * HOUR_S)
    assert await catalog.image(b.key) == b


def index_of(*images: Image) -> Document:
    """With platforms that differ."""
    arm = PLATFORMS["aarch64-linux"]
    first, *others = images
    return index(OCI_GZIP.family, [first, *[replace(each, platform=arm) for each in others]])


async def test_images_of_a_path(catalog: Catalog) -> None:
    bottom, a, b = layer(member("bottom")), layer(member("a")), layer(member("b"), member("c"))
    await save(catalog, bottom, a, b)
    one, two = record("one", bottom, a), record("two", bottom, b)
    await catalog.save_image(one)
    await catalog.save_image(two)
    both = {one.manifest.digest, two.manifest.digest}
    assert await catalog.images_of(member("bottom").path) == both
    assert await catalog.images_of(member("c").path) == {two.manifest.digest}
    assert await catalog.images_of(member("none").path) == set()


async def test_a_dropped_image_takes_its_documents_along(catalog: Catalog) -> None:
    bottom, a, b = layer(member("bottom")), layer(member("a")), layer(member("b"))
    await save(catalog, bottom, a, b)
    # The same image under two names, and another one.
    one, two = record("one", bottom, a), record("two", bottom, b)
    alias = replace(one, key=replace(one.key, name="alias"))
    config = replace(two, key=replace(two.key, name="config"), manifest=record("m", a).manifest)
    both = index_of(made(bottom, a, packages="one"), made(bottom, b, packages="two"))
    alone = index_of(made(bottom, b, packages="two"))
    for each in (one, two, alias, config):
        await catalog.save_image(each)
    for document in (both, both, alone):
        await catalog.save_document(document)
    assert await catalog.document(both.digest) == both
    await catalog.drop_images([one.manifest.digest, digest("nothing")])
    assert (await catalog.image(one.key), await catalog.image(alias.key)) == (None, None)
    for gone in (one.manifest, one.config, both):
        assert await catalog.document(gone.digest) is None
    for kept in (two.manifest, two.config, alone):
        assert await catalog.document(kept.digest) == kept
    await catalog.drop_images([two.manifest.digest])
    assert await catalog.document(alone.digest) is None
    assert await catalog.document(two.config.digest) == two.config  # another image has it
    await catalog.save_image(one)
    assert await catalog.image(one.key) == one


async def test_answers_go_once_nothing_is_of_their_package_set(catalog: Catalog) -> None:
    await save(catalog, layer(member("a")))
    gone = NoPackage(("x",), Lack.MISSING, "there is no x")
    sets = [replace(PACKAGES, commit=f"{n:040x}") for n in range(SETS_KEPT + 4)]
    for each in sets:
        await catalog.save_evaluated(each, X86, [gone])
        await catalog.save_names(each, X86, {(): ["y"]})
    made = [
        replace(record(f"r{n}", layer(member("a"))), key=ImageKey(f"r{n}", sets[n], OCI_GZIP))
        for n in (0, 1)
    ]
    for each_image in made:
        await catalog.save_image(each_image)
    await catalog.save_resolution(Resolution(PACKAGES.source, "latest", sets[2].commit, NOW))
    await catalog.drop_images([made[0].manifest.digest])
    known = [n for n, each in enumerate(sets) if await catalog.evaluated(each, X86, [("x",)])]
    assert known == [1, 2, *range(4, SETS_KEPT + 4)]
    assert await catalog.names(sets[0], X86, [()]) == {}
    assert await catalog.names(sets[1], X86, [()]) == {(): ("y",)}


# --- What is kept -----------------------------------------------------------------------------


async def test_what_images_need_is_told(catalog: Catalog) -> None:
    a, b, c = member("a"), member("b"), member("c")
    links = root(a, c)  # has no bytes of c
    await save(catalog, layer(a, b), layer(c), layer(a, codec=ZSTD), links)
    assert (await catalog.kept_roots(), await catalog.kept_blobs()) == (set(), set())
    image = record("hello", layer(a, b), links)
    await catalog.save_image(replace(image, roots=(path("a"), path("b"))))
    await catalog.save_image(replace(record("other", layer(a, b)), roots=(path("b"),)))
    assert await catalog.kept_roots() == {path("a"), path("b")}
    expected = {segment(a).digest, segment(b).digest, links.descriptor.digest}
    assert await catalog.kept_blobs() == expected
    await catalog.drop_images([image.manifest.digest])
    assert await catalog.kept_roots() == {path("b")}
    assert await catalog.kept_blobs() == {segment(a).digest, segment(b).digest}


async def test_layers_go_whose_paths_are_gone_and_no_image_has(
    kind: JournalKind, journal: Journal, catalog: Catalog
) -> None:
    a, b, c, d = (member(name) for name in "abcd")
    here = layer(a)
    spent = [layer(a, b), layer(b, codec=ZSTD), root(b), layer(member("a", b"changed")), layer(c)]
    held = [layer(a, d), root(d, a)]
    await save(catalog, here, *spent, *held)
    await catalog.save_diff_ids({member("e"): digest("e"), a: digest("a")})
    await journal.add_paths([narinfo("a")], "source")
    away = replace(narinfo("c"), url="https://cache.example.org/nar/c.nar.xz")
    await journal.add_paths([away], "https://cache.example.org")
    await catalog.save_image(record("hello", *held))
    assert await catalog.drop_spent_layers() == len(spent)
    assert await catalog.drop_spent_layers() == 0
    known = await catalog.layers([each.key for each in (here, *spent, *held)])
    assert known == {each.key: each for each in (here, *held)}
    assert (await catalog.segments(GZIP, [a, b, c, d])).keys() == {a, d}
    assert (await catalog.segments(ZSTD, [a, b, c, d])).keys() == set()
    assert (await catalog.diff_ids([a, b, member("e")])).keys() == {a}
    assert await kind.journal.check() == []  # type: ignore[attr-defined]
    # What is gone can be made again.
    await save(catalog, *spent)
    assert await catalog.layers([each.key for each in spent]) == {e.key: e for e in spent}


async def test_segments_of_another_codec_do_not_stay_for_an_image(
    journal: Journal, catalog: Catalog
) -> None:
    a = member("a")
    await save(catalog, layer(a), layer(a, codec=ZSTD))
    await catalog.save_image(record("hello", layer(a)))
    assert await catalog.drop_spent_layers() == 1
    assert await catalog.segments(ZSTD, [a]) == {}
    assert await catalog.segments(GZIP, [a]) == {a: segment(a)}
    await catalog.drop_images([record("hello", layer(a)).manifest.digest])
    assert await catalog.drop_spent_layers() == 1
    assert await catalog.segments(GZIP, [a]) == {}


async def test_contradictions_are_found(
    kind: JournalKind, catalog: Catalog, tmp_path: Path
) -> None:
    file = tmp_path / "journal.db"
    if not isinstance(kind, PostgresKind) and not file.exists():
        return  # nobody gets at one in memory
    check = kind.journal.check  # type: ignore[attr-defined]
    layers = [layer(member("a"), member("b")), layer(member("c")), root(member("a"))]
    await save(catalog, *layers)
    await catalog.save_image(record("hello", *layers))
    await catalog.save_image(record("other", layers[1]))
    assert await check() == []
    lost = record("hello", *layers).config.digest
    segment_of = f"(SELECT id FROM image_contents WHERE path = '{path('b')}')"
    await damage(
        kind,
        file,
        f"DELETE FROM image_segments WHERE content = {segment_of}",
        f"DELETE FROM image_documents WHERE digest = '{lost}'",
        "DELETE FROM image_uses WHERE nth = 1",
        f"DELETE FROM image_layers WHERE key = '{layers[2].key}'",
    )
    assert await check() == [
        "1 paths of image layers have lost their segments",
        "1 layers of images are not there",
        "1 images have lost their manifest or config",
        "1 images have a gap between their layers",
    ]
    # What can be made again is not known any more, so it is made again, and then is.
    keys = [layers[0].key, layers[1].key]
    assert (await catalog.layers(keys)).keys() == {layers[1].key}
    await save(catalog, layers[0])
    assert (await catalog.layers(keys)).keys() == {*keys}


# --- The database -----------------------------------------------------------------------------


async def test_who_does_not_lead_saves_nothing(kind: JournalKind, catalog: Catalog) -> None:
    if not isinstance(kind, PostgresKind):
        return  # a file has one leader, whose lock is on its directory
    await save(catalog, layer(member("a")))
    hello = record("hello", layer(member("a")))
    await catalog.save_image(hello)
    await execute(kind.url, "UPDATE leader SET epoch = 8")
    with pytest.raises(FencedError):
        await save(catalog, layer(member("b")))
    with pytest.raises(FencedError):
        await catalog.save_resolution(Resolution("nixpkgs", "latest", "a" * 40, NOW))
    assert await catalog.layers([layer(member("b")).key]) == {}
    await catalog.touch_images([hello.manifest.digest], NOW)  # so nothing is to be written
    with pytest.raises(FencedError):
        await catalog.touch_images([hello.manifest.digest], NOW + HOUR_S)
