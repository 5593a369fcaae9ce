"""From ``.drv`` files on this machine to builds in the farm.

What the farm lacks is sent first: sources as NARs to URLs the farm signed, then derivations in
batches, inputs before those who need them.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import zstandard

from grange.client.api import GrangeClient
from grange.client.closure import BuildClosure, StorePlace, read_closure
from grange.client.models import SubmitAnswer, SubmitRequest
from grange.client.sources import LocalStore, upload_sources
from grange.store.path import StorePath

BATCH_BYTES_MAX: Final = 32 << 20  # of derivations in one call, before compression


def submit(
    client: GrangeClient,
    request: SubmitRequest,
    place: StorePlace,
    open_store: Callable[[], LocalStore],
    tell: Callable[[str], None],
) -> SubmitAnswer:
    """Have `request.drv_paths` built, after sending what the farm lacks of their build closure.

    The rest is as of `send`.
    """
    send(client, request.drv_paths, place, open_store, tell)
    return client.submit(request)


def send(
    client: GrangeClient,
    drv_paths: Iterable[str],
    place: StorePlace,
    open_store: Callable[[], LocalStore],
    tell: Callable[[str], None],
    *,
    is_thorough: bool = False,
) -> None:
    """Let the farm have these derivations and their build closure, as far as it lacks them.

    With `is_thorough` it is asked for their sources even where it knows a derivation: those may be
    gone. `open_store` gives the store at `place`, asked for only where a source must be sent;
    `tell` hears a sentence about each thing that takes time. Raises what `read_closure` and
    `upload_sources` do. Sending anything twice is harmless.
    """
    store_dir = place.store_dir
    roots = [store_dir.parse(path) for path in dict.fromkeys(drv_paths)]
    if not is_thorough:
        roots = [*map(store_dir.parse, client.lacking(map(store_dir.show, roots)).derivations)]
    if roots:
        closure = read_closure(roots, place)
        _send_closure(client, closure, place, open_store, tell)


def _send_closure(
    client: GrangeClient,
    closure: BuildClosure,
    place: StorePlace,
    open_store: Callable[[], LocalStore],
    tell: Callable[[str], None],
) -> None:
    show = place.store_dir.show
    wanted_by = closure.sources()
    # A source may be gone from the farm while its derivation is still known: ask for all.
    lack = client.lacking(map(show, closure.drvs), map(show, wanted_by))
    if lack.sources:
        tell(f"sending {len(lack.sources)} of {len(wanted_by)} sources")
        asked = set(lack.sources)
        sources = [path for path in wanted_by if show(path) in asked]
        upload_sources(client, open_store(), sources, wanted_by, place.store_dir)
    if lack.derivations:
        tell(f"sending {len(lack.derivations)} of {len(closure.drvs)} derivations")
        lacking = {place.store_dir.parse(path) for path in lack.derivations}
        for body in _batches(closure, lacking):
            client.add_derivations(body)


def _batches(closure: BuildClosure, lacking: set[StorePath]) -> Iterator[bytes]:
    """Bodies for POST /api/v1/derivations; docs/http-api.md describes them."""
    compressor = zstandard.ZstdCompressor(level=1)  # the road is short or the text is small
    pieces: list[bytes] = []
    size = 0
    for path, node in closure.drvs.items():
        if path not in lacking:
            continue
        name = path.encode()
        record_bytes = 2 + len(name) + 4 + len(node.aterm)
        if size + record_bytes > BATCH_BYTES_MAX and pieces:
            yield compressor.compress(b"".join(pieces))
            pieces, size = [], 0
        pieces += (
            len(name).to_bytes(2, "big"),
            name,
            len(node.aterm).to_bytes(4, "big"),
            node.aterm,
        )
        size += record_bytes
    if pieces:
        yield compressor.compress(b"".join(pieces))
