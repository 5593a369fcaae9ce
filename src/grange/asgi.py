"""What can be served without a farm, for any ASGI server: ``granian --factory grange.asgi:cache``
and the like. Like `main` it builds adapters, so it stands where that does.

What is served is said by the environment. GRANGE_STORE_DIR is `/nix/store` unless said; stores are
directories or URLs of buckets; files of tokens that may read are as of
`grange.cache.alone.read_tokens`.

`cache`: GRANGE_CACHE_STORE, GRANGE_CACHE_TOKENS.
`registry`: GRANGE_REGISTRY_STORE and GRANGE_REGISTRY_DATABASE, those of a farm; GRANGE_URL, its
coordinators; GRANGE_TOKEN_FILE and the like, for what these are shown; GRANGE_REGISTRY_TOKENS.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from grange.errors import OperatorError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from grange.cache.alone import MayRead
    from grange.ports import Shelf
    from grange.registry.follow import AskSettings, FollowedImages


def cache() -> ASGIApp:
    """The application; raises OperatorError where the environment does not say what to serve."""
    from grange.cache.alone import make_app
    from grange.store.path import StoreDir

    store = _told("GRANGE_CACHE_STORE", "directory or bucket that is to be served")
    return make_app(_shelf(store), StoreDir(_store_dir()), _may_read("GRANGE_CACHE_TOKENS"))


def registry() -> ASGIApp:
    """The application, for a server that tells it when it starts (`lifespan`). Raises
    OperatorError where the environment does not say what to serve, or that cannot be read;
    OutsideError where the database does not answer."""
    from prometheus_client import CollectorRegistry

    from grange.client.connection import DEFAULT_URL
    from grange.registry.alone import make_registry_app

    database = _told("GRANGE_REGISTRY_DATABASE", "database of a farm")
    store = _shelf(_told("GRANGE_REGISTRY_STORE", "directory or bucket where a farm keeps images"))
    urls = os.environ.get("GRANGE_URL") or DEFAULT_URL
    metrics = CollectorRegistry()
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # no server runs yet, so that whoever starts one can be told
        asyncio.run(_check_database(database))
    return make_registry_app(
        lambda: _images(database, store, urls, metrics),
        _may_read("GRANGE_REGISTRY_TOKENS"),
        metrics=metrics,
    )


async def _check_database(database: str) -> None:
    from grange.db.open import open_readers

    async with open_readers(database):
        pass


@asynccontextmanager
async def _images(
    database: str, store: "Shelf", urls: str, metrics: "CollectorRegistry"
) -> "AsyncIterator[FollowedImages]":
    """Those of a farm, for as long as the context is open."""
    import httpx

    from grange.client.credentials import authorization_for
    from grange.clock import SystemClock
    from grange.db.open import open_readers
    from grange.images.layers import Layers
    from grange.images.metrics import ImageMetrics
    from grange.images.remote import RemoteMaker
    from grange.images.service import Images
    from grange.images.settings import ImageSettings
    from grange.registry.follow import FollowedImages
    from grange.store.path import StoreDir

    is_far = urls.startswith("https://")  # else no proxy: as `grange.client.connection` has it
    async with open_readers(database) as readers, httpx.AsyncClient(trust_env=is_far) as http:
        layers = Layers(
            catalog=readers.images,
            objects=store.objects,
            narinfos=readers.narinfos,
            store_dir=StoreDir(_store_dir()),
            metrics=ImageMetrics(metrics),
        )
        first_url = urls.partition(",")[0].strip()
        maker = RemoteMaker(
            http,
            urls,
            authorization=lambda: authorization_for(first_url),
            settings=lambda: images.settings,
        )
        images = Images(
            ImageSettings({}),
            catalog=readers.images,
            maker=maker,
            layers=layers,
            clock=SystemClock(),
        )
        followed = FollowedImages(images, _ask_settings(urls))
        following = asyncio.create_task(followed.follow())
        try:
            await followed.begun()
            yield followed
        finally:
            following.cancel()
            await asyncio.wait((following,))
            await layers.close()


def _ask_settings(urls: str) -> "AskSettings":
    """What the coordinators at `urls` say."""
    from grange.client.image_models import RegistrySettings
    from grange.client.images import ImageClient

    def asked() -> RegistrySettings:
        with ImageClient(urls) as client:
            return client.registry_settings()

    async def ask() -> RegistrySettings:
        return await asyncio.to_thread(asked)

    return ask


def _told(variable: str, what: str) -> str:
    text = os.environ.get(variable, "")
    if not text:
        raise OperatorError(f"{variable} says no {what}")
    return text


def _store_dir() -> str:
    from grange.store.path import NIX_STORE

    return os.environ.get("GRANGE_STORE_DIR", NIX_STORE.root)


def _may_read(variable: str) -> "MayRead | None":
    from grange.cache.alone import read_tokens

    tokens = os.environ.get(variable)
    return read_tokens(Path(tokens)) if tokens else None


def _shelf(store: str) -> "Shelf":
    """A directory, given by its path, or a store, by its URL."""
    from grange.objects.location import StoreLocation, parse_location
    from grange.objects.open import open_shelves

    is_url = "://" in store
    location = parse_location(store) if is_url else StoreLocation.of_directory(Path(store))
    location.check_there()
    [shelf] = open_shelves([location])
    return shelf
