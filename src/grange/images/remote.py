"""Images made by the coordinator that leads, asked over HTTP: for whoever serves them elsewhere."""

from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Final
from urllib.parse import urljoin

import httpx
from pydantic import BaseModel, ValidationError

from grange.client.answers import problem, unreachable
from grange.client.image_models import MakeAnswer, MakeRequest, UsedRequest
from grange.errors import OutsideError, PeerError
from grange.images.settings import ImageSettings
from grange.oci.refusal import Code, RefusedError
from grange.ports import ImageRequest, Made, Pending
from grange.scheduler.facts import BuildId

BEYOND_S: Final = 30.0  # that a coordinator may be late with an answer that was to wait
CONNECT_S: Final = 5.0
WAIT_S_MAX: Final = 60.0  # what `MakeRequest` takes
REDIRECTS_MAX: Final = 3  # to the coordinator that leads
USED_AT_ONCE: Final = 10_000  # what `UsedRequest` takes

_ELSEWHERE: Final = (HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT)


class RemoteMaker:
    """Implements `grange.ports.Maker`."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        urls: str,
        *,
        authorization: Callable[[], str | None],
        settings: Callable[[], ImageSettings],
    ) -> None:
        """`urls` are of the farm's coordinators, with commas between; any of them will do.

        `authorization` is the header to show them, None for none; `settings` are as the farm's are
        now, for its package sources.
        """
        self._http = http
        self._urls = [each.strip().rstrip("/") for each in urls.split(",")]
        self._authorization = authorization
        self._settings = settings

    async def make(self, request: ImageRequest, wait_s: float) -> Made | Pending:
        wish = request.wish
        try:
            wanted = MakeRequest.model_validate(
                {
                    "name": request.name.show(),
                    "tag": str(request.tag),
                    "family": request.variant.family.value,
                    "compression": request.variant.compression.value,
                    "entrypoint": list(wish.entrypoint),
                    "command": list(wish.command),
                    "user": wish.user,
                    "wait_s": min(wait_s, WAIT_S_MAX),
                }
            )
        except ValidationError as error:
            text = f"an image cannot start like that: {error.errors()[0]['msg']}"
            raise RefusedError(Code.NAME_INVALID, text) from error
        body = await self._post("make", wanted, wait_s + BEYOND_S)
        try:
            return self._read(request, MakeAnswer.model_validate_json(body))
        except ValidationError as error:
            text = f"the coordinator answers what is not understood here: {error.errors()[0]}"
            raise OutsideError(text) from error

    def _read(self, request: ImageRequest, answer: MakeAnswer) -> Made | Pending:
        match answer.state:
            case "ready":
                source = self._settings().source_of(request.name)
                return Made(answer.digest, source.at(answer.commit))
            case "pending":
                builds = tuple(map(BuildId, answer.builds))
                return Pending(answer.words, builds, max(1, answer.retry_after_s))
            case "refused":
                known = answer.code in set(Code)
                code = Code(answer.code) if known else Code.MANIFEST_UNKNOWN
                raise RefusedError(code, answer.words, answer.detail)
            case "failed":
                raise OutsideError(answer.words)

    async def note_used(self, digests: Collection[str]) -> None:
        every = sorted(digests)
        for start in range(0, len(every), USED_AT_ONCE):
            part = UsedRequest(digests=every[start : start + USED_AT_ONCE])
            await self._post("used", part, BEYOND_S)

    async def _post(self, call: str, request: BaseModel, read_s: float) -> bytes:
        """The answer of the first coordinator that has one, from the one that had the last."""
        body = request.model_dump_json().encode()
        failure: Exception | None = None
        for url in [*self._urls]:
            try:
                answer = await self._send(f"{url}/api/v1/images/{call}", body, read_s)
            except httpx.TransportError as error:
                failure = unreachable(url, error)
            else:
                if answer.is_success:
                    self._prefer(url)
                    return answer.content
                failure = problem(answer)
                if not isinstance(failure, OutsideError):
                    break
        assert failure is not None
        if isinstance(failure, PeerError):  # of this process, not of who pulls
            failure = OutsideError(f"the coordinator refuses to make images for us: {failure}")
        raise failure

    def _prefer(self, url: str) -> None:
        self._urls.remove(url)
        self._urls.insert(0, url)

    async def _send(self, url: str, body: bytes, read_s: float) -> httpx.Response:
        headers = {"content-type": "application/json"}
        if (shown := self._authorization()) is not None:
            headers["authorization"] = shown
        timeout = httpx.Timeout(read_s, connect=CONNECT_S)
        for _ in range(REDIRECTS_MAX):
            answer = await self._http.post(
                url, content=body, headers=headers, timeout=timeout, follow_redirects=False
            )
            location = answer.headers.get("location", "")
            if answer.status_code not in _ELSEWHERE or not location:
                return answer
            url = urljoin(url, location)
        return answer
