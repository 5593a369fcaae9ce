"""The cache alone: what lies among the objects, served without a farm, a database or any state.

Any number of these may serve the same objects, next to the farm that fills them. A submitted
derivation is not among the objects, so only the farm itself serves those.
"""

import hmac
import re
from base64 import b64decode
from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from grange.cache.app import HASH_PART, NIX_CACHE_INFO, cache_info, missing
from grange.cache.listing import listing_of
from grange.cache.reader import First, Reader
from grange.errors import OperatorError, OutsideError, PeerError
from grange.ports import Shelf
from grange.store.narinfo import parse
from grange.store.path import StoreDir

KEEP_S: Final = 60.0  # a narinfo in memory; collected NARs stay for longer than that
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")

MayRead = Callable[[Scope], bool]


def make_app(shelf: Shelf, store_dir: StoreDir, may_read: MayRead | None = None) -> ASGIApp:
    """The ASGI application. Where `may_read` is None, everyone may."""
    objects = shelf.objects

    async def narinfo(hash_part: str) -> bytes | None:
        if HASH_PART.match(hash_part) is None:
            return None
        return await objects.get(f"{hash_part}.narinfo")  # which undoes its encoding

    async def info(_: Request) -> Response:
        text = await objects.get(NIX_CACHE_INFO)
        text = cache_info(store_dir).encode() if text is None else text
        return PlainTextResponse(text, media_type="text/x-nix-cache-info")

    async def listing(request: Request) -> Response:
        text = await narinfo(request.path_params["hash_part"])
        found = text and await listing_of(parse(text.decode(), store_dir), objects)
        if not found:
            return missing("no listing of this path is in this cache")
        return Response(found, media_type="application/json")

    async def health(_: Request) -> Response:
        await objects.size(NIX_CACHE_INFO)
        return PlainTextResponse("ok\n")

    async def told(_: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{error}\n", HTTPStatus.SERVICE_UNAVAILABLE)

    async def wrong(_: Request, error: Exception) -> Response:
        return missing(str(error))

    app = Starlette(
        routes=[
            Route("/nix-cache-info", info),
            Route("/{hash_part}.ls", listing),
            Route("/healthz", health),
        ],
        exception_handlers={OutsideError: told, PeerError: wrong},
    )
    first = First(app, Reader(narinfo, objects, keep_s=KEEP_S))
    return first if may_read is None else _Door(first, may_read)


class _Door:
    """Lets in who may read; the rest gets a 401, upon which Nix looks into its netrc."""

    def __init__(self, app: ASGIApp, may_read: MayRead) -> None:
        self._app = app
        self._may_read = may_read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/healthz" or self._may_read(scope):
            await self._app(scope, receive, send)
            return
        refusal = PlainTextResponse(
            "this cache takes a token: as the password in netrc, or as a bearer token\n",
            HTTPStatus.UNAUTHORIZED,
            {"www-authenticate": 'Basic realm="grange"'},
        )
        await refusal(scope, receive, send)


def read_tokens(path: Path) -> MayRead:
    """Who shows one of the tokens in a file may read. A line has the SHA-256 of a token's text in
    base 16, as sha256sum prints it, and what else it says is for people; `#` begins a comment.

    Raises OperatorError for a file that cannot be read or has no token: never lets all in.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"the tokens in {path} cannot be read: {error}") from error
    digests = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if _DIGEST.match(words[0]) is None:
            raise OperatorError(
                f"{path}, line {number}: begins with no SHA-256 in base 16; make one with: "
                "printf %s TOKEN | sha256sum"
            )
        digests.append(bytes.fromhex(words[0]))
    if not digests:
        raise OperatorError(f"{path} has no token, so nobody could read; add one, or leave it out")

    def may_read(scope: Scope) -> bool:
        shown = _shown(scope)
        digest = sha256(shown).digest()
        return bool(shown) and any(hmac.compare_digest(digest, each) for each in digests)

    return may_read


def _shown(scope: Scope) -> bytes:
    """The token of a request: a bearer's, or the password of basic authentication."""
    for name, value in scope["headers"]:
        if name != b"authorization":
            continue
        scheme, _, rest = value.partition(b" ")
        if scheme.lower() == b"bearer":
            return bytes(rest.strip())
        if scheme.lower() == b"basic":
            try:
                return b64decode(rest.strip(), validate=True).partition(b":")[2]
            except ValueError:
                return b""
    return b""
