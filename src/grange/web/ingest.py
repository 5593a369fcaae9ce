"""Derivations and their sources, taken in."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from starlette.exceptions import HTTPException

from grange.cache.receive import take
from grange.cache.verify import Claims
from grange.client.models import (
    FetchAnswer,
    FetchRequest,
    LackAnswer,
    LackRequest,
    SourceClaim,
    SourceGrant,
)
from grange.coordinator.farm import Farm
from grange.coordinator.ingest import BATCH_BYTES_MAX, add_derivations
from grange.errors import PeerError
from grange.identity import Role
from grange.store.content import ContentAddress
from grange.store.hash import Hash
from grange.web.rights import needs
from grange.web.views import Views


def ingest_calls(api: APIRouter, farm: Farm, _: Views) -> None:
    journal, store_dir = farm.journal, farm.settings.store_dir

    @api.post("/derivations/lacking", dependencies=[needs(Role.SUBMIT)])
    async def lacking(request: LackRequest) -> LackAnswer:
        """Which of these the farm does not have."""
        drvs = {store_dir.parse(path): path for path in request.derivations}
        sources = {store_dir.parse(path): path for path in request.sources}
        await farm.retention.promise(drvs, sources)
        known = await journal.known_derivations(drvs)
        if await farm.repairs.needs_lost_sources(known):
            known = set()  # so that the client looks at their sources
        valid = await journal.valid_paths(sources)
        return LackAnswer(
            derivations=[text for path, text in drvs.items() if path not in known],
            sources=[text for path, text in sources.items() if path not in valid],
        )

    @api.post(
        "/derivations",
        dependencies=[needs(Role.SUBMIT)],
        openapi_extra={
            "requestBody": {
                "content": {"application/x-grange-derivations": {}},
                "description": "See docs/http-api.md",
                "required": True,
            }
        },
    )
    async def derivations(request: Request) -> dict[str, int]:
        """Take in derivations, inputs before those who need them. All or none."""
        body = await take(request.stream(), BATCH_BYTES_MAX + 1)
        if len(body) > BATCH_BYTES_MAX:
            text = f"more than {BATCH_BYTES_MAX} bytes of derivations; send them in parts"
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
        return {"added": await add_derivations(journal, store_dir, body)}

    @api.post("/derivations/fetch", dependencies=[needs(Role.SUBMIT)])
    async def fetch(request: FetchRequest) -> FetchAnswer:
        """Take in derivations with all they need from the farm's derivation sources."""
        roots = [store_dir.parse(path) for path in dict.fromkeys(request.drv_paths)]
        derivations, sources = await farm.derivation_sources.fetch(roots)
        return FetchAnswer(derivations=derivations, sources=sources)

    @api.post("/sources", dependencies=[needs(Role.SUBMIT)])
    async def sources(
        claims: Annotated[list[SourceClaim], Body(max_length=100_000)],
    ) -> list[SourceGrant]:
        """Where to PUT each source. What it refers to must be here already."""
        parsed = [_source(claim) for claim in claims]
        wanted = {path for claim in parsed for path in (claim.path, *claim.references)}
        await farm.retention.promise(paths=wanted)
        valid = await journal.valid_paths(wanted)
        return [
            SourceGrant(
                path=store_dir.show(claim.path),
                url="" if claim.path in valid else _grant(claim, valid),
            )
            for claim in parsed
        ]

    def _source(claim: SourceClaim) -> Claims:
        return Claims(
            store_dir.parse(claim.path),
            Hash.parse(claim.nar_hash, "sha256"),
            claim.nar_bytes,
            tuple(sorted(store_dir.parse(path) for path in claim.references)),
            ContentAddress.parse(claim.content_address),
        )

    def _grant(claim: Claims, valid: set[Any]) -> str:
        missing = [path for path in claim.references if path not in valid]
        if missing:
            raise PeerError(
                f"source {claim.path} refers to {missing[0]}, which the farm does not have; "
                "upload that first"
            )
        return farm.settings.cache_url + farm.uploads.grant_source(claim)
