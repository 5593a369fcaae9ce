"""A store, from its location."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grange.errors import OperatorError
from grange.objects.directory import DirectoryObjects
from grange.objects.location import StoreLocation
from grange.objects.mirrored import MirroredObjects
from grange.ports import Objects, Shelf
from grange.store.compression import nar_key_as

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# Uploads and publication are tried again by their callers, who tell of it meanwhile.
RETRIES: Final["RetryConfig"] = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
CLIENT: Final["ClientConfig"] = {
    "connect_timeout": timedelta(seconds=10),
    "read_timeout": timedelta(seconds=60),  # between two pieces
    "timeout": timedelta(hours=12),  # of a whole answer: the largest NAR to the slowest reader
}
_EXTRAS: Final = {"s3": "s3", "gs": "gcs", "az": "azure"}


def open_shelves(locations: Sequence[StoreLocation]) -> tuple[Shelf, ...]:
    """As `open_store`, of stores that are different ones; the first is to be read from."""
    if len({(each.kind, each.name, each.endpoint) for each in locations}) < len(locations):
        raise OperatorError("--store names the same store twice; leave one of them out")
    return tuple(
        [Shelf(at.shown, open_store(at), at.options, at.kind != "file") for at in locations]
    )


def joined(shelves: Sequence[Shelf]) -> Objects:
    """The objects of the first, deleted from all."""
    first, *others = shelves
    if not others:
        return first.objects
    return MirroredObjects(
        first.objects,
        [
            (each.objects, partial(nar_key_as, compression=each.options.compression))
            for each in others
        ],
    )


def open_store(location: StoreLocation) -> Objects:
    """Nothing is asked of a bucket yet. Raises OperatorError where it cannot be used."""
    if location.kind == "file":
        return DirectoryObjects(Path(location.name))
    try:
        return _open_cloud(location)
    except ImportError as error:
        raise OperatorError(
            f"--store {location.shown} needs {error.name}, which is not installed; "
            f"pip install 'grange[{_EXTRAS[location.kind]}]'"
        ) from None


def _open_cloud(location: StoreLocation) -> Objects:
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore

    from grange.objects.cloud import CloudObjects, reason

    if location.kind == "s3":
        from grange.objects.s3 import open_s3

        return open_s3(location)
    client: ClientConfig = {**CLIENT, "allow_http": location.endpoint.startswith("http://")}
    settings: dict[str, Any] = {}
    try:
        store: GCSStore | AzureStore
        if location.kind == "gs":
            if location.endpoint:
                settings["base_url"] = location.endpoint
            store = GCSStore(location.name, client_options=client, retry_config=RETRIES, **settings)
        else:
            if location.account:
                settings["account_name"] = location.account
            if location.endpoint:
                settings["endpoint"] = location.endpoint
            store = AzureStore(
                location.name, client_options=client, retry_config=RETRIES, **settings
            )
    except (BaseError, ValueError) as error:
        raise OperatorError(
            f"--store {location.shown}: {reason(error)}; see docs/operating/stores.md for where "
            "credentials are looked for"
        ) from None
    return CloudObjects(store, location.shown, part_bytes=location.part_bytes)
