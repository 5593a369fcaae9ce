"""Rows of images, and the records they stand for."""

import json
import zlib
from collections.abc import Iterable, Sequence
from hashlib import sha256
from operator import itemgetter
from typing import Final

from grange.db.rows import Row, read_hash, read_outputs, read_paths, show_hash, show_outputs
from grange.oci.descriptor import LayerDescriptor, Member
from grange.oci.manifest import Compression, Document, Family, Variant
from grange.oci.names import Attribute
from grange.ports import (
    Evaluated,
    ImageKey,
    ImageRecord,
    Lack,
    NoPackage,
    Package,
    PackageSet,
    RuntimeWish,
    StoredLayer,
    StoredSegment,
)
from grange.store.path import StorePath

NAMES_LEVEL: Final = 6  # of zlib: all of nixpkgs in some 100 kB


def set_row(packages: PackageSet) -> Row:
    """As the queries ask for it."""
    return packages.source, packages.commit, packages.settings


def show_attribute(attribute: Attribute) -> str:
    return json.dumps(attribute)


def read_attribute(text: str) -> Attribute:
    return tuple(json.loads(text))


def pack_names(names: Sequence[str]) -> bytes:
    return zlib.compress(json.dumps([*names]).encode(), NAMES_LEVEL)


def unpack_names(data: bytes) -> tuple[str, ...]:
    return tuple(json.loads(zlib.decompress(data)))


def answer_row(answer: Evaluated) -> Row:
    attribute = show_attribute(answer.attribute)
    if isinstance(answer, NoPackage):
        return attribute, None, "", "", answer.lack.value, answer.message
    outputs = show_outputs(answer.outputs)
    return attribute, str(answer.drv_path), outputs, answer.program, None, ""


def read_answer(row: Row) -> Evaluated:
    attribute, drv_path, outputs, program, lack, message = row
    way = read_attribute(attribute)
    if drv_path is None:
        return NoPackage(way, Lack(lack), message)
    return Package(way, StorePath(drv_path), read_outputs(outputs), program)


def member_row(member: Member) -> tuple[str, str]:
    return str(member.path), show_hash(member.nar_hash)


def read_member(path: str, nar_hash: str) -> Member:
    return Member(StorePath(path), read_hash(nar_hash))


def layer_row(number: int, layer: StoredLayer) -> Row:
    facts = layer.descriptor
    is_root = int(layer.is_root)
    return number, layer.key, layer.codec, facts.diff_id, facts.digest, facts.blob_bytes, is_root


def read_layer(row: Row, contents: Iterable[Row]) -> StoredLayer | None:
    """None where a segment is lost: then it must be made again."""
    _, key, codec, diff_id, digest, blob_bytes, is_root = row
    members: list[Member] = []
    segments: list[StoredSegment] = []
    for _, path, nar_hash, segment, segment_bytes in sorted(contents, key=itemgetter(1, 2)):
        member = read_member(path, nar_hash)
        members.append(member)
        if is_root:
            continue
        if segment is None:
            return None
        segments.append(StoredSegment(member, segment, segment_bytes))
    facts = LayerDescriptor(diff_id, digest, blob_bytes)
    return StoredLayer(key, codec, facts, tuple(members), tuple(segments), bool(is_root))


def image_key(key: ImageKey) -> str:
    """Of bounded size, whatever is in it."""
    told = [key.name, *set_row(key.packages), *_variant_row(key.variant), _show_wish(key.wish)]
    return sha256(json.dumps(told).encode()).hexdigest()


def image_row(number: int, packages: int, image: ImageRecord) -> Row:
    key = image.key
    return (
        number,
        image_key(key),
        packages,
        key.name,
        *_variant_row(key.variant),
        _show_wish(key.wish),
        image.manifest.digest,
        image.config.digest,
        " ".join(image.roots),
        image.created,
        image.used,
    )


def read_image(row: Row) -> ImageRecord:
    name, source, settings, commit, family, compression, wish = row[:7]
    manifest_type, manifest, config_type, config, roots, created, used, layers = row[7:15]
    entrypoint, command, user = json.loads(wish)
    return ImageRecord(
        ImageKey(
            name,
            PackageSet(source, settings, commit),
            Variant(Family(family), Compression(compression)),
            RuntimeWish(tuple(entrypoint), tuple(command), user),
        ),
        Document(manifest_type, manifest),
        Document(config_type, config),
        tuple((layers or "").split()),
        read_paths(roots),
        created,
        used,
    )


def named_manifests(index: Document) -> list[str]:
    """Digests of the manifests that an index names, each once."""
    return [*{each["digest"]: None for each in json.loads(index.body)["manifests"]}]


def _variant_row(variant: Variant) -> tuple[str, str]:
    return variant.family.value, variant.compression.value


def _show_wish(wish: RuntimeWish) -> str:
    return json.dumps([wish.entrypoint, wish.command, wish.user])
