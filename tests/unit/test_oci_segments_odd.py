"""Segments that no release of ours makes, taken apart in bounded memory or refused."""

import gzip
import tracemalloc
from hashlib import sha256

import pytest
import zstandard

from grange.errors import PeerError
from grange.oci.segments import GZIP, WINDOW_BYTES_MAX, ZSTD, Codec, LayerWriter
from grange.store.path import StorePath

PATH = StorePath.parse_base(f"{'0' * 32}-a")
LARGE_BYTES = 64 << 20


def taken(codec: Codec, segment: bytes) -> None:
    writer = LayerWriter(codec)
    writer.start()
    writer.open_segment(PATH, f"sha256:{sha256(segment).hexdigest()}")
    for _ in writer.feed(segment):
        pass
    writer.close()


@pytest.mark.parametrize(
    ("codec", "segment"),
    [
        (GZIP, gzip.compress(bytes(LARGE_BYTES), 9)),
        (ZSTD, zstandard.ZstdCompressor(3).compress(bytes(LARGE_BYTES))),
    ],
    ids=["gzip", "zstd"],
)
def test_one_member_may_stand_for_as_much_as_it_likes(codec: Codec, segment: bytes) -> None:
    tracemalloc.start()
    taken(codec, segment)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_window_that_takes_more_memory_than_there_is_for_it_is_refused() -> None:
    window_log = WINDOW_BYTES_MAX.bit_length()  # twice as much
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log)
    compressing = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    segment = compressing.compress(bytes(LARGE_BYTES)) + compressing.flush()
    with pytest.raises(PeerError, match="is damaged"):
        taken(ZSTD, segment)
