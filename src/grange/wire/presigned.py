"""Hydra's presigned uploads: how a stock builder asks where NARs go and tells that they arrived."""

from collections.abc import Iterable
from typing import Final

from grange.errors import PeerError
from grange.scheduler.facts import AttemptId
from grange.store.path import StoreDir, StorePath
from grange.wire.basic import write_hash
from grange.wire.generated.nix.store.v1 import store_pb2
from grange.wire.generated.runner.v1 import runner_pb2 as pb
from grange.wire.ids import agent_id, attempt_from_uuid, attempt_to_uuid
from grange.wire.messages import PresignedRequest, UploadComplete, UploadGrant, WantedUpload
from grange.wire.outputs import REFERENCES_MAX
from grange.wire.read import (
    URL_CHARS_MAX,
    few,
    integer,
    nix_hash,
    parse,
    store_path,
    store_paths,
    text,
)

UPLOADS_MAX: Final = 200_000  # a stock builder asks for the whole closure of its outputs

_SUFFIXES: Final = {"zstd": ".zst", "xz": ".xz", "bzip2": ".bz2", "none": ""}


def presigned_request_to_bytes(request: PresignedRequest) -> bytes:
    message = pb.PresignedUrlRequest(
        build_id=attempt_to_uuid(request.attempt), machine_id=request.agent
    )
    for upload in request.uploads:
        wanted = message.request.add(store_path=upload.path, nar_size=upload.nar_bytes)
        write_hash(wanted.nar_hash, upload.nar_hash)
    return message.SerializeToString()


def presigned_request_from_bytes(data: bytes, store_dir: StoreDir) -> PresignedRequest:
    """Paths may be absolute or base names: releases of hydra-builder differ."""
    message = parse(pb.PresignedUrlRequest, data)
    few("request", message.request, UPLOADS_MAX)
    return PresignedRequest(
        agent=agent_id(message.machine_id),
        attempt=attempt_from_uuid(message.build_id),
        uploads=tuple(
            [
                WantedUpload(
                    path=_either_path(wanted.store_path, store_dir),
                    nar_hash=nix_hash("request.nar_hash", wanted.nar_hash),
                    nar_bytes=integer("request.nar_size", wanted.nar_size),
                )
                for wanted in message.request
            ]
        ),
    )


def _either_path(path: str, store_dir: StoreDir) -> StorePath:
    return store_path("request.store_path", path.removeprefix(store_dir.root + "/"))


def grants_to_bytes(data: bytes, grants: Iterable[UploadGrant], store_dir: StoreDir) -> bytes:
    """The answer to the request `data`: paths as it spells them, without those already present.

    A stock builder takes the NAR's URL in the cache from here; as with Hydra it follows from the
    hash, for the file's own is not known before the upload.
    """
    request = pb.PresignedUrlRequest.FromString(data)
    asked = {_either_path(wanted.store_path, store_dir): wanted for wanted in request.request}
    response = pb.PresignedUrlResponse()
    for grant in grants:
        if grant.is_present:
            continue
        wanted = asked[grant.path]
        nar_hash = nix_hash("request.nar_hash", wanted.nar_hash)
        nar_url = f"nar/{nar_hash.base32()}.nar{_SUFFIXES[grant.compression]}"
        response.inner.add(
            store_path=wanted.store_path,
            nar_url=nar_url,
            nar_upload=pb.PresignedUpload(
                path=nar_url,
                url=grant.url,
                compression=grant.compression,
                compression_level=grant.compression_level,
            ),
        )
    return response.SerializeToString()


def grants_from_bytes(
    data: bytes, attempt: AttemptId, store_dir: StoreDir
) -> tuple[UploadGrant, ...]:
    message = parse(pb.PresignedUrlResponse, data)
    few("inner", message.inner, UPLOADS_MAX)
    return tuple(
        [
            UploadGrant(
                attempt=attempt,
                path=_either_path(nar.store_path, store_dir),
                url=text("nar_upload.url", nar.nar_upload.url, 1, URL_CHARS_MAX),
                compression=text("nar_upload.compression", nar.nar_upload.compression),
                compression_level=nar.nar_upload.compression_level,
                is_present=False,
            )
            for nar in message.inner
        ]
    )


def upload_complete_to_bytes(upload: UploadComplete, store_dir: StoreDir) -> bytes:
    message = pb.PresignedUploadComplete(
        build_id=attempt_to_uuid(upload.attempt),
        machine_id=upload.agent,
        nar_already_present=upload.is_already_present,
    )
    message.nar_info.path.path = upload.path
    nar = message.nar_info.info
    nar.url = upload.url
    nar.compression = upload.compression
    if upload.file_hash is not None:
        write_hash(nar.download_hash, upload.file_hash)
    if upload.file_bytes is not None:
        nar.download_size = upload.file_bytes
    info = nar.info
    info.store_dir = store_dir.root
    info.nar_size = upload.nar_bytes
    write_hash(info.nar_hash, upload.nar_hash)
    info.references.extend([store_pb2.StorePath(path=path) for path in upload.references])
    if upload.deriver is not None:
        info.deriver.path = upload.deriver
    return message.SerializeToString()


def upload_complete_from_bytes(data: bytes, store_dir: StoreDir) -> UploadComplete:
    message = parse(pb.PresignedUploadComplete, data)
    nar = message.nar_info.info
    info = nar.info
    if info.store_dir and info.store_dir != store_dir.root:
        raise PeerError(f"store_dir: {info.store_dir[:300]!r} is not {store_dir.root}")
    few("references", info.references, REFERENCES_MAX)
    has_hash, has_size = nar.HasField("download_hash"), nar.HasField("download_size")
    return UploadComplete(
        agent=agent_id(message.machine_id),
        attempt=attempt_from_uuid(message.build_id),
        path=store_path("nar_info.path", message.nar_info.path.path),
        nar_hash=nix_hash("nar_hash", info.nar_hash),
        nar_bytes=integer("nar_size", info.nar_size, 1),
        references=store_paths("references", [path.path for path in info.references]),
        deriver=store_path("deriver", info.deriver.path) if info.HasField("deriver") else None,
        url=text("url", nar.url, 0, URL_CHARS_MAX),
        compression=text("compression", nar.compression),
        file_hash=nix_hash("download_hash", nar.download_hash) if has_hash else None,
        file_bytes=integer("download_size", nar.download_size) if has_size else None,
        is_already_present=message.nar_already_present,
    )
