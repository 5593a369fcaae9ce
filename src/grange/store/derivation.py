"""Derivations, and the text of the ``.drv`` files they are kept in.

Reading is strict: what is accepted prints byte for byte as it was read. It is also what a farm does
most while it ingests a graph, hence one regular expression per section instead of a tokenizer.
Source: Nix manual, "Derivation ATerm format"; libstore/derivations.cc.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice, pairwise
from operator import lt
from typing import Final, NamedTuple

from grange.errors import PeerError
from grange.store.aterm import STRING, Items, complain, escape, quoted, unescape
from grange.store.path import BASE_PATTERN, NAME_CHARS, StoreDir, StorePath, parse_name

# Real ones stay under a few hundred kilobytes; what is far beyond is a mistake or an attack.
DERIVATION_BYTES_MAX: Final = 16 << 20
DRV_SUFFIX: Final = ".drv"


@dataclass(frozen=True, slots=True)
class Output:
    """One output as its derivation spells it; `grange.store.outputs` tells the kinds apart."""

    path: StorePath | None  # None where the path is known only after a build
    hash_algo: str  # "", or "sha256", "r:sha256" and so on
    hash: str  # "", base 16, or "impure"


class DrvText(NamedTuple):
    """The text a derivation was read from, and where its sections are, in bytes."""

    aterm: bytes
    outputs_end: int  # just behind the last output
    inputs_end: int  # just behind the last input derivation
    env_start: int  # at the first variable


@dataclass(frozen=True, slots=True)
class Derivation:
    """How to build some outputs.

    All mappings and tuples but `args` are sorted by bytes. Text that is not UTF-8 is kept with
    surrogate escapes, so that it prints as it was read.
    """

    name: str  # without ".drv"
    outputs: Mapping[str, Output]
    input_drvs: Mapping[StorePath, tuple[str, ...]]  # with the names of the outputs used
    input_srcs: tuple[StorePath, ...]
    system: str
    builder: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    # Set by `parse` only, so a changed copy never carries the text of its original.
    text: DrvText | None = field(default=None, init=False, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class _Grammar:
    """The lists that hold store paths, spelt for one store directory."""

    input_drvs: Items
    input_srcs: Items


_OUTPUT_NAME: Final = rf"[{NAME_CHARS}]++"
_OUTPUTS: Final = Items(
    "an output",
    rf'\("({_OUTPUT_NAME})","([^"\\]*+)","([a-z0-9:]*+)","([0-9a-zA-Z]*+)"\)',
    '("","","","")',
)
_ARGS: Final = Items("an argument", f'"({STRING})"', '""')
_ENV: Final = Items("an environment variable", rf'\("({STRING})","({STRING})"\)', '("","")')
_COMMAND: Final = re.compile(rf'"({STRING})","({STRING})",\[((?:,?"{STRING}")*+)\],\[')
_START: Final = "Derive(["


@cache
def _grammar(root: str) -> _Grammar:
    path = f"{re.escape(root)}/({BASE_PATTERN}"
    return _Grammar(
        Items(
            "an input derivation",
            rf'\("{path}(?<=\.drv))",\["({_OUTPUT_NAME}(?:","{_OUTPUT_NAME})*+)"\]\)',
            f'("{root}/",[""])',
        ),
        Items("an input source", f'"{path})"', f'"{root}/"'),
    )


def parse(aterm: bytes, name: str, store_dir: StoreDir) -> Derivation:
    """Read the text of ``<hash part>-<name>.drv``; raises PeerError unless it is canonical."""
    parse_name(parse_name(name) + DRV_SUFFIX)
    if len(aterm) > DERIVATION_BYTES_MAX:
        raise PeerError(
            f"derivation {name!r} has {len(aterm)} bytes; at most {DERIVATION_BYTES_MAX} are taken"
        )
    try:
        return _read(aterm, name, store_dir)
    except PeerError as error:
        raise PeerError(f"derivation {name!r} is not well formed: {error}") from None


def _read(aterm: bytes, name: str, store_dir: StoreDir) -> Derivation:
    text = aterm.decode("latin-1")
    if not text.startswith(_START):
        if text.startswith("DrvWithVersion("):
            raise PeerError("it is a dynamic derivation, which Grange does not build")
        raise complain(text, 0, _START)
    outputs_end = _find(text, "],[", len(_START), "the end of the outputs")
    inputs_end = _find(text, "],[", outputs_end + 3, "the end of the input derivations")
    srcs_end = _find(text, '],"', inputs_end + 3, "the end of the input sources")
    command = _COMMAND.match(text, srcs_end + 2)
    if command is None:
        raise complain(text, srcs_end + 2, "system, builder and arguments")
    env_start = command.end()
    if not text.endswith("])", env_start):
        raise complain(text, max(env_start, len(text) - 2), "the end of the derivation")

    grammar = _grammar(store_dir.root)
    input_drvs = grammar.input_drvs.read(text, outputs_end + 3, inputs_end)
    _check_order([path for path, _ in input_drvs], "input derivations")
    input_srcs = grammar.input_srcs.read(text, inputs_end + 3, srcs_end)
    _check_order(input_srcs, "input sources")
    args = _ARGS.read(text, command.start(3), command.end(3))
    to_text = _plain if text.isascii() else _from_latin1
    drv = Derivation(
        name,
        _read_outputs(text, outputs_end, store_dir),
        {StorePath(path): _output_names(names) for path, names in input_drvs},
        tuple(map(StorePath, input_srcs)),
        to_text(unescape(command[1])),
        to_text(unescape(command[2])),
        tuple([to_text(unescape(arg)) for arg in args]),
        _read_env(text, env_start),
    )
    object.__setattr__(drv, "text", DrvText(aterm, outputs_end, inputs_end, env_start))
    return drv


def _find(text: str, mark: str, start: int, meaning: str) -> int:
    offset = text.find(mark, start)
    if offset < 0:
        raise complain(text, start, f"{meaning}, {mark!r}")
    return offset


def _check_order(keys: Sequence[str], what: str) -> None:
    """Raise PeerError unless `keys` rise strictly, as in everything Nix prints."""
    if not all(map(lt, keys, islice(keys, 1, None))):
        after, before = next(pair for pair in pairwise(keys) if not lt(*pair))
        raise PeerError(f"{what} are not sorted, or repeated: {before!r} comes after {after!r}")


def _read_outputs(text: str, end: int, store_dir: StoreDir) -> dict[str, Output]:
    found = _OUTPUTS.read(text, len(_START), end)
    if not found:
        raise PeerError("it has no outputs")
    _check_order([name for name, *_ in found], "outputs")
    return {
        name: Output(store_dir.parse(path) if path else None, hash_algo, digest)
        for name, path, hash_algo, digest in found
    }


def _output_names(text: str) -> tuple[str, ...]:
    names = tuple(text.split('","'))
    if len(names) > 1:
        _check_order(names, "output names of an input derivation")
    return names


def _read_env(text: str, start: int) -> dict[str, str]:
    pairs = _ENV.read(text, start, len(text) - 2)
    if text.find("\\", start) >= 0:
        pairs = [
            (unescape(key), unescape(value) if "\\" in value else value) for key, value in pairs
        ]
    _check_order([key for key, _ in pairs], "environment variables")
    if not text.isascii():
        pairs = [(_from_latin1(key), _from_latin1(value)) for key, value in pairs]
    return dict(pairs)


def _plain(text: str) -> str:
    return text


def _from_latin1(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "surrogateescape")


def _to_latin1(text: str) -> str:
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError:
        raise PeerError(f"{text[:200]!r} holds a lone surrogate, which no file can") from None


def unparse(drv: Derivation, store_dir: StoreDir) -> bytes:
    """The text of `drv`, canonical whatever the order of its fields; inverse of `parse`."""
    outputs = ",".join(
        f'("{name}","{store_dir.show(output.path) if output.path else ""}",'
        f'"{output.hash_algo}","{output.hash}")'
        for name, output in sorted(drv.outputs.items())
    )
    input_drvs = ",".join(
        f'("{store_dir.show(path)}",[{quoted(sorted(names))}])'
        for path, names in sorted(drv.input_drvs.items())
    )
    input_srcs = quoted(map(store_dir.show, sorted(drv.input_srcs)))
    command = quoted([_to_latin1(drv.system), _to_latin1(drv.builder)])
    args = quoted(map(_to_latin1, drv.args))
    variables = sorted((_to_latin1(key), _to_latin1(value)) for key, value in drv.env.items())
    env = ",".join([f'("{escape(key)}","{escape(value)}")' for key, value in variables])
    return (f"Derive([{outputs}],[{input_drvs}],[{input_srcs}],{command},[{args}],[{env}])").encode(
        "latin-1"
    )
