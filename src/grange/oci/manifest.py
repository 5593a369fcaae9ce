"""Manifests, configs and indexes of images, byte for byte the same wherever they are made.

Two families say the same in other media types: OCI's, and Docker's for clients that know no other.
Source: OCI image-spec 1.1, manifest.md, config.md, image-index.md and annotations.md; Docker's
image manifest version 2, schema 2.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

from grange.oci.descriptor import LayerDescriptor
from grange.oci.refusal import Code, RefusedError

LAYERS_MAX: Final = 127  # where Docker and containers/storage stop
MANIFEST_BYTES_MAX: Final = 4 << 20  # what the distribution specification asks all to take
WORDS_CHARS_MAX: Final = 4096  # of all words of an entrypoint; longer ones belong in a script

# The second of 1970 that files in stores have. Without any, clients show the year 1.
CREATED: Final = "1970-01-01T00:00:01Z"
USUAL_ENV: Final[Mapping[str, str]] = {
    "PATH": "/bin:/sbin:/usr/bin",
    "SSL_CERT_FILE": "/etc/ssl/certs/ca-bundle.crt",
}
# A name or a number, and the same of a group.
_USER: Final = re.compile(
    r"(?:[a-z_][a-z0-9_-]{0,31}|[0-9]{1,10})(?::(?:[a-z_][a-z0-9_-]{0,31}|[0-9]{1,10}))?\Z"
)
_NO_ARGUMENT: Final = re.compile("[\0\ud800-\udfff]")  # what no program can be given, or JSON say


class Family(StrEnum):
    """Whose media types."""

    OCI = "oci"
    DOCKER = "docker"


class Compression(StrEnum):
    """Of a layer's blob."""

    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"


MANIFEST_TYPE: Final = {
    Family.OCI: "application/vnd.oci.image.manifest.v1+json",
    Family.DOCKER: "application/vnd.docker.distribution.manifest.v2+json",
}
INDEX_TYPE: Final = {
    Family.OCI: "application/vnd.oci.image.index.v1+json",
    Family.DOCKER: "application/vnd.docker.distribution.manifest.list.v2+json",
}
CONFIG_TYPE: Final = {
    Family.OCI: "application/vnd.oci.image.config.v1+json",
    Family.DOCKER: "application/vnd.docker.container.image.v1+json",
}
LAYER_TYPE: Final = {
    (Family.OCI, Compression.NONE): "application/vnd.oci.image.layer.v1.tar",
    (Family.OCI, Compression.GZIP): "application/vnd.oci.image.layer.v1.tar+gzip",
    (Family.OCI, Compression.ZSTD): "application/vnd.oci.image.layer.v1.tar+zstd",
    (Family.DOCKER, Compression.NONE): "application/vnd.docker.image.rootfs.diff.tar",
    (Family.DOCKER, Compression.GZIP): "application/vnd.docker.image.rootfs.diff.tar.gzip",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the forms of an image, each of which has digests of its own."""

    family: Family
    compression: Compression

    def __post_init__(self) -> None:
        assert (self.family, self.compression) in LAYER_TYPE, self


OCI_GZIP: Final = Variant(Family.OCI, Compression.GZIP)
OCI_ZSTD: Final = Variant(Family.OCI, Compression.ZSTD)
DOCKER_GZIP: Final = Variant(Family.DOCKER, Compression.GZIP)


@dataclass(frozen=True, slots=True)
class Platform:
    """The machine of an image, in Go's words."""

    architecture: str
    variant: str | None = None


PLATFORMS: Final[Mapping[str, Platform]] = {
    "x86_64-linux": Platform("amd64"),
    "aarch64-linux": Platform("arm64", "v8"),
}


@dataclass(frozen=True, slots=True)
class Runtime:
    """How a container of the image starts, where it is not told otherwise."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""  # empty: root
    env: Mapping[str, str] = field(default_factory=lambda: USUAL_ENV)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer, and what is said of how it came to be."""

    descriptor: LayerDescriptor
    made_of: str  # a few words for `docker history`


@dataclass(frozen=True, slots=True)
class Document:
    """Bytes that are served under their digest."""

    media_type: str
    body: bytes

    @property
    def digest(self) -> str:
        return f"sha256:{sha256(self.body).hexdigest()}"

    def descriptor(self) -> dict[str, Any]:
        """How other documents point at it."""
        return _descriptor(self.media_type, self.digest, len(self.body))


@dataclass(frozen=True, slots=True)
class Image:
    """All of an image that is no layer."""

    config: Document
    manifest: Document
    platform: Platform


def parse_user(text: str) -> str:
    """``user`` or ``user:group``, each a name or a number; raises RefusedError."""
    if _USER.match(text) is None:
        raise RefusedError(
            Code.NAME_INVALID,
            f"{text[:100]!r} is no user; write a name or a number, and the same of a group behind "
            "a colon, as in '65532:65532'",
        )
    return text


def parse_words(words: Iterable[str]) -> tuple[str, ...]:
    """Words of an entrypoint or a command, the first of which is a program; raises RefusedError."""
    parsed = tuple(words)
    if sum(len(word) + 1 for word in parsed) > WORDS_CHARS_MAX:
        raise RefusedError(
            Code.NAME_INVALID,
            f"an entrypoint has at most {WORDS_CHARS_MAX} characters in all; put a longer one into "
            "a script of the image",
        )
    if (parsed and not parsed[0]) or any(_NO_ARGUMENT.search(word) for word in parsed):
        raise RefusedError(
            Code.NAME_INVALID,
            "an entrypoint begins with a program, and its words are text without zero bytes",
        )
    return parsed


def labels(source: str | None, commit: str | None, packages: Iterable[str]) -> dict[str, str]:
    """What an image is made of, under the keys that others look for; None is not said."""
    told = {"grange.packages": " ".join(packages)}
    if source is not None:
        told["org.opencontainers.image.source"] = source
    if commit is not None:
        told["org.opencontainers.image.revision"] = commit
    return told


def choose_variant(accept: Iterable[str], *, is_zstd_allowed: bool) -> Variant:
    """The form for a client whose Accept headers are `accept`: zstd where it can be and may.

    Only whoever knows the clients can allow zstd. Some say that they take OCI's types, and then
    do not read zstd, or not for every purpose: skopeo 1.9 makes no docker-archive of it. A
    client that names no manifest gets OCI's with gzip.
    """
    types = {
        part.partition(";")[0].strip().lower() for header in accept for part in header.split(",")
    }
    if not types.isdisjoint((MANIFEST_TYPE[Family.OCI], INDEX_TYPE[Family.OCI])):
        return OCI_ZSTD if is_zstd_allowed else OCI_GZIP
    if not types.isdisjoint((MANIFEST_TYPE[Family.DOCKER], INDEX_TYPE[Family.DOCKER])):
        return DOCKER_GZIP
    return OCI_GZIP


def image(variant: Variant, platform: Platform, runtime: Runtime, layers: Sequence[Layer]) -> Image:
    """Config and manifest of the image of `layers`, lowest first."""
    assert 0 < len(layers) <= LAYERS_MAX, len(layers)
    config = Document(CONFIG_TYPE[variant.family], _json(_config(platform, runtime, layers)))
    layer_type = LAYER_TYPE[variant.family, variant.compression]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE[variant.family],
        "config": config.descriptor(),
        "layers": [
            _descriptor(layer_type, layer.descriptor.digest, layer.descriptor.blob_bytes)
            for layer in layers
        ],
    }
    return Image(config, Document(MANIFEST_TYPE[variant.family], _json(manifest)), platform)


def index(family: Family, images: Iterable[Image]) -> Document:
    """One name for `images` of different machines, in any order; all are of `family`."""
    entries = []
    for each in sorted(images, key=lambda image: image.platform.architecture):
        assert each.manifest.media_type == MANIFEST_TYPE[family], each.manifest.media_type
        entries.append({**each.manifest.descriptor(), "platform": _platform(each.platform)})
    return _index(family, entries)


def no_referrers() -> Document:
    """The answer to who refers to a digest: nobody."""
    return _index(Family.OCI, [])


def _index(family: Family, entries: list[dict[str, Any]]) -> Document:
    body = {"schemaVersion": 2, "mediaType": INDEX_TYPE[family], "manifests": entries}
    return Document(INDEX_TYPE[family], _json(body))


def _config(platform: Platform, runtime: Runtime, layers: Sequence[Layer]) -> dict[str, Any]:
    run: dict[str, Any] = {"Env": [f"{key}={value}" for key, value in sorted(runtime.env.items())]}
    if runtime.entrypoint:
        run["Entrypoint"] = list(runtime.entrypoint)
    if runtime.command:
        run["Cmd"] = list(runtime.command)
    if runtime.user:
        run["User"] = runtime.user
    if runtime.labels:
        run["Labels"] = dict(runtime.labels)
    return {
        **_platform(platform),
        "config": run,
        "created": CREATED,
        "history": [{"created": CREATED, "created_by": layer.made_of} for layer in layers],
        "rootfs": {"type": "layers", "diff_ids": [layer.descriptor.diff_id for layer in layers]},
    }


def _platform(platform: Platform) -> dict[str, str]:
    told = {"architecture": platform.architecture, "os": "linux"}
    if platform.variant is not None:
        told["variant"] = platform.variant
    return told


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _json(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    body = text.encode()
    assert len(body) <= MANIFEST_BYTES_MAX, len(body)
    return body
