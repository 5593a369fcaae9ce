"""Made-up graphs of any size, as records for a journal or as ``.drv`` files that Nix would accept.

Node `n` needs some of the 5,000 nodes before it; the last node, the root, needs all that nothing
else needs. Shape and names follow from the size alone.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from grange.ports import Journal, NewBuild, NewDerivation
from grange.scheduler.facts import BuildId, QueueKey
from grange.store.basic import BasicDerivation, BasicOutput
from grange.store.derivation import Derivation, Output, parse, unparse
from grange.store.hash import Hash, base32_encode, compress_hash
from grange.store.narinfo import NarInfo, PathInfo
from grange.store.outputs import derivation_path, make_path
from grange.store.path import NIX_STORE, StorePath
from grange.wire.basic import basic_to_bytes

SYSTEM: Final = "x86_64-linux"
NEAR: Final = 5_000  # how far back an input may be
JOURNAL_BATCH: Final = 5_000
BUILD: Final = BuildId("6f1d1c1e-9d1f-4f6e-8f5a-0123456789ab")
NAR_HASH: Final = Hash.of("sha256", b"nar")
NAR_BYTES: Final = 1_000
_FILLER: Final = "x" * 300  # makes a derivation of five inputs 1 KB long


def edges(count: int, inputs: int) -> Iterator[list[int]]:
    """The inputs of each node, by number; the root's last."""
    drawn = random.Random(count)
    unneeded: set[int] = set()
    for number in range(count - 1):
        first = max(0, number - NEAR)
        needed = sorted({drawn.randrange(first, number) for _ in range(inputs)} if number else ())
        unneeded.difference_update(needed)
        unneeded.add(number)
        yield needed
    yield sorted(unneeded)


def derivations(count: int, inputs: int) -> Iterator[NewDerivation]:
    """Records as ingestion makes them, but for paths that follow from nothing."""
    for number, needed in enumerate(edges(count, inputs)):
        output = _path(number, "")
        direct = tuple(sorted([_path(each, "") for each in needed]))
        env = {"name": output.name, "out": NIX_STORE.show(output)}
        basic = BasicDerivation(
            {"out": BasicOutput(output)}, direct, SYSTEM, "/bin/sh", ("-c", "true"), env
        )
        yield NewDerivation(
            path=_path(number, ".drv"),
            aterm=_FILLER.encode(),
            outputs=(("out", output),),
            inputs=tuple([_path(each, ".drv") for each in needed]),
            direct_inputs=direct,
            basic=basic_to_bytes(basic),
            modulo="0" * 64,
            queue=QueueKey(SYSTEM),
            name=output.name,
        )


async def fill(journal: Journal, count: int, inputs: int) -> StorePath:
    """Put a graph and an unfinished build of its root into the journal; the root."""
    batch: list[NewDerivation] = []
    for derivation in derivations(count, inputs):
        batch.append(derivation)
        if len(batch) == JOURNAL_BATCH:
            await journal.add_derivations(batch)
            batch = []
    if batch:
        await journal.add_derivations(batch)
    root = _path(count - 1, ".drv")
    await journal.add_builds([NewBuild(BUILD, root, "default", 0, (), "benchmark", 0.0)])
    return root


def narinfo(path: StorePath) -> NarInfo:
    """What a cache would say of an output, its references left out."""
    signature = "farm-1:" + "A" * 86 + "=="
    info = PathInfo(path, NAR_HASH, NAR_BYTES, (), None, None, (signature,))
    return NarInfo(info, f"nar/{NAR_HASH.base32()}.nar.zst", "zstd", NAR_HASH, NAR_BYTES)


def write_drvs(count: int, inputs: int, folder: Path) -> StorePath:
    """Write ``.drv`` files whose paths and output paths follow from their content; the root."""
    drvs: list[StorePath] = []
    outputs: list[StorePath] = []
    modulos: list[str] = []
    for number, needed in enumerate(edges(count, inputs)):
        drv = _derivation(number, {drvs[each]: ("out",) for each in needed})
        by_digest = sorted(f'("{modulos[each]}",["out"])' for each in needed)
        output = make_path("output:out", _modulo(drv, by_digest), drv.name, NIX_STORE)
        shown = NIX_STORE.show(output)
        drv = replace(drv, outputs={"out": Output(output, "", "")}, env={**drv.env, "out": shown})
        aterm = unparse(drv, NIX_STORE)
        path = derivation_path(parse(aterm, drv.name, NIX_STORE), NIX_STORE)
        (folder / path).write_bytes(aterm)
        drvs.append(path)
        outputs.append(output)
        modulos.append(_modulo(drv, by_digest))
    return drvs[-1]


def _derivation(number: int, input_drvs: dict[StorePath, tuple[str, ...]]) -> Derivation:
    name = f"step-{number}"
    env = {"name": name, "out": "", "filler": _FILLER, "builder": "/bin/sh", "system": SYSTEM}
    return Derivation(
        name=name,
        outputs={"out": Output(None, "", "")},
        input_drvs=dict(sorted(input_drvs.items())),
        input_srcs=(),
        system=SYSTEM,
        builder="/bin/sh",
        args=("-c", "true"),
        env=dict(sorted(env.items())),
    )


def _modulo(drv: Derivation, by_digest: list[str]) -> str:
    """The digest modulo fixed outputs: the text with digests for input derivations."""
    whole = unparse(replace(drv, input_drvs={}), NIX_STORE)
    head, _, tail = whole.partition(b"],[],[")
    text = head + b"],[" + ",".join(by_digest).encode() + b"],[" + tail
    return hashlib.sha256(text).hexdigest()


def _path(number: int, suffix: str) -> StorePath:
    digest = hashlib.sha256(f"{number}{suffix}".encode()).digest()
    return StorePath(f"{base32_encode(compress_hash(digest, 20))}-step-{number}{suffix}")
