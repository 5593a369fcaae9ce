"""What S3 can do that obstore cannot: URLs with signed headers, copies pinned to what was read.

Both go through Amazon's own client, which blocks: so it runs in threads of its own. The same
session finds the credentials for obstore, so that a profile, a role or the environment holds for
both.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from boto3 import Session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store

from grange.errors import OperatorError, OutsideError
from grange.objects.cloud import CloudObjects
from grange.objects.location import StoreLocation
from grange.ports import Landed, SignedPut

CALLS_AT_ONCE: Final = 16
COPY_PART_BYTES: Final = 1 << 30  # a store that copies 20 MB a second is done in time
CONNECT_S: Final = 10
ANSWER_S: Final = 60  # a copy is answered once it is done
TYPE: Final = "application/octet-stream"
_GONE: Final = {"404", "NoSuchKey", "NotFound", "NoSuchVersion"}
_CHANGED: Final = {"412", "PreconditionFailed", *_GONE}

_R = TypeVar("_R")


class S3Direct:
    """`grange.ports.DirectUploads` of a bucket."""

    def __init__(self, objects: CloudObjects, client: Any, location: StoreLocation) -> None:
        self._objects = objects
        self._client = client
        self._location = location
        self._threads = ThreadPoolExecutor(CALLS_AT_ONCE, "s3")
        # A copy in parts names its source's version or ETag with each of them.
        self._transfer = TransferConfig(
            multipart_threshold=COPY_PART_BYTES,
            multipart_chunksize=COPY_PART_BYTES,
            use_threads=False,
        )

    @property
    def file_bytes_max(self) -> int:
        return self._location.single_put_bytes

    async def presign(self, key: str, file_bytes: int, sha256: bytes) -> SignedPut:
        """As promised: S3 refuses other bytes, another size, and a key that is taken."""
        said = {
            "IfNoneMatch": "*",
            "ContentLength": file_bytes,
            "ContentType": TYPE,
            "ChecksumSHA256": base64.b64encode(sha256).decode(),
        }
        url = await self._call(
            f"sign an upload of {key}",
            lambda: self._client.generate_presigned_url(
                "put_object",
                Params={"Bucket": self._location.name, "Key": key, **said},
                ExpiresIn=int(self._location.expiry.total_seconds()),
            ),
        )
        headers = (
            ("Content-Length", str(file_bytes)),
            ("Content-Type", TYPE),
            ("If-None-Match", "*"),
            ("x-amz-checksum-sha256", said["ChecksumSHA256"]),
        )
        return SignedPut(url, tuple((name, str(value)) for name, value in headers))

    async def landed(self, key: str) -> Landed | None:
        try:
            found = await self._call(
                f"look at {key}",
                lambda: self._client.head_object(Bucket=self._location.name, Key=key),
            )
        except _MissingError:
            return None
        version = found.get("VersionId")
        return Landed(
            key, found["ContentLength"], found["ETag"], None if version == "null" else version
        )

    async def read(self, landed: Landed) -> AsyncIterator[bytes]:
        options = {"if_match": landed.etag}
        if landed.version is not None:
            options["version"] = landed.version
        async for piece in self._objects.stream(landed.key, options, landed.size):
            yield piece

    async def adopt(self, landed: Landed, key: str) -> None:
        source = {"Bucket": self._location.name, "Key": landed.key}
        if landed.version is not None:
            source["VersionId"] = landed.version
        try:
            await self._call(
                f"copy {landed.key} to {key}",
                lambda: self._client.copy(
                    source,
                    self._location.name,
                    key,
                    ExtraArgs={"CopySourceIfMatch": landed.etag},
                    Config=self._transfer,
                ),
            )
        except _MissingError:
            raise OutsideError(
                f"{self._objects.shown}: {landed.key} is not any more what was read of it, so it "
                "was not published; upload it again"
            ) from None
        size = await self._objects.size(key)
        if size != landed.size:
            raise self._objects.short(key, size or 0, landed.size)

    async def _call(self, what: str, call: Callable[[], _R]) -> _R:
        """Run it in a thread; raises _MissingError where the object is not there or another."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _CHANGED:
                raise _MissingError from None
            raise OutsideError(f"{self._objects.shown} could not {what}: {error}"[:600]) from None
        except BotoCoreError as error:
            raise OutsideError(f"{self._objects.shown} could not {what}: {error}"[:600]) from None


class _MissingError(Exception):
    """What was asked for is not there, or not as it was."""


def open_s3(location: StoreLocation) -> CloudObjects:
    """Raises OperatorError where no credentials are to be found."""
    try:
        session = Session(
            profile_name=location.profile or None, region_name=location.region or None
        )
        has_credentials = session.get_credentials() is not None
        client = session.client(
            "s3",
            endpoint_url=location.endpoint or None,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path" if location.endpoint else "virtual"},
                connect_timeout=CONNECT_S,
                read_timeout=ANSWER_S,
                max_pool_connections=CALLS_AT_ONCE,
                retries={"mode": "standard", "total_max_attempts": 4},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise OperatorError(f"--store {location.shown}: {error}") from None
    if not has_credentials:
        raise OperatorError(
            f"--store {location.shown}: no credentials are found; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, name a profile of ~/.aws with ?profile=, or give this machine "
            "a role"
        )
    return s3_objects(location, client, Boto3CredentialProvider(session))


def s3_objects(
    location: StoreLocation, client: Any, credentials: Boto3CredentialProvider
) -> CloudObjects:
    from grange.objects.open import CLIENT, RETRIES

    endpoint: dict[str, Any] = {}
    if location.endpoint:
        endpoint = {"endpoint": location.endpoint, "virtual_hosted_style_request": False}
    store = S3Store(
        location.name,
        region=location.region,
        client_options={**CLIENT, "allow_http": location.endpoint.startswith("http://")},
        retry_config=RETRIES,
        credential_provider=credentials,
        **endpoint,
    )
    objects = CloudObjects(store, location.shown, part_bytes=location.part_bytes)
    objects.offer(S3Direct(objects, client, location))
    return objects
