"""Images: made, explained, listed and collected; and the evaluations that making them takes."""

import asyncio
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Annotated, Final, Protocol

from fastapi import APIRouter, Path, Query, Request, Response

from grange.cache.ranges import until, while_there
from grange.client.image_models import (
    EvaluationJob,
    EvaluationResult,
    ExplainAnswer,
    GcAnswer,
    GcRequest,
    ImageView,
    MakeAnswer,
    MakeRequest,
    TakeRequest,
    UsedRequest,
)
from grange.errors import FencedError, JournalError, OutsideError
from grange.identity import Identity, Role
from grange.images.collect import CollectedImages
from grange.oci.manifest import PLATFORMS, Compression, Family, Variant, parse_user, parse_words
from grange.oci.names import Tag, parse_name
from grange.oci.refusal import Code, RefusedError
from grange.ports.images import Catalog, ImageRecord, ImageRequest, Made, Maker, RuntimeWish
from grange.web.rights import caller, did, needs

PAGE_MAX: Final = 1_000
_SYSTEMS: Final = {each.architecture: system for system, each in PLATFORMS.items()}

JobPath = Annotated[str, Path(max_length=64)]


class Explainer(Protocol):
    async def explain(self, request: ImageRequest) -> ExplainAnswer:
        """What an image is made of, without building or evaluating; raises RefusedError."""


class Evaluations(Protocol):
    """Jobs for whoever has Nix."""

    async def take(self, wanted: TakeRequest) -> EvaluationJob | None: ...

    def beat(self, job: str) -> None:
        """Raises NotFoundError where nobody waits for it."""

    def finish(self, job: str, result: EvaluationResult) -> None:
        """Raises as `beat`."""


class Collector(Protocol):
    async def collect(
        self, *, is_dry: bool, unused_s: float | None, is_deep: bool
    ) -> CollectedImages: ...


@dataclass(frozen=True, slots=True)
class ImageParts:
    """What a coordinator that makes images has for these routes."""

    sources: Callable[[], Collection[str]]  # names; the first is what names without one mean
    catalog: Catalog
    maker: Maker
    explainer: Explainer
    evaluations: Evaluations
    collector: Collector
    may_evaluate: Callable[[Identity], None] = lambda _who: None  # raises for who may not


Term = Callable[[], asyncio.Event]  # of this lead: set when that has ended


def image_calls(api: APIRouter, parts: ImageParts, term: Term) -> None:
    _image_calls(api, parts)
    _evaluation_calls(api, parts, term)


def _image_calls(api: APIRouter, parts: ImageParts) -> None:
    @api.post("/images/make", dependencies=[needs(Role.READ)])
    async def make(wanted: MakeRequest) -> MakeAnswer:
        """Have an image made, and wait for it for `wait_s`. It is made however the caller goes."""
        try:
            request = request_of(wanted, parts.sources())
            made = await parts.maker.make(request, wanted.wait_s)
        except RefusedError as error:
            return MakeAnswer(
                state="refused",
                words=str(error),
                code=error.code.value,
                detail=None if error.detail is None else dict(error.detail),
            )
        except (FencedError, JournalError):
            raise  # 503: whoever leads soon is asked again
        except OutsideError as error:
            return MakeAnswer(state="failed", words=str(error))
        name = request.name.show()
        if isinstance(made, Made):
            commit = made.packages.commit
            return MakeAnswer(state="ready", name=name, digest=made.digest, commit=commit)
        return MakeAnswer(
            state="pending",
            name=name,
            words=made.words,
            builds=list(made.builds),
            retry_after_s=made.retry_after_s,
        )

    @api.post("/images/explain", dependencies=[needs(Role.READ)])
    async def explain(wanted: MakeRequest) -> ExplainAnswer:
        """Which layers an image has, or would have, and why; `wait_s` means nothing here."""
        return await parts.explainer.explain(request_of(wanted, parts.sources()))

    @api.get("/images", dependencies=[needs(Role.READ)])
    async def images(
        *, limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100, before: float | None = None
    ) -> list[ImageView]:
        """The latest made first; `before` turns the page."""
        found = await parts.catalog.images(limit=limit, before=before)
        # Of each 30 KB of JSON are read: 0.2 s for a thousand of 96 layers.
        return await asyncio.to_thread(lambda: [_view(each) for each in found])

    @api.post("/images/used", status_code=HTTPStatus.NO_CONTENT, dependencies=[needs(Role.READ)])
    async def used(wanted: UsedRequest) -> None:
        """Images with these manifests were served; others are none of ours."""
        await parts.maker.note_used(wanted.digests)

    @api.post("/images/gc", dependencies=[needs(Role.OPERATE)])
    async def collect(request: Request, wanted: GcRequest) -> GcAnswer:
        """Delete what no image needs, and images that nobody asked for; answered when done."""
        found = await parts.collector.collect(
            is_dry=wanted.is_dry, unused_s=wanted.unused_s, is_deep=wanted.is_deep
        )
        verb = "looked at what would be collected" if wanted.is_dry else "collected"
        did(request, f"{verb} of images: {len(found.images)}, and {found.blobs} blobs")
        return GcAnswer(
            images=list(found.images),
            blobs=found.blobs,
            blob_bytes=found.blob_bytes,
            kept_blobs=found.kept_blobs,
            kept_blob_bytes=found.kept_blob_bytes,
            irreproducible=found.irreproducible,
        )


def _evaluation_calls(api: APIRouter, parts: ImageParts, term: Term) -> None:
    evaluations = parts.evaluations
    # The farm's own evaluator shows the administrator's token, those elsewhere an agent's password.
    may_evaluate = [needs(Role.BUILD, Role.ADMINISTER)]

    @api.post("/evaluations/take", dependencies=may_evaluate, response_model=EvaluationJob | None)
    async def take(request: Request, wanted: TakeRequest) -> EvaluationJob | Response:
        """The next job, once there is one; 204 where none came in `wait_s`, or while this
        coordinator leads. 403 for an agent that is not to evaluate, 503 before it has joined."""
        parts.may_evaluate(caller(request))
        job: EvaluationJob | None = None
        # A job that nobody hears of would wait until its lease has ended.
        async with while_there(request.receive), until(term().wait):
            job = await evaluations.take(wanted)
        return Response(status_code=HTTPStatus.NO_CONTENT) if job is None else job

    @api.post(
        "/evaluations/{id}/beat", status_code=HTTPStatus.NO_CONTENT, dependencies=may_evaluate
    )
    async def beat(id: JobPath) -> None:  # noqa: A002 - what the path calls it
        """It goes on; 404 where nobody waits for it any more."""
        evaluations.beat(id)

    @api.post(
        "/evaluations/{id}/finish", status_code=HTTPStatus.NO_CONTENT, dependencies=may_evaluate
    )
    async def finish(id: JobPath, result: EvaluationResult) -> None:  # noqa: A002
        """What came of it."""
        evaluations.finish(id, result)


def request_of(wanted: MakeRequest, sources: Collection[str]) -> ImageRequest:
    """What is asked for; `sources` as of `ImageParts`. Raises RefusedError for what is no image, or
    no way to start one."""
    family, compression = Family(wanted.family), Compression(wanted.compression)
    if (family, compression) == (Family.DOCKER, Compression.ZSTD):
        raise RefusedError(
            Code.UNSUPPORTED, "Docker's media types know no zstd; ask for OCI's, or for gzip"
        )
    words = parse_words([*wanted.entrypoint, *wanted.command])
    cut = len(wanted.entrypoint)
    user = parse_user(wanted.user) if wanted.user else ""
    name = parse_name(wanted.name, sources)
    is_usual = name.source == next(iter(sources), None)
    if is_usual and set(sources).isdisjoint(name.packages):  # else it must be said
        name = replace(name, source=None)
    if wanted.system:
        name = replace(name, is_arm64=wanted.system == "aarch64-linux")
    return ImageRequest(
        name,
        Tag.parse(wanted.tag),
        Variant(family, compression),
        RuntimeWish(words[:cut], words[cut:], user),
    )


def _view(record: ImageRecord) -> ImageView:
    manifest, config = json.loads(record.manifest.body), json.loads(record.config.body)
    layers = manifest["layers"]
    return ImageView(
        name=record.key.name,
        source=record.key.packages.source,
        commit=record.key.packages.commit,
        system=_SYSTEMS.get(config["architecture"], config["architecture"]),
        family=record.key.variant.family.value,
        compression=record.key.variant.compression.value,
        entrypoint=list(record.key.wish.entrypoint),
        command=list(record.key.wish.command),
        user=record.key.wish.user,
        digest=record.manifest.digest,
        layers=len(layers),
        blob_bytes=sum(layer["size"] for layer in layers),
        created=record.created,
        used=record.used,
    )
