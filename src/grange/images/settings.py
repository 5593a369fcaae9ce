"""What a farm is told of its images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from grange.client.image_models import SourceSpec
from grange.oci.names import ImageName
from grange.oci.plan import BUDGET
from grange.oci.refusal import Code, RefusedError
from grange.ports import PackageSet


@dataclass(frozen=True, slots=True)
class PackageSource:
    spec: SourceSpec
    settings: str  # digest of its config and overlays, as in `grange.ports.PackageSet`

    def at(self, commit: str) -> PackageSet:
        return PackageSet(self.spec.name, self.settings, commit)


@dataclass(frozen=True, slots=True)
class ImageSettings:
    sources: Mapping[str, PackageSource]  # by name; the first is what names without one mean
    project: str = "images"  # of the builds
    layer_budget: int = BUDGET
    fresh_s: float = 21_600.0  # for so long a tag means what it meant
    is_zstd_allowed: bool = False
    evaluation_s: float = 600.0
    evaluation_bytes: int = 4 << 30  # of memory
    may_import: bool = False  # from derivations

    @classmethod
    def of(cls, *sources: PackageSource) -> Self:
        """Whatever is usual, of these sources."""
        return cls({each.spec.name: each for each in sources})

    def source_of(self, name: ImageName) -> PackageSource:
        """Raises RefusedError where the farm has none such, or none at all."""
        source = name.source or next(iter(self.sources), "")
        found = self.sources.get(source)
        if found is None:
            raise RefusedError(
                Code.NAME_UNKNOWN,
                f"this farm has no package source {source!r}; it has "
                f"{', '.join(map(repr, self.sources)) or 'none'}",
            )
        return found

    def usual_name(self, name: ImageName) -> ImageName:
        """The same image, named without the source that names without one mean, and without how it
        starts."""
        first = next(iter(self.sources), None)
        source = None if name.source == first else name.source
        return replace(name.without_runtime(), source=source)
