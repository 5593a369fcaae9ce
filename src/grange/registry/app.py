"""A registry's endpoints, of which all can be read and none written.

Plain ASGI, as what pulls images asks for many manifests, and blobs of gigabytes. Whatever keeps a
request from being answered is told as `grange.registry.refusals` has it.
"""

import logging
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from grange.cache.ranges import FOREVER, Headers, Part, part_wanted, send_chunks, while_there
from grange.errors import GrangeError, OutsideError
from grange.images.doors import BlobBytes
from grange.images.service import Served
from grange.oci.manifest import INDEX_TYPE, MANIFEST_TYPE, Document, no_referrers
from grange.oci.names import Digest
from grange.oci.refusal import Code, RefusedError
from grange.registry.doors import Images
from grange.registry.metrics import RegistryMetrics
from grange.registry.refusals import VERSION, refusal, write_refused
from grange.registry.requests import (
    ROOT,
    Ping,
    Wanted,
    WantsBlob,
    WantsManifest,
    WantsReferrers,
    WantsTags,
    parse_page,
    parse_path,
    parse_wish,
)

log = logging.getLogger(__name__)

PATH: Final = ROOT + "{rest:path}"
WAIT_S: Final = 30.0  # containerd gives up after a minute without a byte
TAG_S: Final = 60  # how long others may take a tag's manifest for what it stands for
WARNINGS_BYTES_MAX: Final = 4096  # the specification's, of all
_READS: Final = ("GET", "HEAD")
_BLOB_TYPE: Final = "application/octet-stream"
_MANIFESTS: Final = frozenset([*MANIFEST_TYPE.values(), *INDEX_TYPE.values()])
_VERSION: Final = [(name.encode(), value.encode()) for name, value in VERSION.items()]

Check = Callable[[Scope], None]
"""Raises UnauthenticatedError or ForbiddenError where the caller may not pull."""


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    may_pull: Check
    metrics: RegistryMetrics
    is_open: bool = False  # everyone may pull: answers may lie in caches that others share
    wait_s: float = WAIT_S  # for an image that is being made, before its client is to ask again


def registry_routes(images: Images, options: RegistryOptions) -> list[Route]:
    """All under /v2/. Methods that write get the framework's 405: see `unsupported`."""
    return [Route(PATH, Registry(images, options), methods=["GET"])]


def unsupported(request: Request, error: HTTPException) -> Response | None:
    """What the framework answers under /v2/; None where that is not for a registry to say."""
    if not request.url.path.startswith(ROOT):
        return None
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return write_refused(request.method)
    return refusal(RefusedError(Code.NAME_UNKNOWN, str(error.detail)))


class Registry:
    """An ASGI application for what is under /v2/."""

    def __init__(self, images: Images, options: RegistryOptions) -> None:
        self._images = images
        self._options = options
        audience = "public" if options.is_open else "private"
        self._for_ever = FOREVER.replace("public", audience).encode()
        self._for_now = f"{audience}, max-age={TAG_S}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(scope, receive, send)
        kind = "other"
        try:
            if scope["method"] not in _READS:
                await answer.response(write_refused(scope["method"]))
                return
            self._options.may_pull(scope)
            wanted = parse_path(scope["path"])
            kind = type(wanted).__name__.removeprefix("Wants").lower()
            await self._answer(wanted, answer)
        except GrangeError as error:
            await answer.response(refusal(error))
        finally:
            self._options.metrics.count(kind, answer.status, answer.body_bytes)

    async def _answer(self, wanted: Wanted, answer: "_Answer") -> None:
        match wanted:
            case Ping():
                await answer.response(JSONResponse({}, headers=VERSION))
            case WantsManifest():
                await self._manifest(wanted, answer)
            case WantsBlob():
                await self._blob(wanted.digest, answer)
            case WantsTags():
                await self._tags(wanted.name, answer)
            case WantsReferrers():
                found = no_referrers()
                headers = [(b"cache-control", self._for_now)]
                await answer.document(found, found.digest, headers)

    async def _manifest(self, wanted: WantsManifest, answer: "_Answer") -> None:
        wish = parse_wish(answer.scope["query_string"])
        accept = [
            value.decode("latin-1") for name, value in answer.scope["headers"] if name == b"accept"
        ]
        served: Served | None = None
        async with while_there(answer.receive):
            served = await self._images.manifest(
                wanted.name, str(wanted.reference), accept, wish, self._options.wait_s
            )
        if served is None:
            return  # the client has gone
        document = served.document
        if document.media_type not in _MANIFESTS:
            raise RefusedError(
                Code.MANIFEST_UNKNOWN, f"{wanted.reference} is no manifest; it is a blob"
            )
        if isinstance(wanted.reference, Digest):
            headers = [(b"cache-control", self._for_ever)]
        else:
            headers = [(b"cache-control", self._for_now), (b"vary", b"Accept")]
        if served.commit:
            headers.append((b"grange-commit", served.commit.encode()))
        headers += [(b"warning", each) for each in _warnings(served.warnings)]
        await answer.document(document, served.digest, headers)

    async def _blob(self, digest: Digest, answer: "_Answer") -> None:
        found: BlobBytes | Document | None = None
        async with while_there(answer.receive):
            found = await self._images.blob(digest)
            if found is None:
                raise RefusedError(
                    Code.BLOB_UNKNOWN,
                    f"no image of this registry has {digest}; pull its manifest anew",
                )
        headers = [(b"cache-control", self._for_ever), (b"accept-ranges", b"bytes")]
        if isinstance(found, Document):
            await answer.document(found, digest, headers)
        elif found is not None:
            await answer.blob(found, headers)

    async def _tags(self, name: str, answer: "_Answer") -> None:
        page = parse_page(answer.scope["query_string"])
        tags = sorted(await self._images.tags(name))
        start = bisect_right(tags, page.after) if page.after else 0
        shown = tags[start : start + page.tags_max]
        headers = dict(VERSION)
        if shown and start + len(shown) < len(tags):
            query = urlencode({"n": page.tags_max, "last": shown[-1]})
            headers["link"] = f'<{ROOT}{name}/tags/list?{query}>; rel="next"'
        await answer.response(JSONResponse({"name": name, "tags": shown}, headers=headers))


class _Answer:
    """Sends one answer, and knows afterwards what it was."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.status = 0  # none was sent: the client has gone
        self.body_bytes = 0
        self._is_head = scope["method"] == "HEAD"

    async def response(self, response: Response) -> None:
        await self._whole(response.status_code, response.raw_headers, bytes(response.body))

    async def document(
        self, document: Document, digest: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> None:
        """What is in memory, or what of it the request is for."""
        body = document.body
        part, head = self._part(len(body), digest, document.media_type, headers)
        await self._whole(part.status, head, body[part.start : part.end])

    async def blob(self, blob: BlobBytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """What is streamed. What fails before the first byte is told, and what fails after it cuts
        the connection off: no client takes that for the end."""
        part, head = self._part(blob.size, blob.digest, _BLOB_TYPE, headers)
        if part.start == part.end or self._is_head:
            await self._whole(part.status, head, b"")
            return
        chunks = _exactly(blob, part)
        first: bytes | None = None
        async with while_there(self.receive):
            first = await anext(chunks)
        if first is None:
            return
        await self._start(part.status, head)
        try:
            await send_chunks(self._counted(first, chunks), self.receive, self._send)
        except OutsideError as error:
            log.error("%s was cut off after %d bytes: %s", blob.digest, self.body_bytes, error)
        except TimeoutError:
            log.info("%s was cut off: its client takes nothing more", blob.digest)

    def _part(
        self, size: int, digest: str, media_type: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[Part, list[tuple[bytes, bytes]]]:
        etag = f'"{digest}"'
        part = part_wanted(self.scope["headers"], size, etag)
        told = digest.encode()
        head = [*_VERSION, (b"docker-content-digest", told), (b"etag", etag.encode()), *headers]
        if part.status != HTTPStatus.NOT_MODIFIED:
            head.append((b"content-type", media_type.encode()))
            head.append((b"content-length", b"%d" % (part.end - part.start)))
        return part, [*head, *part.more]

    async def _counted(self, first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self.body_bytes += len(first)
        yield first
        async for chunk in rest:
            self.body_bytes += len(chunk)
            yield chunk

    async def _whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self._start(status, headers)
        sent = b"" if self._is_head else body
        self.body_bytes += len(sent)
        await self._send({"type": "http.response.body", "body": sent})

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        start: dict[str, Any] = {"type": "http.response.start", "status": status}
        await self._send({**start, "headers": [*headers]})


async def _exactly(blob: BlobBytes, part: Part) -> AsyncIterator[bytes]:
    """The bytes of `part`; raises OutsideError instead of ending early, or late. The last of them
    come when it is known that they are that: a client has all, or can tell that it has not."""
    left = part.end - part.start
    last = b""
    async for chunk in blob.read(part.start, part.end):
        left -= len(chunk)
        if left > 0:
            yield chunk
        elif left == 0 and not last:
            last = chunk
        else:
            break
    if left:
        raise OutsideError(f"{blob.digest} has not the {blob.size} bytes that are known of it")
    yield last


def _warnings(texts: Sequence[str]) -> list[bytes]:
    """Values of Warning headers, as many as may be sent. Source: RFC 7234, section 5.5."""
    values: list[bytes] = []
    left = WARNINGS_BYTES_MAX
    for text in texts:
        shown = "".join(char if char.isprintable() else " " for char in text)
        quoted = shown.encode("ascii", "replace").replace(b"\\", b"'").replace(b'"', b"'")
        room = left - len(b'299 - ""')
        if room < len(quoted) and values:
            break
        values.append(b'299 - "%s"' % quoted[:room])
        left -= len(values[-1])
    return values
