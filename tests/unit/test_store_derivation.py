"""Derivations: what Nix printed reads and prints the same, and nothing else is accepted."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.store.aterm import escape, unescape
from grange.store.derivation import DERIVATION_BYTES_MAX, Derivation, Output, parse, unparse
from grange.store.path import NIX_STORE, StoreDir, StorePath

DATA = Path(__file__).parent / "data"
REAL = sorted([*DATA.glob("derivations/*.drv"), *DATA.glob("refused/*.drv")])
GUIX = StoreDir("/gnu/store")


def read(file: Path) -> Derivation:
    return parse(file.read_bytes(), StorePath(file.stem).name, NIX_STORE)


def one(stem: str) -> Derivation:
    return read(min(DATA.glob(f"derivations/*-{stem}.drv")))


def test_there_are_real_derivations() -> None:
    assert len(REAL) >= 28


@pytest.mark.parametrize("file", REAL, ids=lambda file: file.stem[33:])
def test_a_real_derivation_prints_as_it_was_read(file: Path) -> None:
    drv = read(file)
    assert unparse(drv, NIX_STORE) == file.read_bytes()
    assert drv == replace(drv)
    assert replace(drv).text is None


def test_fields_are_what_the_expression_said() -> None:
    drv = one("multiple-1.0")
    assert list(drv.outputs) == ["dev", "doc", "lib", "out"]
    assert [path.name for path in drv.input_srcs] == ["source.txt"]
    assert [(path.name, names) for path, names in drv.input_drvs.items()] == [
        ("flat-sha256.drv", ("out",))
    ]
    assert (drv.system, drv.builder) == ("x86_64-linux", "/bin/sh")
    assert drv.args == ("-c", "echo hi > $out")
    path = drv.outputs["dev"].path
    assert path is not None
    assert drv.env["dev"] == NIX_STORE.show(path)


def test_escapes_unicode_and_other_bytes_are_decoded() -> None:
    escapes = one("escapes")
    assert escapes.env["quotes"] == '"\\\n\r\t\\n\\\\"'
    assert escapes.env['key "quoted"'] == "k"
    assert escapes.args == ("-c", "printf '%s\n' \"$x\"\t\\\\n \\", "", "(", "]),(")
    assert one("unicode").env["greeting"] == "Grüß Gott, 世界 🌾"
    assert one("unicode").args == ("grüße", "日本")
    assert one("latin1").env["text"].encode("utf-8", "surrogateescape") == b"caf\xe9 \xff\xfe\xc3"
    assert one("empty").args == ()
    assert one("empty").env["nothing"] == ""


OUT = '("out","/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x","","")'
DRV = '("/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-{}.drv",["out"])'
SRC = '"/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-{}"'


def text(outputs: str = OUT, drvs: str = "", srcs: str = "", args: str = "", env: str = "") -> str:
    return f'Derive([{outputs}],[{drvs}],[{srcs}],"s","b",[{args}],[{env}])'


def test_the_text_of_the_refusals_below_is_right_before_it_is_spoilt() -> None:
    good = text(OUT, f"{DRV.format('a')},{DRV.format('b')}", SRC.format("a"), '"a"', '("k","v")')
    assert unparse(parse(good.encode(), "x", NIX_STORE), NIX_STORE) == good.encode()
    assert parse(text().encode(), "x", NIX_STORE).env == {}


@pytest.mark.parametrize(
    ("spoilt", "complaint"),
    [
        ("", "expected Derive([ at byte 0"),
        ('DrvWithVersion("xp-dyn-drv",[])', "dynamic derivation"),
        (text() + "\n", "the end of the derivation"),
        (text()[:-1], "the end of the derivation"),
        (text(outputs=""), "has no outputs"),
        (text(outputs=f"{OUT},{OUT}"), "outputs are not sorted, or repeated"),
        (text(outputs=f"{OUT},{OUT.replace('out', 'dev')}"), "outputs are not sorted"),
        (text(outputs=f"{OUT},"), "an output at byte"),
        (text(outputs=OUT.replace("/nix", "/gnu")), "not a path directly in /nix/store"),
        (text(drvs=f"{DRV.format('b')},{DRV.format('a')}"), "input derivations are not sorted"),
        (text(drvs=f"{DRV.format('a')},{DRV.format('a')}"), "input derivations are not sorted"),
        (text(drvs=DRV.format("a").replace(".drv", "")), "an input derivation at byte"),
        (text(drvs=DRV.format("a").replace('"out"', "")), "an input derivation at byte"),
        (text(drvs=DRV.format("a").replace('"out"', '"b","a"')), "output names of an input"),
        (text(drvs=DRV.format("a" * 212)), "an input derivation at byte"),
        (text(srcs=f"{SRC.format('b')},{SRC.format('a')}"), "input sources are not sorted"),
        (text(srcs=SRC.format("..")), "an input source at byte"),
        (text(srcs=SRC.format("a/b")), "an input source at byte"),
        (text(args='"a""b"'), "an argument at byte"),
        (text(args=',"a"'), "an argument at byte"),
        (text(args='"\\x"'), "system, builder and arguments"),
        (text(args='"a\nb"'), "system, builder and arguments"),
        (text(env='("a","1")("b","2")'), "an environment variable at byte"),
        (text(env='("a","1"),x,("b","2")'), "an environment variable at byte"),
        (text(env='("a","\\é")'), "an environment variable at byte"),
        (text(env='("a","\t")'), "an environment variable at byte"),
        (text(env='("b","1"),("a","2")'), "environment variables are not sorted"),
        (text(env='("a","1"),("a","2")'), "environment variables are not sorted, or repeated"),
        # By their escaped spelling these two would be sorted; by their bytes they are not.
        (text(env='("X","1"),("\\n","2")'), "environment variables are not sorted"),
    ],
)
def test_other_spellings_are_refused(spoilt: str, complaint: str) -> None:
    with pytest.raises(PeerError, match="derivation 'x' is not well formed") as error:
        parse(spoilt.encode(), "x", NIX_STORE)
    assert complaint in str(error.value)


def test_names_and_sizes_are_bounded() -> None:
    for name in ("", "a/b", ".", "a" * 208):
        with pytest.raises(PeerError, match="cannot name a store path"):
            parse(text().encode(), name, NIX_STORE)
    with pytest.raises(PeerError, match="at most"):
        parse(bytes(DERIVATION_BYTES_MAX + 1), "x", NIX_STORE)


def test_the_store_directory_is_a_value() -> None:
    guix = text().replace("/nix/store", "/gnu/store").encode()
    assert unparse(parse(guix, "x", GUIX), GUIX) == guix
    with pytest.raises(PeerError, match="not a path directly in /nix/store"):
        parse(guix, "x", NIX_STORE)


def test_several_threads_may_parse_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, REAL * 20)) == [read(file) for file in REAL] * 20


def test_a_lone_surrogate_cannot_be_printed() -> None:
    with pytest.raises(PeerError, match="lone surrogate"):
        unparse(replace(one("empty"), builder="\ud800"), NIX_STORE)


BASE32 = st.text("0123456789abcdfghijklmnpqrsvwxyz", min_size=32, max_size=32)
NAMES = st.from_regex(r"[a-zA-Z0-9+_?=-][a-zA-Z0-9+\-._?=]{0,20}", fullmatch=True)
TEXTS = (st.binary(max_size=30) | st.text(max_size=30).map(str.encode)).map(
    lambda data: data.decode("utf-8", "surrogateescape")
)
PATHS = st.builds(lambda digest, name: StorePath(f"{digest}-{name}"), BASE32, NAMES)
OUTPUTS = st.builds(Output, st.none() | PATHS, st.sampled_from(["", "r:sha256"]), NAMES.filter(
    str.isalnum) | st.just(""))  # fmt: skip
DERIVATIONS = st.builds(
    Derivation,
    NAMES,
    st.dictionaries(NAMES, OUTPUTS, min_size=1, max_size=3),
    st.dictionaries(
        PATHS.map(lambda path: StorePath(path + ".drv")),
        st.sets(NAMES, min_size=1, max_size=3).map(lambda names: tuple(sorted(names))),
        max_size=3,
    ),
    st.sets(PATHS, max_size=3).map(lambda paths: tuple(sorted(paths))),
    TEXTS,
    TEXTS,
    st.lists(TEXTS, max_size=4).map(tuple),
    st.dictionaries(TEXTS, TEXTS, max_size=5),
)


@given(DERIVATIONS)
def test_any_derivation_survives_printing(drv: Derivation) -> None:
    aterm = unparse(drv, NIX_STORE)
    again = parse(aterm, drv.name, NIX_STORE)
    assert again == drv
    assert unparse(again, NIX_STORE) == aterm


@given(TEXTS)
def test_escaping_is_undone(value: str) -> None:
    assert unescape(escape(value)) == value


@given(st.sampled_from(REAL), st.data())
def test_spoilt_bytes_raise_only_peer_errors(file: Path, data: st.DataObject) -> None:
    aterm = file.read_bytes()
    start = data.draw(st.integers(0, len(aterm)))
    end = data.draw(st.integers(start, min(len(aterm), start + 8)))
    spoilt = aterm[:start] + data.draw(st.binary(max_size=8)) + aterm[end:]
    try:
        drv = parse(spoilt, StorePath(file.stem).name, NIX_STORE)
    except PeerError:
        return
    assert unparse(drv, NIX_STORE) == spoilt


@given(st.binary(max_size=200))
def test_junk_raises_only_peer_errors(junk: bytes) -> None:
    for prefix in (b"", b"Derive([", text()[:-2].encode()):
        with pytest.raises(PeerError):
            parse(prefix + junk + b"!", "x", NIX_STORE)
