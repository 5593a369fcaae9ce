"""The cache alone, for any ASGI server: ``granian --factory grange.asgi:cache`` and the like.

What it serves is said by the environment: GRANGE_CACHE_STORE, a directory or the URL of a bucket;
GRANGE_STORE_DIR, `/nix/store` unless said; GRANGE_CACHE_TOKENS, a file of tokens that may read, see
`grange.cache.alone.read_tokens`. Like `main` it builds adapters, so it stands where that does.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from grange.errors import OperatorError

if TYPE_CHECKING:
    from grange.ports import Shelf


def cache() -> ASGIApp:
    """The application; raises OperatorError where the environment does not say what to serve."""
    from grange.cache.alone import make_app, read_tokens
    from grange.store.path import NIX_STORE, StoreDir

    store = os.environ.get("GRANGE_CACHE_STORE", "")
    if not store:
        raise OperatorError("GRANGE_CACHE_STORE says no directory or bucket that is to be served")
    store_dir = os.environ.get("GRANGE_STORE_DIR", NIX_STORE.root)
    tokens = os.environ.get("GRANGE_CACHE_TOKENS")
    return make_app(
        _shelf(store), StoreDir(store_dir), read_tokens(Path(tokens)) if tokens else None
    )


def _shelf(store: str) -> "Shelf":
    """A directory, given by its path, or a store, by its URL."""
    from grange.objects.location import StoreLocation, parse_location
    from grange.objects.open import open_shelves

    is_url = "://" in store
    location = parse_location(store) if is_url else StoreLocation.of_directory(Path(store))
    location.check_there()
    [shelf] = open_shelves([location])
    return shelf
