"""An image's documents, from its packages and layers. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from grange.images.packages import Contents
from grange.images.settings import PackageSource
from grange.oci.descriptor import Member
from grange.oci.manifest import (
    PLATFORMS,
    USUAL_ENV,
    Document,
    Image,
    Layer,
    Runtime,
    Variant,
    image,
    index,
    labels,
)
from grange.oci.names import SHELL, Attribute, ImageName
from grange.oci.plan import Group
from grange.ports import ImageKey, ImageRecord, PackageSet, RuntimeWish, StoredLayer
from grange.store.path import StorePath

HOUR_S: Final = 3600
NAMES_SHOWN_MAX: Final = 4  # of a layer's paths, in `docker history`
_CERTIFICATES: Final[Attribute] = ("cacert",)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides an image but for its variant and how it starts."""

    name: ImageName
    source: PackageSource
    contents: Contents
    roots: tuple[Member, ...]  # their outputs, sorted by path
    groups: tuple[Group, ...]  # lowest layer first, but for the root's


def wished(name: ImageName, wish: RuntimeWish) -> RuntimeWish:
    """How to start, as a query says it or else the name."""
    entrypoint = wish.entrypoint or ((name.entrypoint,) if name.entrypoint else ())
    return RuntimeWish(entrypoint, wish.command, wish.user or name.user)


def assembled(
    plan: Plan, key: ImageKey, layers: Sequence[StoredLayer], now: float
) -> tuple[Image, ImageRecord]:
    """The image of `plan` with these layers, the root's last, and its record."""
    shown = [_made_of([member.path for member in group.members]) for group in plan.groups]
    made = image(
        key.variant,
        PLATFORMS[plan.name.system],
        _runtime(plan, key.wish),
        [
            Layer(layer.descriptor, made_of)
            for layer, made_of in zip(layers, [*shown, "links into the packages"], strict=True)
        ],
    )
    record = ImageRecord(
        key,
        made.manifest,
        made.config,
        tuple([layer.key for layer in layers]),
        tuple([member.path for member in plan.roots]),
        now,
        now // HOUR_S * HOUR_S,
    )
    return made, record


def key_of(name: ImageName, packages: PackageSet, variant: Variant, wish: RuntimeWish) -> ImageKey:
    """`name` is as of `ImageSettings.usual_name`."""
    return ImageKey(name.show(), packages, variant, wish)


def joined(intel: ImageRecord, arm: ImageRecord) -> Document:
    """The index of the same image, of the same variant, for two machines."""
    images = [
        Image(each.config, each.manifest, PLATFORMS[system])
        for each, system in ((intel, "x86_64-linux"), (arm, "aarch64-linux"))
    ]
    return index(intel.key.variant.family, images)


def _runtime(plan: Plan, wish: RuntimeWish) -> Runtime:
    packages = [".".join(attribute) for attribute in plan.contents.asked]
    env = dict(USUAL_ENV)
    if all(package.attribute != _CERTIFICATES for package in plan.contents.installed):
        del env["SSL_CERT_FILE"]
    return Runtime(
        wish.entrypoint,
        wish.command or (() if wish.entrypoint else _command(plan)),
        wish.user,
        env,
        labels(
            _shown(plan.source),
            plan.contents.packages.commit,
            [SHELL, *packages] if plan.name.has_shell else packages,
        ),
    )


def _command(plan: Plan) -> tuple[str, ...]:
    """What a container runs that is not told anything."""
    if plan.name.has_shell:
        return ("bash",)
    programs = [
        each.program for each in plan.contents.installed if each.attribute in plan.contents.asked
    ]
    return (programs[0],) if len(programs) == 1 and programs[0] else ()


def _shown(source: PackageSource) -> str | None:
    """Where the packages come from, for everyone who gets the image: without secrets in a URL,
    and not where on some machine."""
    if source.spec.kind == "path" or "://" not in source.spec.location:
        return None
    parts = urlsplit(source.spec.location)
    if parts.scheme == "file":
        return None
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def _made_of(paths: Sequence[StorePath]) -> str:
    names = sorted(path.name for path in paths)
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join(names[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
