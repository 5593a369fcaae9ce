"""Over HTTP: announcing a file that goes straight to the store, and telling that it has arrived.

The token in the path is the right to it, as for any upload.
"""

from http import HTTPStatus
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from grange.cache.grants import UploadError
from grange.cache.receive import take
from grange.cache.uploads import Answer, Uploads, answer_of
from grange.errors import OutsideError, PeerError

BODY_BYTES_MAX: Final = 4 << 10


class Announcement(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    file_bytes: Annotated[int, Field(ge=1, lt=1 << 63)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def direct_calls(uploads: Uploads) -> list[Route]:
    async def announce(request: Request) -> Response:
        """200 with a URL and the headers to PUT with; 204: PUT it here instead."""
        try:
            body = await take(request.stream(), BODY_BYTES_MAX + 1)
            if len(body) > BODY_BYTES_MAX:
                raise UploadError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "this is no announcement")
            said = Announcement.model_validate_json(body)
            signed = await uploads.announce(
                request.path_params["token"], said.file_bytes, bytes.fromhex(said.sha256)
            )
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)
        except ValidationError:
            text = 'announce {"file_bytes": …, "sha256": "…"}, the latter in base 16'
            return PlainTextResponse(text + "\n", HTTPStatus.BAD_REQUEST)
        except (PeerError, OutsideError) as error:
            return _shown(answer_of(error))
        if signed is None:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        return JSONResponse(
            {"url": signed.url, "headers": dict(signed.headers)},
            headers={"cache-control": "no-store"},
        )

    async def arrived(request: Request) -> Response:
        return _shown(await uploads.arrived(request.path_params["token"]))

    return [
        Route("/upload/{token}/direct", announce, methods=["POST"]),
        Route("/upload/{token}/arrived", arrived, methods=["POST"]),
    ]


def _shown(answer: Answer) -> Response:
    return PlainTextResponse(answer.text + "\n", answer.status)
