"""What serving images takes of whoever has them."""

from collections.abc import Sequence
from typing import Protocol

from grange.images.doors import BlobBytes
from grange.images.service import Served
from grange.oci.manifest import Document
from grange.ports import RuntimeWish


class Images(Protocol):
    """See `grange.images.service`. All raise RefusedError, and OutsideError."""

    async def manifest(
        self, name: str, reference: str, accept: Sequence[str], wish: RuntimeWish, wait_s: float
    ) -> Served: ...

    async def blob(self, digest: str) -> BlobBytes | Document | None: ...

    async def tags(self, name: str) -> list[str]: ...
