"""What a request under /v2/ asks for, read once.

Source: distribution-spec 1.1, "Endpoints". A name has slashes, and its parts may be called as
endpoints are, so paths are read from their end.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import parse_qsl

from grange.oci.manifest import parse_user, parse_words
from grange.oci.names import Digest, Tag, check_name, parse_reference
from grange.oci.refusal import Code, RefusedError
from grange.ports import RuntimeWish
from grange.registry.refusals import MeaninglessError

ROOT: Final = "/v2/"
TAGS_MAX: Final = 1_000  # in one answer; the rest is behind a link
_FIELDS_MAX: Final = 512  # of a query
_PLAIN: Final = RuntimeWish()


@dataclass(frozen=True, slots=True)
class Ping:
    """Whether this is a registry, and lets its caller in."""


@dataclass(frozen=True, slots=True)
class WantsManifest:
    name: str
    reference: Tag | Digest


@dataclass(frozen=True, slots=True)
class WantsBlob:
    name: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class WantsTags:
    name: str


@dataclass(frozen=True, slots=True)
class WantsReferrers:
    name: str
    digest: Digest


Wanted: TypeAlias = Ping | WantsManifest | WantsBlob | WantsTags | WantsReferrers


@dataclass(frozen=True, slots=True)
class Page:
    """Which tags of all."""

    tags_max: int = TAGS_MAX
    after: str = ""


def parse_path(path: str) -> Wanted:
    """Read the path of a URL, decoded; raises RefusedError for one that is no endpoint."""
    rest = path.removeprefix(ROOT)
    if not rest:
        return Ping()
    match rest.rsplit("/", 2):
        case [name, "manifests", reference]:
            check_name(name)
            return WantsManifest(name, parse_reference(reference))
        case [name, "blobs", digest]:
            check_name(name)
            return WantsBlob(name, Digest.parse(digest))
        case [name, "tags", "list"]:
            check_name(name)
            return WantsTags(name)
        case [name, "referrers", digest]:
            check_name(name)
            return WantsReferrers(name, Digest.parse(digest))
        case ["_catalog"]:
            raise RefusedError(
                Code.NAME_UNKNOWN,
                "images are made as they are asked for, so there is no list of all; "
                "`grange image list` shows those that were made",
            )
    raise RefusedError(
        Code.NAME_UNKNOWN,
        f"nothing is at {path[:200]!r}: a registry has {ROOT}NAME/manifests/TAG, "
        f"{ROOT}NAME/blobs/DIGEST and {ROOT}NAME/tags/list",
    )


def parse_wish(query: bytes) -> RuntimeWish:
    """How a container shall start, as `entrypoint`, `cmd` and `user` of a query say: the first two
    once for each word. All else in it is for others, such as `ns`. Raises RefusedError."""
    if not query:
        return _PLAIN
    said = _fields(query)
    users = said.get("user", [])
    if len(users) > 1:
        raise RefusedError(Code.NAME_INVALID, "a container has one user, and the query has several")
    return RuntimeWish(
        parse_words(said.get("entrypoint", ())),
        parse_words(said.get("cmd", ())),
        parse_user(users[0]) if users else "",
    )


def parse_page(query: bytes) -> Page:
    """Read `n` and `last`; raises RefusedError."""
    said = _fields(query)
    number = said.get("n", [str(TAGS_MAX)])[-1]
    if not (number.isascii() and number.isdigit() and len(number) <= 18):
        raise MeaninglessError(f"n={number[:40]!r} is no number of tags")
    return Page(min(TAGS_MAX, int(number)), said.get("last", [""])[-1])


def _fields(query: bytes) -> dict[str, list[str]]:
    try:
        pairs = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, max_num_fields=_FIELDS_MAX
        )
    except ValueError:
        raise MeaninglessError(f"the query has more than {_FIELDS_MAX} fields") from None
    said: dict[str, list[str]] = {}
    for key, value in pairs:
        said.setdefault(key, []).append(value)
    return said
