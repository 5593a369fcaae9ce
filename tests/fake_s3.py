"""An S3 server with teeth: signatures, conditions and versions as S3 has them, faults on demand.

moto answers in S3's shapes, but takes any signature and any checksum and never fails. This one
refuses what S3 refuses, and does wrong what a test tells it to.
"""

import asyncio
import base64
import hashlib
import hmac
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape, unescape

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from grange.objects.location import parse_location
from grange.objects.open import open_store
from grange.ports import Objects

KEY: Final = "AKFAKE"
SECRET: Final = "fake-secret"
BUCKET: Final = "store"
BODY_MAX: Final = 1 << 30
T = TypeVar("T")


@dataclass(frozen=True)
class Version:
    id: str
    data: bytes
    headers: dict[str, str]
    changed: datetime
    etag: str


@dataclass
class Faults:
    """What goes wrong; each is asked with the key."""

    refuse: Callable[[str, str], int] = lambda _method, _key: 0  # a status to answer with, or 0
    change: Callable[[str, bytes], bytes] = lambda _key, data: data  # of what a GET gives
    cut: Callable[[str], int | None] = lambda _key: None  # bytes after which a GET breaks off
    before: Callable[[str, str], Awaitable[None]] | None = None  # of every request
    keeps: Callable[[str], bool] = lambda _key: True  # else a PUT is answered and forgotten
    is_listed: Callable[[str], bool] = lambda _key: True
    has_conditions: bool = True  # else If-None-Match and checksums are passed over


@dataclass
class FakeS3:
    is_versioned: bool = False
    faults: Faults = field(default_factory=Faults)
    objects: dict[str, list[Version]] = field(default_factory=dict)  # newest last
    requests: list[tuple[str, str]] = field(default_factory=list)  # method, key
    clock_ahead: timedelta = timedelta()  # of the machine's
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    upload_headers: dict[str, dict[str, str]] = field(default_factory=dict)
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    url: str = ""

    def now(self) -> datetime:
        return datetime.now(UTC) + self.clock_ahead

    def held(self) -> set[str]:
        return set(self.objects)

    def data(self, key: str) -> bytes:
        return self.objects[key][-1].data

    def store(self, key: str, data: bytes, headers: dict[str, str] | None = None) -> Version:
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        id_ = f"v{next(self.numbers)}" if self.is_versioned else "null"
        version = Version(id_, data, headers or {}, self.now(), etag)
        if self.faults.keeps(key):
            history = self.objects.setdefault(key, [])
            if not self.is_versioned:
                history.clear()
            history.append(version)
        return version

    # --- The server ---------------------------------------------------------------------------

    async def answer(self, request: web.Request) -> web.StreamResponse:
        key = unquote(request.path).removeprefix(f"/{BUCKET}").lstrip("/")
        self.requests.append((request.method, key))
        if self.faults.before is not None:
            await self.faults.before(request.method, key)
        if status := self.faults.refuse(request.method, key):
            return _error(status, {503: "SlowDown", 403: "AccessDenied"}.get(status, "Odd"))
        if not request.path.startswith(f"/{BUCKET}"):
            return _error(404, "NoSuchBucket")
        if refused := self._unsigned(request):
            return refused
        query = request.query
        match request.method:
            case "GET" | "HEAD" if key:
                return await self._get(request, key)
            case "GET":
                return self._list(query.get("prefix", ""))
            case "PUT" if "partNumber" in query:
                return await self._put_part(request, key)
            case "PUT" if "x-amz-copy-source" in request.headers:
                return self._copy(request, key)
            case "PUT":
                return await self._put(request, key)
            case "POST" if "uploads" in query:
                id_ = f"u{next(self.numbers)}"
                self.uploads[id_] = {}
                self.upload_headers[id_] = _kept(request)
                return _xml("InitiateMultipartUploadResult", f"<UploadId>{id_}</UploadId>")
            case "POST" if "delete" in query:
                names = re.findall("<Key>.*?</Key>", await request.text())
                for name in names:
                    self.objects.pop(unescape(name[len("<Key>") : -len("</Key>")]), None)
                return _xml("DeleteResult", "".join(f"<Deleted>{name}</Deleted>" for name in names))
            case "POST":
                return await self._complete(request, key)
            case "DELETE":
                if "uploadId" in query:
                    self.uploads.pop(query["uploadId"], None)
                else:
                    self.objects.pop(key, None)
                return web.Response(status=204)
        return _error(405, "MethodNotAllowed")

    def _find(self, key: str, version: str = "") -> Version | None:
        found = [v for v in self.objects.get(key, ()) if version in ("", v.id)]
        return found[-1] if found else None

    async def _get(self, request: web.Request, key: str) -> web.StreamResponse:
        found = self._find(key, request.query.get("versionId", ""))
        if found is None:
            return _error(404, "NoSuchKey", request)
        if request.headers.get("If-Match", found.etag) != found.etag:
            return _error(412, "PreconditionFailed", request)
        headers = {"ETag": found.etag, "Last-Modified": _http_date(found.changed), **found.headers}
        if self.is_versioned:
            headers["x-amz-version-id"] = found.id
        data, status = self.faults.change(key, found.data), 200
        if asked := request.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(data)
            if start >= len(data):
                return _error(416, "InvalidRange", request)
            headers["Content-Range"] = f"bytes {start}-{min(end, len(data)) - 1}/{len(data)}"
            data, status = data[start:end], 206
        headers["Content-Length"] = str(len(data))
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        if request.method == "GET":
            cut = self.faults.cut(key)
            await response.write(data[:cut])
            if cut is not None and cut < len(data):
                assert request.transport is not None
                request.transport.close()
        return response

    async def _put(self, request: web.Request, key: str) -> web.Response:
        data = await request.read()
        if self.faults.has_conditions:
            checksum = request.headers.get("x-amz-checksum-sha256")
            if checksum and base64.b64decode(checksum) != hashlib.sha256(data).digest():
                return _error(400, "BadDigest")
            if request.headers.get("If-None-Match") == "*" and key in self.objects:
                return _error(412, "PreconditionFailed")
        return self._stored(self.store(key, data, _kept(request)))

    def _stored(self, version: Version) -> web.Response:
        headers = {"ETag": version.etag}
        if self.is_versioned:
            headers["x-amz-version-id"] = version.id
        return web.Response(headers=headers)

    def _copy(self, request: web.Request, key: str) -> web.Response:
        source, _, version = request.headers["x-amz-copy-source"].partition("?versionId=")
        found = self._find(unquote(source).lstrip("/").removeprefix(f"{BUCKET}/"), version)
        if found is None:
            return _error(404, "NoSuchKey")
        if request.headers.get("x-amz-copy-source-if-match", found.etag) != found.etag:
            return _error(412, "PreconditionFailed")
        copied = self.store(key, found.data, found.headers)
        return _xml("CopyObjectResult", f"<ETag>{escape(copied.etag)}</ETag>")

    async def _put_part(self, request: web.Request, key: str) -> web.Response:
        parts = self.uploads.get(request.query["uploadId"])
        if parts is None:
            return _error(404, "NoSuchUpload")
        data = await request.read()
        if source := request.headers.get("x-amz-copy-source"):
            name, _, version = source.partition("?versionId=")
            found = self._find(unquote(name).lstrip("/").removeprefix(f"{BUCKET}/"), version)
            wanted = request.headers.get("x-amz-copy-source-if-match")
            if found is None or wanted not in (None, found.etag):
                return _error(412, "PreconditionFailed")
            first, _, last = (
                request.headers["x-amz-copy-source-range"].removeprefix("bytes=").partition("-")
            )
            data = found.data[int(first) : int(last) + 1]
        parts[int(request.query["partNumber"])] = data
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if source:
            return _xml("CopyPartResult", f"<ETag>{escape(etag)}</ETag>")
        return web.Response(headers={"ETag": etag})

    async def _complete(self, request: web.Request, key: str) -> web.Response:
        await request.read()
        id_ = request.query["uploadId"]
        parts = self.uploads.pop(id_, None)
        if parts is None:
            return _error(404, "NoSuchUpload")
        data = b"".join(parts[number] for number in sorted(parts))
        version = self.store(key, data, self.upload_headers.pop(id_))
        return _xml(
            "CompleteMultipartUploadResult",
            f"<Bucket>{BUCKET}</Bucket><Key>{escape(key)}</Key><ETag>{escape(version.etag)}</ETag>",
        )

    def _list(self, prefix: str) -> web.Response:
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(history[-1].data)}</Size>"
            f"<ETag>{escape(history[-1].etag)}</ETag>"
            f"<LastModified>{history[-1].changed:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
            for key, history in sorted(self.objects.items())
            if key.startswith(prefix) and self.faults.is_listed(key)
        )
        return _xml("ListBucketResult", f"<IsTruncated>false</IsTruncated>{contents}")

    # --- Signatures ---------------------------------------------------------------------------

    def _unsigned(self, request: web.Request) -> web.Response | None:
        """What S3 says to a request that nobody signed; signed URLs are looked at closely."""
        query = request.query
        if "X-Amz-Signature" not in query:
            signed = request.headers.get("Authorization", "")
            return None if f"Credential={KEY}/" in signed else _error(403, "AccessDenied", request)
        made = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if self.now() > made + timedelta(seconds=int(query["X-Amz-Expires"])):
            return _error(403, "AccessDenied", request)
        names = query["X-Amz-SignedHeaders"].split(";")
        if any(name not in request.headers for name in names):
            return _error(403, "SignatureDoesNotMatch", request)
        pairs = sorted((k, v) for k, v in query.items() if k != "X-Amz-Signature")
        canonical = "\n".join(
            [
                request.method,
                quote(unquote(request.path), safe="/-_.~"),
                "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in pairs),
                *[f"{name}:{request.headers[name].strip()}" for name in names],
                "",
                ";".join(names),
                "UNSIGNED-PAYLOAD",
            ]
        )
        _, day, region, service, end = query["X-Amz-Credential"].split("/")
        to_sign = "\n".join(
            [
                "AWS4-HMAC-SHA256",
                query["X-Amz-Date"],
                f"{day}/{region}/{service}/{end}",
                hashlib.sha256(canonical.encode()).hexdigest(),
            ]
        )
        secret = f"AWS4{SECRET}".encode()
        for part in (day, region, service, end):
            secret = hmac.digest(secret, part.encode(), "sha256")
        wanted = hmac.digest(secret, to_sign.encode(), "sha256").hex()
        if not hmac.compare_digest(wanted, query["X-Amz-Signature"]):
            return _error(403, "SignatureDoesNotMatch", request)
        return None


def _kept(request: web.Request) -> dict[str, str]:
    names = ("Content-Type", "Content-Encoding")
    return {name: request.headers[name] for name in names if name in request.headers}


def _http_date(moment: datetime) -> str:
    return moment.strftime("%a, %d %b %Y %H:%M:%S GMT")


def _xml(name: str, body: str) -> web.Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}>{body}</{name}>'
    return web.Response(text=text, content_type="application/xml")


def _error(status: int, code: str, request: web.Request | None = None) -> web.Response:
    if request is not None and request.method == "HEAD":
        return web.Response(status=status)
    text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


@asynccontextmanager
async def fake_s3(*, is_versioned: bool = False) -> AsyncIterator[FakeS3]:
    """One that listens, with an empty bucket."""
    fake = FakeS3(is_versioned)
    app = web.Application(client_max_size=BODY_MAX)
    app.router.add_route("*", "/{path:.*}", fake.answer)
    server = TestServer(app)
    await server.start_server()
    fake.url = f"http://127.0.0.1:{server.port}"
    try:
        yield fake
    finally:
        await asyncio.wait_for(server.close(), 10)


@contextmanager
def fake_s3_apart() -> Iterator[FakeS3]:
    """One in a thread of its own, for tests that wait for other processes."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    context = fake_s3()

    def run(coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    try:
        yield run(context.__aenter__())
        run(context.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def open_fake(fake: FakeS3, monkeypatch: pytest.MonkeyPatch, options: str = "") -> Objects:
    """Its bucket, as a farm opens it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return open_store(parse_location(f"s3://{BUCKET}?endpoint={fake.url}{options}"))
