"""The calls of /api/v1 that tell of images, and those of whoever evaluates packages for them."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from grange.client.api import COLLECT_S, GrangeClient
from grange.client.connection import CONNECT_S
from grange.client.image_models import (
    EvaluationJob,
    EvaluationResult,
    ExplainAnswer,
    GcAnswer,
    GcRequest,
    ImageView,
    MakeAnswer,
    MakeRequest,
    RegistrySettings,
    TakeRequest,
    UsedRequest,
)
from grange.errors import PeerError

BEYOND_S: Final = 30.0  # that a farm may be late with an answer which was to wait for something


class ImageClient(GrangeClient):
    """A farm that makes images."""

    def _call(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return super()._call(method, path, **request)
        except PeerError as error:
            if str(error) != HTTPStatus.NOT_FOUND.phrase:  # nobody says so who knows of images
                raise
            raise PeerError(
                f"the farm at {self.url} makes no images: the file of its --config has no [images] "
                "(docs/operating/images.md), or it is older than this client"
            ) from None

    def make_image(self, wanted: MakeRequest) -> MakeAnswer:
        """Have it made, and wait for at most `wanted.wait_s`; what is refused is an answer too."""
        return self._one(
            MakeAnswer, "POST", "images/make", content=_body(wanted), timeout=_limit(wanted.wait_s)
        )

    def explain_image(self, wanted: MakeRequest) -> ExplainAnswer:
        """What it is made of, as far as the farm knows; nothing is built or waited for."""
        return self._one(ExplainAnswer, "POST", "images/explain", content=_body(wanted))

    def images(self, *, limit: int = 100, before: float | None = None) -> list[ImageView]:
        """The latest made first; `before` (seconds since 1970) turns the page."""
        query: dict[str, Any] = {"limit": limit}
        if before is not None:
            query["before"] = before
        return self._many(ImageView, "GET", "images", params=query)

    def collect_images(self, wanted: GcRequest) -> GcAnswer:
        """Answered when it is done."""
        return self._one(
            GcAnswer, "POST", "images/gc", content=_body(wanted), timeout=_limit(COLLECT_S)
        )

    def note_images_used(self, digests: Iterable[str]) -> None:
        """Images with these manifests were served by others than the coordinator."""
        self._call("POST", "images/used", content=_body(UsedRequest(digests=list(digests))))

    def registry_settings(self) -> RegistrySettings:
        """What a registry beside the coordinator goes by."""
        return self._one(RegistrySettings, "GET", "images/settings")

    # --- Evaluators ---------------------------------------------------------------------------

    def take_evaluation(self, wanted: TakeRequest) -> EvaluationJob | None:
        """The next job; None where none came in `wanted.wait_s`."""
        answer = self._call(
            "POST", "evaluations/take", content=_body(wanted), timeout=_limit(wanted.wait_s)
        )
        if answer.status_code == HTTPStatus.NO_CONTENT:
            return None
        try:
            return EvaluationJob.model_validate_json(answer.content)
        except ValidationError as error:
            raise self._not_understood(error) from error

    def beat_evaluation(self, job: str) -> None:
        """It goes on. PeerError where nobody waits for it any more."""
        self._call("POST", f"evaluations/{quote(job, safe='')}/beat")

    def finish_evaluation(self, job: str, result: EvaluationResult) -> None:
        """As `beat_evaluation`; twice is once."""
        self._call("POST", f"evaluations/{quote(job, safe='')}/finish", content=_body(result))


def _body(model: BaseModel) -> bytes:
    return model.model_dump_json().encode()


def _limit(wait_s: float) -> httpx.Timeout:
    return httpx.Timeout(wait_s + BEYOND_S, connect=CONNECT_S)
