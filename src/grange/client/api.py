"""The HTTP API as typed calls. Blocking: meant for command lines and scripts.

PeerError where the farm says that the request is wrong, OutsideError where it cannot be reached or
cannot do its part now. The calls are those of docs/http-api.md.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from grange.client.answers import lines_of, problem, unreachable
from grange.client.credentials import authorization_for, bearer, token_in
from grange.client.hook_models import HookChange, HookEvents, HookFailure, HookView
from grange.client.models import (
    AgentView,
    AttemptView,
    BuildView,
    CollectView,
    FetchAnswer,
    FetchRequest,
    LackAnswer,
    LackRequest,
    PauseRequest,
    PausesView,
    PinRequest,
    PinView,
    PriorityRequest,
    ProjectView,
    RetryRequest,
    SourceClaim,
    SourceGrant,
    Status,
    StepView,
    SubmitAnswer,
    SubmitRequest,
    WatchEvent,
    WatchRequest,
    Why,
)
from grange.errors import OutsideError, PeerError

DEFAULT_URL: Final = "http://127.0.0.1:7380"
CONNECT_S: Final = 10.0
# Taking in a hundred thousand derivations is one call, and may wait behind others.
FETCH_S: Final = 900.0  # a build closure of thousands, over somebody's network
ANSWER_S: Final = 600.0
READ_S: Final = 60.0  # for what is only read: a coordinator that stands still is left after that
PROOF_S: Final = 10.0  # for a coordinator to show that it does not, where there is another
COLLECT_S: Final = 6 * 3600.0  # a cache of many millions of objects is listed before
STREAM_SILENCE_S: Final = 60.0  # a watch has a beat every 10 s
REDIRECTS_MAX: Final = 5  # to the coordinator that leads

ModelT = TypeVar("ModelT", bound=BaseModel)

_EVENT: Final[TypeAdapter[WatchEvent]] = TypeAdapter(WatchEvent)


@cache
def _list_of(model: type[ModelT]) -> TypeAdapter[list[ModelT]]:
    return TypeAdapter(list[model])  # type: ignore[valid-type]


class GrangeClient:
    """A farm, by the URLs of its coordinators. Not for several threads at once."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token_file: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ):
        """`url` may name several coordinators of the farm, with commas between: the next is asked
        where one cannot be reached or answers 503.

        `token_file` is read with the first call; without it a token is looked for as
        `authorization_for` says. `transport` replaces the network, for tests.
        """
        self._token_file = token_file
        self._authorization: str | None
        self._urls = [each.strip().rstrip("/") for each in url.split(",")]
        for each in self._urls:
            if not each.startswith(("http://", "https://")):
                raise PeerError(f"{each!r} is not the URL of a farm; write it like {DEFAULT_URL}")
        self._transport = transport
        self.url = self._urls[0]  # of who is asked now
        self._http = self._open()

    def _open(self) -> httpx.Client:
        self._is_alive = len(self._urls) == 1  # else it is to show that before it is waited for
        self._authorization = None  # another host may be shown another one, or none
        is_far = self.url.startswith("https://")
        return httpx.Client(
            base_url=self.url + "/api/v1/",
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            # Plain HTTP means this machine or its network: no proxy, and no certificates, whose
            # reading takes longer than a call.
            verify=is_far,
            trust_env=is_far,
            transport=self._transport,
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

    # --- The farm -----------------------------------------------------------------------------

    def status(self) -> Status:
        return self._one(Status, "GET", "status")

    def agents(self) -> list[AgentView]:
        return self._many(AgentView, "GET", "agents")

    def projects(self) -> list[ProjectView]:
        """Shares, quotas and use, most used first."""
        return self._many(ProjectView, "GET", "projects")

    def pauses(self) -> PausesView:
        return self._one(PausesView, "GET", "pauses")

    def pause(self, request: PauseRequest) -> PausesView:
        return self._one(PausesView, "POST", "pause", content=_body(request))

    def resume(self, request: PauseRequest) -> PausesView:
        return self._one(PausesView, "POST", "resume", content=_body(request))

    # --- What is kept ---------------------------------------------------------------------------

    def plan_collection(self, pressed: bool = False) -> CollectView:
        return self._one(
            CollectView, "GET", "collect", params={"pressed": pressed}, timeout=COLLECT_S
        )

    def collect(self, pressed: bool = False) -> CollectView:
        """Collect, and wait for its end."""
        return self._one(
            CollectView, "POST", "collect", params={"pressed": pressed}, timeout=COLLECT_S
        )

    def pins(self) -> list[PinView]:
        return self._many(PinView, "GET", "pins")

    def pin(self, request: PinRequest) -> PinView:
        return self._one(PinView, "POST", "pins", content=_body(request))

    def unpin(self, name: str) -> list[PinView]:
        """The pins that are left."""
        return self._many(PinView, "DELETE", f"pins/{quote(name, safe='')}")

    # --- Hooks --------------------------------------------------------------------------------

    def hooks(self) -> list[HookView]:
        return self._many(HookView, "GET", "hooks")

    def hook_failures(self, hook: str | None = None, *, limit: int = 100) -> list[HookFailure]:
        """Events that were given up, the newest first; of one hook or of all."""
        query: dict[str, Any] = {"limit": limit} | ({} if hook is None else {"hook": hook})
        return self._many(HookFailure, "GET", "hooks/failures", params=query)

    def retry_hook(self, hook: str, events: Sequence[int] | None) -> HookChange:
        """Have the hook told again of `events` that were given up; of all where that is None."""
        return self._change_hook(hook, "retry", events)

    def skip_hook(self, hook: str, events: Sequence[int] | None) -> HookChange:
        """Have the hook never told of `events` that failed; of none where that is None."""
        return self._change_hook(hook, "skip", events)

    def _change_hook(self, hook: str, change: str, events: Sequence[int] | None) -> HookChange:
        content = _body(HookEvents(events=None if events is None else list(events)))
        path = f"hooks/{quote(hook, safe='')}/{change}"
        return self._one(HookChange, "POST", path, content=content)

    # --- Builds -------------------------------------------------------------------------------

    def builds(
        self, *, unfinished: bool = False, limit: int = 50, before: float | None = None
    ) -> list[BuildView]:
        """The newest builds first; `before` (seconds since 1970) turns the page."""
        query: dict[str, Any] = {"limit": limit}
        if unfinished:
            query["unfinished"] = "true"
        if before is not None:
            query["before"] = before
        return self._many(BuildView, "GET", "builds", params=query)

    def build(self, build: str) -> BuildView:
        return self._one(BuildView, "GET", f"builds/{build}")

    def build_steps(self, build: str) -> list[StepView]:
        """All steps below the build, its root first."""
        return self._many(StepView, "GET", f"builds/{build}/steps")

    def submit(self, request: SubmitRequest) -> SubmitAnswer:
        return self._one(SubmitAnswer, "POST", "builds", content=_body(request))

    def cancel(self, build: str) -> BuildView:
        return self._one(BuildView, "POST", f"builds/{build}/cancel")

    def retry(self, build: str, not_before: float = 0.0) -> BuildView:
        content = _body(RetryRequest(not_before=not_before))
        return self._one(BuildView, "POST", f"builds/{build}/retry", content=content)

    def prioritise(self, build: str, priority: int) -> BuildView:
        content = _body(PriorityRequest(priority=priority))
        return self._one(BuildView, "POST", f"builds/{build}/priority", content=content)

    def why_build(self, build: str) -> list[Why]:
        """Why its unfinished steps are not running: at most 100 that could be looked at next."""
        return self._many(Why, "GET", f"builds/{build}/why")

    # --- Steps and attempts -------------------------------------------------------------------

    def step(self, step: int) -> StepView:
        return self._one(StepView, "GET", f"steps/{step}")

    def step_of(self, drv_path: str) -> StepView:
        """The step of a derivation the farm was given."""
        return self._one(StepView, "GET", "steps", params={"drv_path": drv_path})

    def why_step(self, step: int) -> Why:
        return self._one(Why, "GET", f"steps/{step}/why")

    def attempts(self, step: int) -> list[AttemptView]:
        return self._many(AttemptView, "GET", f"steps/{step}/attempts")

    def log(self, attempt: int, *, follow: bool = False) -> Iterator[bytes]:
        """The attempt's log as its builder wrote it; with `follow`, until the attempt ends."""
        query = {"follow": "true"} if follow else {}
        # A builder may be silent for hours, and a log has no beat.
        read_s = None if follow else ANSWER_S
        path = f"attempts/{attempt}/log"
        with self._streaming("GET", path, read_s, params=query) as answer:
            yield from answer.iter_bytes()

    def watch(self, builds: Sequence[str], *, logs: bool = False) -> Iterator[WatchEvent]:
        """How things stand, then all that happens to these builds, until every one has ended.

        OutsideError where the stream breaks off before; watching again begins anew.
        """
        content = _body(WatchRequest(builds=list(builds), logs=logs))
        with self._streaming("POST", "watch", STREAM_SILENCE_S, content=content) as answer:
            try:
                for line in lines_of(answer.iter_bytes()):
                    yield _EVENT.validate_json(line)
            except ValidationError as error:
                raise self._not_understood(error) from error

    # --- Submission ---------------------------------------------------------------------------

    def lacking(self, derivations: Iterable[str], sources: Iterable[str] = ()) -> LackAnswer:
        """Those of these absolute paths that the farm does not have yet."""
        request = LackRequest(derivations=list(derivations), sources=list(sources))
        return self._one(LackAnswer, "POST", "derivations/lacking", content=_body(request))

    def fetch_derivations(self, drv_paths: Iterable[str]) -> FetchAnswer:
        """Have the farm take these in from its derivation sources, with all they need."""
        content = _body(FetchRequest(drv_paths=list(drv_paths)))
        return self._one(FetchAnswer, "POST", "derivations/fetch", content=content, timeout=FETCH_S)

    def add_derivations(self, body: bytes) -> int:
        """Send derivations, packed and compressed as docs/http-api.md says; how many were new."""
        answer = self._call(
            "POST",
            "derivations",
            content=body,
            headers={"content-type": "application/x-grange-derivations"},
        )
        try:
            return int(json.loads(answer.content)["added"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._not_understood(error) from error

    def claim_sources(self, claims: Sequence[SourceClaim]) -> list[SourceGrant]:
        content = b"[" + b",".join(map(_body, claims)) + b"]"
        return self._many(SourceGrant, "POST", "sources", content=content)

    # --- How calls are made -------------------------------------------------------------------

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
        """The answer of the first coordinator that has one, from the one asked last on."""
        request = _with_type(request)
        if method == "GET":
            request.setdefault("timeout", httpx.Timeout(READ_S, connect=CONNECT_S))
        for others in reversed(range(len(self._urls))):
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
        self._authorization = None
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


def _body(model: BaseModel) -> bytes:
    return model.model_dump_json().encode()


def _with_type(request: dict[str, Any]) -> dict[str, Any]:
    if "content" in request and "headers" not in request:
        request["headers"] = {"content-type": "application/json"}
    return request
