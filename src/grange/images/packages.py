"""What the farm remembers of package sets: how attributes are spelled, and what they are."""

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from grange.oci.names import (
    EVERY_IMAGE,
    SHELL_PACKAGES,
    Attribute,
    ImageName,
    Spellings,
    folded,
    spelled,
    unknown_packages,
)
from grange.oci.refusal import Code, RefusedError
from grange.ports import Catalog, Evaluated, Lack, NoPackage, Package, PackageSet

NAMES_MAX: Final = 200_000  # kept in memory: some 36 MB, and eight sets as large as nixpkgs
_LARGE: Final = 1_000  # names whose folding is not for the event loop

_ALLOWED_BY: Final = {
    Lack.UNFREE: "config.allowUnfree = true",
    Lack.BROKEN: "config.allowBroken = true",
    Lack.INSECURE: "its name in config.permittedInsecurePackages",
    Lack.UNSUPPORTED: "config.allowUnsupportedSystem = true",
}
# What images have unasked, and go without where a package set does not.
_DISPENSABLE: Final = {(name,) for name in (*EVERY_IMAGE, *SHELL_PACKAGES[1:])}


@dataclass(frozen=True, slots=True)
class Known:
    """How much of an image's packages the farm knows."""

    spellings: Spellings
    attributes: tuple[Attribute, ...]  # sorted; as asked for where the spelling is not known
    found: Mapping[Attribute, Evaluated]
    unknown: tuple[Attribute, ...]  # have to be evaluated


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in an image."""

    packages: PackageSet
    asked: tuple[Attribute, ...]  # what its name says, sorted, as it is spelled
    installed: tuple[Package, ...]  # sorted by attribute


class PackageBook:
    """Reads the catalog's answers, and keeps the spellings of sets that were asked for lately."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._spellings: OrderedDict[tuple[PackageSet, str, Attribute], Mapping[str, str]] = (
            OrderedDict()
        )
        self._names = 0  # in all of them

    async def look(self, packages: PackageSet, name: ImageName) -> Known:
        return await self._as_asked(packages, name) or await self._as_spelled(packages, name)

    async def _as_asked(self, packages: PackageSet, name: ImageName) -> Known | None:
        """Without the names of a large set, which take a while to read. None where they decide.

        A package that was evaluated just as it is asked for is the one that is meant: by another
        spelling nobody asks for it.
        """
        attributes = name.attributes({})
        found = await self._catalog.evaluated(packages, name.system, attributes)
        if all(isinstance(found.get(each), Package) for each in attributes):
            return Known({}, attributes, found, ())
        return None

    async def _as_spelled(self, packages: PackageSet, name: ImageName) -> Known:
        spellings: dict[Attribute, Mapping[str, str]] = {}
        ways: set[Attribute] = {()}
        while ways:
            found = await self._read(packages, name.system, ways)
            spellings |= found
            ways = {way for way in _ways(name, spellings) if way[:-1] in found} - spellings.keys()
        attributes = name.attributes(spellings)
        if () not in spellings:
            return Known(spellings, attributes, {}, attributes)
        answers = dict(await self._catalog.evaluated(packages, name.system, attributes))
        for attribute in attributes:
            if attribute not in answers and _is_missing(attribute, spellings):
                answers[attribute] = NoPackage(attribute, Lack.MISSING, "")
        unknown = tuple([each for each in attributes if each not in answers])
        return Known(spellings, attributes, answers, unknown)

    async def _read(
        self, packages: PackageSet, system: str, ways: Collection[Attribute]
    ) -> dict[Attribute, Mapping[str, str]]:
        found = {}
        for way in ways:
            kept = self._spellings.get((packages, system, way))
            if kept is not None:
                self._spellings.move_to_end((packages, system, way))
                found[way] = kept
        lacking = [way for way in ways if way not in found]
        if lacking:
            for way, names in (await self._catalog.names(packages, system, lacking)).items():
                large = len(names) > _LARGE
                found[way] = await asyncio.to_thread(folded, names) if large else folded(names)
                self._keep((packages, system, way), found[way])
        return found

    def _keep(self, key: tuple[PackageSet, str, Attribute], spellings: Mapping[str, str]) -> None:
        if key in self._spellings:
            return
        self._spellings[key] = spellings
        self._names += len(spellings)
        while self._names > NAMES_MAX and len(self._spellings) > 1:
            self._names -= len(self._spellings.popitem(last=False)[1])


def _ways(name: ImageName, spellings: Spellings) -> set[Attribute]:
    """The sets that the packages of `name` lie in."""
    found = set()
    for package in name.packages:
        way = spelled(package, spellings)
        found |= {way[:length] for length in range(1, len(way))}
    return found


def _is_missing(attribute: Attribute, spellings: Spellings) -> bool:
    """One of the sets on the way to it is known, and has no such name."""
    for length, part in enumerate(attribute):
        names = spellings.get(attribute[:length])
        if names is None:
            return False
        if part not in names and part not in names.values():  # keys are as it is asked for
            return True
    return False


def lacking(name: ImageName, known: Known) -> tuple[tuple[str, ...], bool, bool]:
    """What to have evaluated of `known.unknown`: packages as they are asked for, whether a shell's
    are among them, and whether those of every image are."""
    packages = {spelled(package, known.spellings): package for package in name.packages}
    unknown = set(known.unknown)
    implied = unknown - packages.keys()
    return (
        tuple(sorted(packages[each] for each in unknown & packages.keys())),
        not implied.isdisjoint({(each,) for each in SHELL_PACKAGES}),
        not implied.isdisjoint({(each,) for each in EVERY_IMAGE}),
    )


async def contents(
    name: ImageName,
    packages: PackageSet,
    spellings: Spellings,
    found: Mapping[Attribute, Evaluated],
) -> Contents:
    """What an image of this name has in it; `found` has all of its attributes.

    What an image has unasked is left out where the package set has no such thing. Raises
    RefusedError for whatever cannot be had.
    """
    asked = {spelled(package, spellings): package for package in name.packages}
    installed: list[Package] = []
    lacks: list[NoPackage] = []
    for attribute in name.attributes(spellings):
        answer = found[attribute]
        if isinstance(answer, Package):
            installed.append(answer)
        elif attribute in asked or attribute not in _DISPENSABLE or not _is_missing_one(answer):
            lacks.append(answer)
    missing = filter(_is_missing_one, lacks)
    names = [asked.get(each.attribute, ".".join(each.attribute)) for each in missing]
    if names:
        raise await asyncio.to_thread(unknown_packages, names, spellings)
    if lacks:
        raise _refusal(lacks, packages.source, name.system)
    return Contents(packages, tuple(sorted(asked)), tuple(installed))


def _is_missing_one(answer: NoPackage) -> bool:
    return answer.lack is Lack.MISSING


def _refusal(lacks: Sequence[NoPackage], source: str, system: str) -> RefusedError:
    """Of packages that are there and cannot be had: all of them, the first reason's code."""
    told = [_words(each, source, system) for each in lacks]
    is_denied = all(each.lack in _ALLOWED_BY for each in lacks)
    return RefusedError(
        Code.DENIED if is_denied else Code.MANIFEST_UNKNOWN,
        "; ".join(told),
        {"packages": [".".join(each.attribute) for each in lacks]},
    )


def _words(answer: NoPackage, source: str, system: str) -> str:
    package = ".".join(answer.attribute)
    message = f" ({answer.message})" if answer.message else ""
    match answer.lack:
        case Lack.NO_PACKAGE:
            return f"{package!r} is no package; if it is a set of packages, name one in it"
        case Lack.FAILED | Lack.MISSING:
            return f"{package!r} cannot be evaluated: {answer.message}"
        case Lack.UNSUPPORTED:
            is_what = f"not for {system}"
        case Lack.INSECURE | Lack.BROKEN | Lack.UNFREE:
            is_what = answer.lack.value
    return (
        f"{package!r} is {is_what}{message}; whoever runs this farm can allow it, by "
        f"{_ALLOWED_BY[answer.lack]} in [images.sources.{source}] of the farm's file"
    )
