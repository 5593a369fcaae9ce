"""What serving images takes of whoever has them."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from grange.oci.manifest import Document
from grange.oci.refusal import Code, RefusedError
from grange.ports import RuntimeWish


class Blob(Protocol):
    """A layer's bytes."""

    @property
    def digest(self) -> str: ...
    @property
    def size(self) -> int: ...
    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """From `start` up to `end`, exclusive. Raises OutsideError where they cannot be had, the
        last of them only when all are known to be right."""


class Served(Protocol):
    """A manifest or an index, and what is to be told beside it."""

    @property
    def document(self) -> Document: ...
    @property
    def commit(self) -> str:
        """Of the package source; "" where it is not known."""

    @property
    def warnings(self) -> Sequence[str]: ...


class Images(Protocol):
    """See `grange.images.service`. All raise RefusedError, and OutsideError."""

    async def manifest(
        self, name: str, reference: str, accept: Sequence[str], wish: RuntimeWish, wait_s: float
    ) -> Served: ...

    async def blob(self, digest: str) -> Blob | Document | None: ...

    async def tags(self, name: str) -> list[str]: ...


class PendingError(RefusedError):
    """It is being made."""

    def __init__(self, words: str, builds: tuple[str, ...], retry_after_s: int) -> None:
        super().__init__(Code.TOO_MANY_REQUESTS, words)
        self.builds = builds
        self.retry_after_s = retry_after_s
