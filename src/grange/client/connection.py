"""How calls of the HTTP API are made: to whom, shown what, and what goes wrong on the way."""

import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from grange.client.answers import problem, unreachable
from grange.client.credentials import authorization_for, bearer, token_in
from grange.errors import OutsideError, PeerError

DEFAULT_URL: Final = "http://127.0.0.1:7380"
API: Final = "/api/v1"
CONNECT_S: Final = 10.0
# Taking in a hundred thousand derivations is one call, and may wait behind others.
ANSWER_S: Final = 600.0
READ_S: Final = 60.0  # for what is only read: a coordinator that stands still is left after that
PROOF_S: Final = 10.0  # for a coordinator to show that it does not, where there is another
ROUNDS: Final = 5  # of asking all coordinators, where there are several: a takeover lasts 3 s
ROUND_S: Final = 1.0  # between two
REDIRECTS_MAX: Final = 5  # to the coordinator that leads

ModelT = TypeVar("ModelT", bound=BaseModel)


@cache
def _list_of(model: type[ModelT]) -> TypeAdapter[list[ModelT]]:
    return TypeAdapter(list[model])  # type: ignore[valid-type]


class Connection:
    """A farm, by the URLs of its coordinators. Not for several threads at once."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token_file: Path | None = None,
        authorization: str | None = None,
        tls: ssl.SSLContext | None = None,
        transport: httpx.BaseTransport | None = None,
    ):
        """`url` may name several coordinators of the farm, with commas between: the next is asked
        where one cannot be reached or answers 503.

        `token_file` is read with the first call; without it a token is looked for as
        `authorization_for` says. `authorization` is a header to show instead of any token that
        could be found. `tls` says whom to trust at https:// URLs. `transport` replaces the network;
        uploads, which are asynchronous, go by it where it can do so.
        """
        self._token_file = token_file
        self._given = authorization
        self.tls = tls
        self._authorization: str | None
        self._urls = [each.strip().rstrip("/") for each in url.split(",")]
        for each in self._urls:
            if not each.startswith(("http://", "https://")):
                raise PeerError(f"{each!r} is not the URL of a farm; write it like {DEFAULT_URL}")
        self.transport = transport
        self.url = self._urls[0]  # of who is asked now
        self._http = self._open()

    def _open(self) -> httpx.Client:
        self._is_alive = len(self._urls) == 1  # else it is to show that before it is waited for
        self._authorization = self._given  # else another host may be shown another one, or none
        is_far = self.url.startswith("https://")
        return httpx.Client(
            base_url=f"{self.url}{API}/",
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            # Plain HTTP means this machine or its network: no proxy, and no certificates, whose
            # reading takes longer than a call.
            verify=self.tls if is_far and self.tls is not None else is_far,
            trust_env=is_far,
            transport=self.transport,
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _one(self, model: type[ModelT], method: str, path: str, **request: Any) -> ModelT:
        answer = self._call(method, path, **request)
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            raise self._not_understood(error) from error

    def _many(self, model: type[ModelT], method: str, path: str, **request: Any) -> list[ModelT]:
        answer = self._call(method, path, **request)
        try:
            return _list_of(model).validate_json(answer.content)
        except ValidationError as error:
            raise self._not_understood(error) from error

    def _call(self, method: str, path: str, **request: Any) -> httpx.Response:
        with self._outside():
            answer = self._ask(method, path, **request)
        if not answer.is_success:
            raise problem(answer)
        return answer

    @contextmanager
    def _streaming(
        self, method: str, path: str, read_s: float | None, **request: Any
    ) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S, read=read_s)
        with (
            self._outside(),
            closing(self._ask(method, path, is_stream=True, timeout=timeout, **request)) as answer,
        ):
            if not answer.is_success:
                answer.read()
                raise problem(answer)
            yield answer

    def _ask(
        self, method: str, path: str, *, is_stream: bool = False, **request: Any
    ) -> httpx.Response:
        """The answer of the first coordinator that has one, from the one asked last on.

        Where there are several, none may lead for a moment: they are asked some times over.
        """
        request = _with_type(request)
        if method == "GET":
            request.setdefault("timeout", httpx.Timeout(READ_S, connect=CONNECT_S))
        tries = len(self._urls) * ROUNDS if len(self._urls) > 1 else 1
        for others in reversed(range(tries)):
            asked = self._http.build_request(method, path, **request)
            try:
                self._prove_alive()
                answer = self._send(asked, is_stream=is_stream)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if not others:
                    raise
            except httpx.ReadTimeout:
                if not others or method != "GET":  # others may have been done
                    raise
            else:
                if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE or not others:
                    return answer
                answer.close()
            self._move_on()
            if others % len(self._urls) == 0:
                time.sleep(ROUND_S)
        raise AssertionError("a client has a coordinator to ask")

    def _prove_alive(self) -> None:
        """Raises httpx.ConnectTimeout for a coordinator that takes connections and says nothing,
        as one does that was stopped, or whose machine swaps."""
        if self._is_alive:
            return
        try:
            self._http.get(f"{self.url}/healthz", timeout=PROOF_S)
        except httpx.ReadTimeout as error:
            raise httpx.ConnectTimeout("it does not answer") from error
        self._is_alive = True

    def _move_on(self) -> None:
        """Ask the next coordinator from now on."""
        self.url = self._urls[(self._urls.index(self.url) + 1) % len(self._urls)]
        self._http.close()
        self._http = self._open()

    def _send(self, request: httpx.Request, *, is_stream: bool = False) -> httpx.Response:
        """The answer of the coordinator that leads, to which the others redirect."""
        for _ in range(REDIRECTS_MAX):
            # httpx shows a credential to nobody else; the leader is the same farm.
            if not (self.url.startswith("https:") and request.url.scheme == "http"):
                self._show(request)
            answer = self._http.send(request, stream=is_stream, follow_redirects=False)
            if answer.next_request is None:
                return answer
            answer.close()
            request = answer.next_request
        raise OutsideError(f"{self.url} redirects in circles; see who leads: grange status")

    def _show(self, request: httpx.Request) -> None:
        if self._authorization is None:
            found = authorization_for(self.url) if self._token_file is None else None
            if self._token_file is not None and self._token_file.exists():
                found = bearer(token_in(self._token_file))
            self._authorization = found
        if self._authorization is not None:
            request.headers["authorization"] = self._authorization

    @contextmanager
    def _outside(self) -> Iterator[None]:
        try:
            yield
        except httpx.InvalidURL as error:
            raise PeerError(f"{self.url!r} is not the URL of a farm: {error}") from error
        except httpx.TransportError as error:
            raise unreachable(" or ".join(self._urls), error) from error

    def _not_understood(self, error: Exception) -> OutsideError:
        return OutsideError(
            f"what answers at {self.url} does not speak the API of a Grange farm ({error}); "
            "see that the URL is right and that the farm is no older than this client"
        )


def _with_type(request: dict[str, Any]) -> dict[str, Any]:
    if "content" in request and "headers" not in request:
        request["headers"] = {"content-type": "application/json"}
    return request
