"""What is sent to a daemon in frames: NARs and other contents."""

from collections.abc import AsyncGenerator, AsyncIterator

from grange.errors import PeerError
from grange.store.narinfo import PathInfo

Nar = bytes | AsyncIterator[bytes]


async def pieces(data: Nar) -> AsyncGenerator[bytes, None]:
    if isinstance(data, bytes):
        yield data
    else:
        async for piece in data:
            yield piece


async def exactly(info: PathInfo, nar: Nar) -> AsyncGenerator[bytes, None]:
    """The pieces of a NAR; raises PeerError before its end where it has another length."""
    left = info.nar_bytes
    async for piece in pieces(nar):
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        than = "more" if left < 0 else "fewer"
        raise PeerError(f"the NAR of {info.path} has {than} bytes than its path info says")
