"""The HTTP API as typed calls. Blocking: meant for command lines and scripts.

PeerError where the farm says that the request is wrong, OutsideError where it cannot be reached or
cannot do its part now. The calls are those of docs/http-api.md.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from grange.client.answers import lines_of
from grange.client.connection import ANSWER_S, Connection
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

FETCH_S: Final = 900.0  # a build closure of thousands, over somebody's network
COLLECT_S: Final = 6 * 3600.0  # a cache of many millions of objects is listed before
STREAM_SILENCE_S: Final = 60.0  # a watch has a beat every 10 s

_EVENT: Final[TypeAdapter[WatchEvent]] = TypeAdapter(WatchEvent)


class GrangeClient(Connection):
    """All that people and scripts ask of a farm."""

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


def _body(model: BaseModel) -> bytes:
    return model.model_dump_json().encode()
