"""An image fetched as any client of a registry does: by digests, which are checked.

A transfer that breaks off goes on where it was.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from grange.client.answers import unreachable
from grange.client.connection import CONNECT_S
from grange.errors import GrangeError, OutsideError, PeerError

DOCUMENT_BYTES_MAX: Final = 4 << 20  # what the distribution specification asks all to take
LAYERS_MAX: Final = 127
SILENCE_S: Final = 120.0  # a layer that was collected is made again before its first byte
TRIES: Final = 6  # in a row without a byte more: two minutes, for a farm that restarts
PAUSE_S: Final = 1.0  # before the second try; twice as long before each after it, ...
PAUSE_MAX_S: Final = 60.0  # ... and as long as the farm says, up to this
_LATER: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)

Sink = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Blob:
    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class PulledImage:
    """All of an image but its layers."""

    media_type: str  # of its manifest
    manifest: bytes
    config: bytes
    config_blob: Blob
    layers: tuple[Blob, ...]  # lowest first
    diff_ids: tuple[str, ...]  # of each

    @property
    def blob_bytes(self) -> int:
        """Of all layers, each once."""
        return sum({layer.digest: layer.size for layer in self.layers}.values())


class ImagePuller:
    """A repository of the registry at `url`. Belongs to one event loop."""

    def __init__(
        self,
        url: str,
        name: str,
        authorization: str | None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`authorization` is the header to show; `transport` replaces the network."""
        is_far = url.startswith("https://")
        self._root = f"{url}/v2/{quote(name)}"
        self._url = url
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            verify=is_far,
            trust_env=is_far,
            follow_redirects=True,  # to buckets; httpx shows those no credential
            headers={"authorization": authorization} if authorization else {},
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def image(self, digest: str) -> PulledImage:
        """The image whose manifest has this digest.

        Raises PeerError where the farm refuses it, OutsideError where it cannot be had.
        """
        answer = await self._get(f"manifests/{digest}")
        _check(answer.content, digest)
        manifest = _document(answer.content, digest)
        try:
            config_blob, *layers = [
                Blob(str(each["mediaType"]), str(each["digest"]), int(each["size"]))
                for each in (manifest["config"], *manifest["layers"])
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise _garbled(digest) from error
        if len(layers) > LAYERS_MAX:
            raise _garbled(digest)
        config = bytearray()
        if config_blob.size > DOCUMENT_BYTES_MAX:
            raise _garbled(config_blob.digest)
        await self.fetch(config_blob, _into(config))
        try:
            diff_ids = [str(each) for each in _document(config, digest)["rootfs"]["diff_ids"]]
        except (KeyError, TypeError) as error:
            raise _garbled(config_blob.digest) from error
        if len(diff_ids) != len(layers):
            raise _garbled(config_blob.digest)
        media_type = str(manifest.get("mediaType") or answer.headers["content-type"])
        return PulledImage(
            media_type, answer.content, bytes(config), config_blob, tuple(layers), tuple(diff_ids)
        )

    async def fetch(self, blob: Blob, sink: Sink) -> None:
        """Give all bytes of `blob` to `sink`, in their order, each once.

        Raises as `image`; what `sink` has got by then is of no use.
        """
        hasher, done, failures = sha256(), 0, 0
        while done < blob.size:
            before = done
            try:
                async with self._stream(blob, done) as answer:
                    # Who knows no ranges begins anew.
                    skip = 0 if answer.status_code == HTTPStatus.PARTIAL_CONTENT else done
                    async for chunk in answer.aiter_raw():
                        piece = chunk[skip:]
                        skip -= len(chunk) - len(piece)
                        done += len(piece)
                        if done > blob.size:
                            raise _wrong(blob.digest)
                        hasher.update(piece)
                        await sink(piece)
                if done < blob.size:
                    raise httpx.ReadError(f"it ended {blob.size - done} bytes early")
            except (httpx.TransportError, _LaterError) as error:
                failures = 1 if done > before else failures + 1
                if failures == TRIES:
                    raise self._given_up(error, blob.digest) from error
                await asyncio.sleep(_patience_s(error, failures))
        if f"sha256:{hasher.hexdigest()}" != blob.digest:
            raise _wrong(blob.digest)

    def _given_up(self, error: Exception, what: str) -> OutsideError:
        if isinstance(error, _LaterError):
            return OutsideError(str(error))
        assert isinstance(error, httpx.TransportError)
        if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError):
            return OutsideError(
                f"{self._url} broke off {what} {TRIES} times ({error}); see the farm's log, which "
                "says why it could not go on"
            )
        return unreachable(self._url, error)

    def _stream(self, blob: Blob, start: int) -> "_Stream":
        headers = {"accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        url = f"{self._root}/blobs/{blob.digest}"
        return _Stream(self._http, self._http.build_request("GET", url, headers=headers))

    async def _get(self, path: str) -> httpx.Response:
        """A document, whole."""
        failures = 0
        while True:
            try:
                async with _Stream(
                    self._http, self._http.build_request("GET", f"{self._root}/{path}")
                ) as answer:
                    if int(answer.headers.get("content-length", 0)) > DOCUMENT_BYTES_MAX:
                        raise _garbled(path)
                    await answer.aread()
                    return answer
            except (httpx.TransportError, _LaterError) as error:
                failures += 1
                if failures == TRIES:
                    raise self._given_up(error, path) from error
                await asyncio.sleep(_patience_s(error, failures))


class _LaterError(Exception):
    """The farm cannot just now, and says when to ask again."""

    def __init__(self, text: str, after_s: float) -> None:
        super().__init__(text)
        self.after_s = after_s


class _Stream:
    """An answer that is a success; for any other it raises."""

    def __init__(self, http: httpx.AsyncClient, request: httpx.Request) -> None:
        self._http = http
        self._request = request
        self._answer: httpx.Response | None = None

    async def __aenter__(self) -> httpx.Response:
        answer = self._answer = await self._http.send(self._request, stream=True)
        if not answer.is_success:
            try:
                await answer.aread()
            finally:
                await answer.aclose()
            raise _refusal(answer)
        return answer

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._answer is not None
        await self._answer.aclose()


def _patience_s(error: Exception, failures: int) -> float:
    said = error.after_s if isinstance(error, _LaterError) else 0.0
    return max(min(said, PAUSE_MAX_S), PAUSE_S * (1 << (failures - 1)))


def _refusal(answer: httpx.Response) -> GrangeError | _LaterError:
    """What a registry's error stands for."""
    try:
        text = "; ".join(str(each["message"]) for each in answer.json()["errors"])
    except (ValueError, KeyError, TypeError):
        text = f"{answer.request.url} answered {answer.status_code}"
    if answer.status_code in _LATER:
        said = answer.headers.get("retry-after", "")
        return _LaterError(text, float(said) if said.isascii() and said.isdigit() else 0.0)
    return OutsideError(text) if answer.is_server_error else PeerError(text)


def _into(found: bytearray) -> Sink:
    async def add(piece: bytes) -> None:
        found.extend(piece)

    return add


def _check(content: bytes, digest: str) -> None:
    if f"sha256:{sha256(content).hexdigest()}" != digest:
        raise _wrong(digest)


def _document(content: bytes | bytearray, digest: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise _garbled(digest) from error
    if not isinstance(found, dict):
        raise _garbled(digest)
    return found


def _wrong(digest: str) -> OutsideError:
    return OutsideError(
        f"what came for {digest} is something else; a proxy between here and the farm may be at "
        "fault: try again, or ask the farm itself"
    )


def _garbled(what: str) -> OutsideError:
    return OutsideError(f"{what} is no image of one machine; see that the URL is a farm's")
