"""What is in a NAR, as JSON: stored beside a large one, made on demand for a small one."""

from grange.cache.receive import SMALL_FILE_BYTES, SMALL_NAR_BYTES
from grange.cache.signing import listing_key
from grange.cache.unpack import unpacker
from grange.ports import Objects
from grange.store.nar import Listing, NarReader
from grange.store.narinfo import NarInfo


async def listing_of(narinfo: NarInfo, objects: Objects) -> bytes | None:
    """The listing of a NAR in this cache; None where there is none, as for an upstream's."""
    if "://" in narinfo.url:
        return None
    is_small = (
        narinfo.file_bytes is not None
        and narinfo.file_bytes <= SMALL_FILE_BYTES
        and narinfo.info.nar_bytes <= SMALL_NAR_BYTES
    )
    if not is_small:
        return await objects.get(listing_key(narinfo.url))
    return await _made(narinfo.url, narinfo.compression, objects)


async def listing_at(key: str, compression: str, objects: Objects) -> bytes | None:
    """As `listing_of`, of a NAR that no path has any more."""
    size = await objects.size(key)
    if size is None or size > SMALL_FILE_BYTES:
        return await objects.get(listing_key(key))
    return await objects.get(listing_key(key)) or await _made(key, compression, objects)


async def _made(key: str, compression: str, objects: Objects) -> bytes | None:
    file = await objects.get(key)
    if file is None:
        return None
    listing = Listing()
    reader = NarReader(listing)
    stream = unpacker(compression)
    for piece in [file] if stream is None else stream.feed(file):
        reader.feed(piece)
    reader.finish()
    return listing.json()
