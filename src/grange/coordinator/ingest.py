"""Derivations taken in: read, checked against their own content, resolved, remembered.

A batch holds inputs before those who need them. Everything is recomputed from the text: a
derivation whose path or outputs do not follow from it is refused with the whole batch.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import zstandard

from grange.coordinator.attributes import own_limits, required_features
from grange.errors import PeerError
from grange.ports import Journal, KnownDerivation, NewDerivation
from grange.scheduler.facts import QueueKey
from grange.store.basic import BasicDerivation, BasicOutput
from grange.store.derivation import DERIVATION_BYTES_MAX, DRV_SUFFIX, Derivation, parse
from grange.store.outputs import Modulo, check
from grange.store.path import StoreDir, StorePath
from grange.wire.basic import basic_to_bytes

BATCH_BYTES_MAX: Final = 64 << 20  # of derivations, unpacked: some 16,000 large ones
_JOURNAL_BATCH: Final = 5_000  # derivations a transaction: others get to write in between


async def add_derivations(journal: Journal, store_dir: StoreDir, body: bytes) -> int:
    """Take in the body of POST /api/v1/derivations (docs/http-api.md); returns how many it holds.

    Raises PeerError, and takes in nothing, where any of it is wrong.
    """
    return await add_texts(journal, store_dir, await asyncio.to_thread(_unpack, body))


async def add_texts(journal: Journal, store_dir: StoreDir, texts: Mapping[StorePath, bytes]) -> int:
    """As `add_derivations`, of derivations by path, inputs first."""
    parsed = await asyncio.to_thread(_parse_all, texts, store_dir)
    within = {path for path, _ in parsed}
    inputs = {path for _, drv in parsed for path in drv.input_drvs}
    known = await journal.derivation_inputs(inputs - within)
    await _check_sources(journal, parsed)
    new = await asyncio.to_thread(_check_all, parsed, texts, known, store_dir)
    for start in range(0, len(new), _JOURNAL_BATCH):
        await journal.add_derivations(new[start : start + _JOURNAL_BATCH])
    return len(new)


def _unpack(body: bytes) -> dict[StorePath, bytes]:
    """The derivations' texts, in the order they came."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=BATCH_BYTES_MAX)
    try:
        with unpacker.stream_reader(body) as reader:
            data = reader.read(BATCH_BYTES_MAX + 1)
    except zstandard.ZstdError as error:
        raise PeerError(f"the derivations are not zstd: {error}") from error
    if len(data) > BATCH_BYTES_MAX:
        raise PeerError(
            f"more than {BATCH_BYTES_MAX >> 20} MiB of derivations at once; send them in parts"
        )
    return dict(_frames(memoryview(data)))


def _frames(data: memoryview) -> Iterator[tuple[StorePath, bytes]]:
    position = 0

    def take(count: int) -> bytes:
        nonlocal position
        piece = bytes(data[position : position + count])
        if len(piece) != count:
            raise PeerError(f"the derivations end early, at byte {position} of {len(data)}")
        position += count
        return piece

    while position < len(data):
        base = take(int.from_bytes(take(2), "big")).decode("utf-8", "replace")
        aterm_bytes = int.from_bytes(take(4), "big")
        if aterm_bytes > DERIVATION_BYTES_MAX:
            raise PeerError(
                f"{base[:300]!r} has {aterm_bytes} bytes; {DERIVATION_BYTES_MAX} is most"
            )
        yield StorePath.parse_base(base), take(aterm_bytes)


def _parse_all(
    texts: Mapping[StorePath, bytes], store_dir: StoreDir
) -> list[tuple[StorePath, Derivation]]:
    parsed = []
    for path, aterm in texts.items():
        if not path.endswith(DRV_SUFFIX):
            raise PeerError(f"{path} is not a derivation: its name does not end in {DRV_SUFFIX}")
        parsed.append((path, parse(aterm, path.name.removesuffix(DRV_SUFFIX), store_dir)))
    return parsed


async def _check_sources(journal: Journal, parsed: Iterable[tuple[StorePath, Derivation]]) -> None:
    wanted_by = {source: path for path, drv in parsed for source in drv.input_srcs}
    missing = wanted_by.keys() - await journal.valid_paths(wanted_by)
    missing -= await journal.known_derivations(path for path in missing if path.endswith(".drv"))
    if missing:
        source = min(missing)
        raise PeerError(
            f"{wanted_by[source]} needs the source {source}, which the farm does not have "
            f"({len(missing)} are missing in all); upload sources before derivations"
        )


def _check_all(
    parsed: Iterable[tuple[StorePath, Derivation]],
    texts: Mapping[StorePath, bytes],
    known: Mapping[StorePath, KnownDerivation],
    store_dir: StoreDir,
) -> list[NewDerivation]:
    modulo = {
        path: Modulo(drv.modulo, tuple([name for name, _ in drv.outputs]))
        for path, drv in known.items()
    }
    outputs: dict[StorePath, Mapping[str, StorePath]] = {
        path: dict(drv.outputs) for path, drv in known.items()
    }
    new = []
    for path, drv in parsed:
        for needed, names in drv.input_drvs.items():
            if needed not in outputs:
                raise PeerError(
                    f"{path} needs {needed}, which the farm does not have and which does not "
                    "come before it; send inputs first"
                )
            for name in names:
                if name not in outputs[needed]:
                    raise PeerError(f"{path} needs output {name!r} of {needed}, which has none")
        checked = check(drv, path, store_dir, modulo)
        paths = {name: output.path for name, output in drv.outputs.items() if output.path}
        outputs[path] = paths
        direct = sorted(
            {
                *drv.input_srcs,
                *[outputs[drv_path][n] for drv_path, ns in drv.input_drvs.items() for n in ns],
            }
        )
        basic = BasicDerivation(
            {
                name: BasicOutput(paths[name], output.hash_algo, output.hash)
                for name, output in drv.outputs.items()
            },
            tuple(direct),
            drv.system,
            drv.builder,
            drv.args,
            drv.env,
        )
        new.append(
            NewDerivation(
                path=path,
                aterm=texts[path],
                outputs=tuple(sorted(paths.items())),
                inputs=tuple(drv.input_drvs),
                direct_inputs=tuple(direct),
                basic=basic_to_bytes(basic),
                modulo=checked.digest,
                queue=QueueKey(drv.system, required_features(drv)),
                name=drv.name,
                limits=own_limits(drv),
            )
        )
    return new
