"""Segments: layers are read as one stream, say what they are, and are the same however made."""

import gzip
import io
import random
import subprocess
import tracemalloc
from dataclasses import replace
from hashlib import sha256

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.oci.segments import GZIP, ZSTD, Codec, Layer, LayerWriter
from grange.oci.tar import END, TarOfNar, store_header
from grange.store.nar import Directory, File, nar_of_tree, single_file_nar
from grange.store.path import StorePath
from tests.unit.test_oci_tar import trees

PATHS = [StorePath.parse_base(f"{digit * 32}-{name}") for digit, name in (("0", "a"), ("1", "b"))]
CODECS = pytest.mark.parametrize("codec", [GZIP, ZSTD], ids=lambda codec: codec.compression)
noise = random.Random(7).randbytes
# Larger than a block.
LARGE = Directory({b"a": File(noise(300_000) + bytes(2 << 20)), b"b": File(b"b" * 200_000, True)})


def made(
    codec: Codec, members: list[tuple[StorePath, bytes]], step: int = 1 << 20
) -> tuple[bytes, Layer]:
    """The blob of these NARs, fed `step` bytes at a time."""
    writer = LayerWriter(codec)
    blob = writer.start()
    for path, nar in members:
        writer.open(path)
        for at in range(0, len(nar), step):
            blob += b"".join(writer.feed(nar[at : at + step]))
        blob += writer.close()
    last, layer = writer.finish()
    return blob + last, layer


def tar_of(members: list[tuple[StorePath, bytes]]) -> bytes:
    entries = []
    for path, nar in members:
        tar = TarOfNar(path)
        entries.append(tar.feed(nar) + tar.finish())
    return store_header() + b"".join(entries) + END


def undone(codec: Codec, blob: bytes) -> bytes:
    if codec.compression == "gzip":
        return gzip.decompress(blob)
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(blob), read_across_frames=True)
    return reader.read()


def digest_of(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


def copied(codec: Codec, blobs: list[tuple[bytes, Layer]], step: int = 1000) -> tuple[bytes, Layer]:
    """A layer of all segments of these."""
    writer = LayerWriter(codec)
    blob = writer.start()
    for source, layer in blobs:
        for segment in layer.segments:
            writer.open_segment(segment.path, segment.digest)
            data = source[segment.offset : segment.offset + segment.size]
            for at in range(0, len(data), step):
                blob += b"".join(writer.feed(data[at : at + step]))
            blob += writer.close()
    last, layer = writer.finish()
    return blob + last, layer


@CODECS
@given(data=st.data())
def test_a_layer_is_one_archive_and_says_what_it_is(codec: Codec, data: st.DataObject) -> None:
    members = [(path, nar_of_tree(data.draw(trees))) for path in PATHS]
    blob, layer = made(codec, members)
    tar = undone(codec, blob)
    assert tar == tar_of(members)
    assert (layer.diff_id, layer.tar_bytes) == (digest_of(tar), len(tar))
    assert (layer.digest, layer.blob_bytes) == (digest_of(blob), len(blob))
    for segment in layer.segments:
        assert segment.digest == digest_of(blob[segment.offset :][: segment.size])


@CODECS
@given(step=st.integers(1, 1 << 20).filter(lambda step: step > 999 or step == 1))
def test_chunks_do_not_show(codec: Codec, step: int) -> None:
    nar = nar_of_tree(LARGE) if step > 1 else single_file_nar(b"abc")
    assert made(codec, [(PATHS[0], nar)], step) == made(codec, [(PATHS[0], nar)])


@CODECS
def test_other_programs_read_the_segments(codec: Codec) -> None:
    members = [(PATHS[0], nar_of_tree(LARGE)), (PATHS[1], single_file_nar(b"b"))]
    blob, _ = made(codec, members)
    command = [codec.compression, "--decompress", "--stdout"]
    done = subprocess.run(command, input=blob, check=True, capture_output=True)
    assert done.stdout == tar_of(members)


@CODECS
def test_a_layer_of_segments_is_the_layer_of_their_nars(codec: Codec) -> None:
    members = [(PATHS[0], nar_of_tree(LARGE)), (PATHS[1], single_file_nar(b"b"))]
    alone = [made(codec, [member]) for member in members]
    assert copied(codec, alone) == made(codec, members)
    assert copied(codec, [made(codec, members)], step=1 << 20) == made(codec, members)


@CODECS
@pytest.mark.parametrize("at", [0, 3, 40, 5000, -9, -1])
def test_a_changed_segment_is_refused(codec: Codec, at: int) -> None:
    blob, layer = made(codec, [(PATHS[0], nar_of_tree(LARGE))])
    (segment,) = layer.segments
    changed = bytearray(blob)
    changed[segment.offset + at if at >= 0 else segment.offset + segment.size + at] ^= 0x55
    with pytest.raises(PeerError, match="make it from NARs"):
        copied(codec, [(bytes(changed), layer)])


@CODECS
def test_a_segment_cut_short_is_refused(codec: Codec) -> None:
    blob, layer = made(codec, [(PATHS[0], nar_of_tree(LARGE))])
    (segment,) = layer.segments
    for left in (0, 1, segment.size - 1):
        cut = replace(layer, segments=(replace(segment, size=left),))
        with pytest.raises(PeerError, match="digest"):
            copied(codec, [(blob, cut)])


@CODECS
def test_a_refused_nar_ends_the_layer(codec: Codec) -> None:
    writer = LayerWriter(codec)
    writer.start()
    writer.open(PATHS[0])
    with pytest.raises(PeerError):
        list(writer.feed(b"no archive" * 1000))
    for step in (lambda: list(writer.feed(b"")), writer.close, writer.finish):
        with pytest.raises(AssertionError):
            step()


@CODECS
def test_a_nar_cut_short_ends_the_layer(codec: Codec) -> None:
    writer = LayerWriter(codec)
    writer.start()
    writer.open(PATHS[0])
    assert b"".join(writer.feed(nar_of_tree(LARGE)[:-8]))
    with pytest.raises(PeerError, match="ends early"):
        writer.close()
    with pytest.raises(AssertionError):
        writer.finish()


@CODECS
def test_a_path_that_is_not_closed_is_no_layer(codec: Codec) -> None:
    writer = LayerWriter(codec)
    writer.start()
    writer.open(PATHS[0])
    with pytest.raises(AssertionError):
        writer.finish()
    with pytest.raises(AssertionError):
        writer.open(PATHS[1])


@CODECS
def test_memory_is_bounded_whatever_a_segment_stands_for(codec: Codec) -> None:
    nar = single_file_nar(bytes(64 << 20))
    whole = made(codec, [(PATHS[0], nar)])
    del nar
    tracemalloc.start()
    again = copied(codec, [whole], step=1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert again == whole
    assert peak < 8 << 20


def test_a_codec_is_named_by_all_that_decides_its_bytes() -> None:
    assert GZIP.version.startswith("gzip-6-zlib-1.")
    assert ZSTD.version.startswith("zstd-3-libzstd-1.")
    assert replace(ZSTD, level=4).version != ZSTD.version
