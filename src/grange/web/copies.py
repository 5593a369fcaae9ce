"""What `nix copy --to` sends: NARs and narinfos, as to any binary cache."""

from http import HTTPStatus

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response
from starlette.requests import ClientDisconnect, Request

from grange.cache.receive import take
from grange.coordinator.farm import Farm
from grange.identity import Role
from grange.store.narinfo import NARINFO_BYTES_MAX
from grange.web.rights import caller, did, needs

LISTING_BYTES_MAX = 64 << 20


def copy_calls(app: FastAPI, farm: Farm) -> None:
    may_copy = [needs(Role.SUBMIT, Role.IMPORT)]

    @app.put("/nar/{file}", include_in_schema=False, dependencies=may_copy)
    async def put_nar(file: str, request: Request) -> Response:
        try:
            await farm.copies.put_nar(file, request.stream())
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody hears it
        did(request, f"copied nar/{file}")
        return PlainTextResponse("taken\n", HTTPStatus.CREATED)

    @app.put("/{hash_part}.narinfo", include_in_schema=False, dependencies=may_copy)
    async def put_narinfo(hash_part: str, request: Request) -> Response:
        text = await take(request.stream(), NARINFO_BYTES_MAX + 1)
        is_new = await farm.copies.put_narinfo(hash_part, text, caller(request))
        did(request, f"copied {hash_part}" if is_new else f"copied {hash_part}, which was here")
        return PlainTextResponse("stored\n", HTTPStatus.CREATED if is_new else HTTPStatus.OK)

    @app.put("/{hash_part}.ls", include_in_schema=False, dependencies=may_copy)
    async def put_listing(hash_part: str, request: Request) -> Response:
        """Taken and dropped: the farm makes its own of what it has seen."""
        await take(request.stream(), LISTING_BYTES_MAX)
        did(request, f"sent a listing of {hash_part}")
        return PlainTextResponse("taken\n")
