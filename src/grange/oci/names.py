"""What names and tags of images mean.

A name is packages with slashes between: ``shell/git/python3packages.requests``. Before them may
stand, in this order, the name of one of the farm's package sources, and meta-packages: ``shell``
(a shell and the usual tools), ``arm64``, ``entrypoint.PROGRAM`` and ``user.NAME`` or
``user.NAME.GROUP``, which say how a container starts. The order of packages does not matter.
Registries allow lower case only, so names are folded, and an attribute that begins with a digit is
meant where it is written with an underscore before it in the package set.

Meta-packages hide packages of the same name. One called ``shell`` or ``arm64``, or one of a set
called ``entrypoint`` or ``user``, is asked for by another attribute that an overlay gives it; what
lies deeper in other sets is reached as ever: ``linuxpackages.user`` is no meta-package.
Source: the grammar of Nixery's names; OCI distribution-spec 1.1, "Pulling manifests".
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Self, TypeAlias

from grange.errors import OperatorError
from grange.oci.manifest import parse_user
from grange.oci.refusal import Code, RefusedError

NAME_CHARS_MAX: Final = 2048  # most clients stop at 255 with the host; `grange image` does not
PACKAGES_MAX: Final = 200  # a longer list belongs in a package of its own, with a short name
PARTS_MAX: Final = 8  # of one attribute; nixpkgs has four at most
TAG_CHARS_MAX: Final = 128  # the specification's
NAMES_MAX: Final = 200_000  # of all sets on the way to an image's packages; nixpkgs has 25,000

SHELL: Final = "shell"
ARM64: Final = "arm64"
ENTRYPOINT: Final = "entrypoint."
USER: Final = "user."
SHELL_PACKAGES: Final = ("bashInteractive", "coreutils", "moreutils", "nano")
EVERY_IMAGE: Final = ("cacert", "iana-etc")  # certificates, and names of ports and protocols

_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG: Final = re.compile(rf"[a-zA-Z0-9_][a-zA-Z0-9._-]{{0,{TAG_CHARS_MAX - 1}}}\Z")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}\Z")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z|sha512:[0-9a-f]{128}\Z")
# Where clients look for signatures and other referrers of a digest: never a name of a commit.
_RESERVED_TAG: Final = re.compile(r"sha(?:256|512)-[0-9a-fA-F]+(?:\..*)?\Z|.*\.(?:sig|att|sbom)\Z")
_NEAR_MAX: Final = 3  # suggestions for one name
_UNKNOWN_SHOWN_MAX: Final = 5  # each costs a walk over all names of the package set

Attribute: TypeAlias = tuple[str, ...]  # the way into a package set, as it is spelled there
Spellings: TypeAlias = Mapping[Attribute, Mapping[str, str]]
"""For each attribute set, the empty way being the whole package set: what `folded` made of it."""


@dataclass(frozen=True, slots=True)
class ImageName:
    """Which image is meant. Names that mean the same are equal."""

    source: str | None  # one of the farm's package sources; None is the first
    has_shell: bool
    is_arm64: bool
    packages: tuple[str, ...]  # folded, sorted, each once
    entrypoint: str = ""  # a program
    user: str = ""  # as `grange.oci.manifest.parse_user` has it

    @property
    def system(self) -> str:
        """What Nix calls the machine it is for."""
        return "aarch64-linux" if self.is_arm64 else "x86_64-linux"

    def show(self) -> str:
        """The one name among those that mean this; `parse_name` of it is this again."""
        leading = [self.source] if self.source is not None else []
        leading += [SHELL] if self.has_shell else []
        leading += [ARM64] if self.is_arm64 else []
        leading += [ENTRYPOINT + self.entrypoint] if self.entrypoint else []
        leading += [USER + self.user.replace(":", ".")] if self.user else []
        return "/".join([*leading, *self.packages])

    def without_runtime(self) -> "ImageName":
        """What it is made of, however it starts."""
        return replace(self, entrypoint="", user="")

    def attributes(self, spellings: Spellings) -> tuple[Attribute, ...]:
        """All that the image is made of, sorted, each once."""
        ways: set[Attribute] = {(name,) for name in EVERY_IMAGE}
        if self.has_shell:
            ways |= {(name,) for name in SHELL_PACKAGES}
        ways |= {spelled(package, spellings) for package in self.packages}
        return tuple(sorted(ways))


class Tag(str):
    """A tag as a person may give it: a commit, a branch, a version."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a tag; raises RefusedError for what no image here can be tagged with."""
        if len(text) > TAG_CHARS_MAX:
            raise RefusedError(
                Code.MANIFEST_UNKNOWN,
                f"the tag {text[:40]!r}... has {len(text)} characters, and no tag has more than "
                f"{TAG_CHARS_MAX}; name a commit, or a shorter branch",
            )
        if _TAG.match(text) is None:
            raise RefusedError(
                Code.MANIFEST_UNKNOWN,
                f"{text!r} is no tag: tags begin with a letter, a digit or _, and go on with "
                "these, . or -; a branch with / in it is asked for by its commit",
            )
        if _RESERVED_TAG.match(text) is not None:
            raise RefusedError(
                Code.MANIFEST_UNKNOWN,
                f"the tag {text!r} is reserved for signatures and attachments, and there is none",
            )
        return cls(text)

    @property
    def is_commit(self) -> bool:
        """It can never mean anything else than today."""
        return _COMMIT.match(self) is not None


class Digest(str):
    """``sha256:<hex>`` or ``sha512:<hex>``."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a digest; raises RefusedError on anything else."""
        if _DIGEST.match(text) is None:
            raise RefusedError(
                Code.DIGEST_INVALID,
                f"{text[:200]!r} is no digest: it takes 'sha256:' and 64, or 'sha512:' and 128, "
                "of 0-9 and a-f",
            )
        return cls(text)


def parse_reference(text: str) -> Tag | Digest:
    """What stands after a name, as a route or a person has it; raises RefusedError."""
    return Digest.parse(text) if ":" in text else Tag.parse(text)


def parse_sources(names: Iterable[str]) -> frozenset[str]:
    """Names of package sources that can stand before packages; raises OperatorError."""
    sources = frozenset(names)
    for name in sorted(sources):
        if _is_meta(name):
            raise OperatorError(f"a package source cannot be called {name!r}: images use that word")
        if _COMPONENT.match(name) is None or len(name) > TAG_CHARS_MAX:
            raise OperatorError(
                f"the package source {name[:200]!r} cannot stand in the name of an image: use "
                f"up to {TAG_CHARS_MAX} of a-z, 0-9 and single . _ - between them"
            )
    return sources


def check_name(name: str) -> None:
    """Raises RefusedError for what no image in any registry can be called."""
    if len(name) > NAME_CHARS_MAX or name.count("/") >= PACKAGES_MAX:
        raise RefusedError(
            Code.NAME_INVALID,
            f"the name of the image begins with {name[:40]!r} and has {len(name)} characters and "
            f"{name.count('/') + 1} parts; at most {NAME_CHARS_MAX} and {PACKAGES_MAX} are read. "
            "Put the packages into one of your own, and name that",
        )
    for part in name.split("/"):
        _check_part(part)


def parse_name(name: str, sources: Collection[str] = ()) -> ImageName:
    """Read the name of an image; raises RefusedError. `sources` are as of `parse_sources`."""
    check_name(name)
    parts = name.split("/")
    source = parts.pop(0) if parts[0] in sources else None
    metas: set[str] = set()
    while parts and _is_meta(parts[0]):
        metas.add(parts.pop(0))
    if not parts and SHELL not in metas:
        raise RefusedError(
            Code.NAME_INVALID,
            f"{name!r} names no package; write them after it, as in {name + '/hello'!r}, or "
            f"{SHELL!r} for a shell alone",
        )
    # Elsewhere such a word would be a package that cannot be asked for alone, or stand first.
    leading = frozenset(sources) if source is None else frozenset()
    for part in parts:
        if part in leading or _is_meta(part):
            raise RefusedError(
                Code.NAME_INVALID,
                f"{part!r} in {name[:200]!r} is no package; it stands before all packages, and the "
                f"name of a source before {SHELL!r}, {ARM64!r}, '{ENTRYPOINT}…' and '{USER}…'",
            )
    return ImageName(
        source,
        SHELL in metas,
        ARM64 in metas,
        tuple(sorted(set(parts))),
        _single(metas, ENTRYPOINT),
        _user(_single(metas, USER)),
    )


def _is_meta(part: str) -> bool:
    return part in (SHELL, ARM64) or part.startswith((ENTRYPOINT, USER))


def _single(metas: Iterable[str], prefix: str) -> str:
    """What stands behind `prefix`; nothing where no part begins with it."""
    found = sorted(meta.removeprefix(prefix) for meta in metas if meta.startswith(prefix))
    if len(found) > 1:
        raise RefusedError(
            Code.NAME_INVALID,
            f"the name of the image has both '{prefix}{found[0]}' and '{prefix}{found[1]}'; a "
            "container starts in one way",
        )
    return found[0] if found else ""


def _user(text: str) -> str:
    name, dot, group = text.partition(".")
    return parse_user(f"{name}:{group}" if dot else name) if text else ""


def _check_part(part: str) -> None:
    if _COMPONENT.match(part) is not None and part.count(".") < PARTS_MAX:
        return
    if not part:
        why = "it has an empty part; write packages with one / between them and none at the ends"
    elif part.strip(".") == "":
        why = f"{part!r} is no package"
    elif not part.isascii():
        why = f"{part[:100]!r} has a letter that registries do not allow; packages have ASCII names"
    elif part != part.lower():
        why = f"{part[:100]!r} has upper case; write {part[:100].lower()!r}, which finds it too"
    elif part.count(".") >= PARTS_MAX:
        why = f"{part[:100]!r} has more than {PARTS_MAX} parts; no package lies that deep"
    else:
        why = (
            f"{part[:100]!r} is not made of a-z and 0-9 with one of . _ __ - between them, as "
            "registries want it"
        )
    raise RefusedError(Code.NAME_INVALID, f"not the name of an image: {why}")


def folded(names: Iterable[str]) -> dict[str, str]:
    """How the attributes `names` of one set are asked for → how they are spelled.

    One that needs no folding is found under its own name. Of several that fold to one name, the
    first in code point order is found, whatever order they are given in.
    """
    ordered = sorted(names, reverse=True)
    spellings = {_asked(name): name for name in ordered}
    spellings.update((name, name) for name in ordered if _asked(name) == name)
    return spellings


def _asked(name: str) -> str:
    if name[:1] == "_" and name[1:2].isdigit():
        name = name[1:]
    return name.lower()


def spelled(package: str, spellings: Spellings) -> Attribute:
    """The way to `package`. Where `spellings` does not tell, it is as asked for.

    Each part is looked up among the names of its own set, never among those of another.
    """
    way: Attribute = ()
    for part in package.split("."):
        known = spellings.get(way, {}).get(part)
        if known is None:
            known = f"_{part}" if part[0].isdigit() and not way else part
        way = (*way, known)
    return way


def unknown_packages(packages: Iterable[str], spellings: Spellings) -> RefusedError:
    """What to answer where a package set lacks `packages`: which, and what may have been meant.

    Takes up to 40 ms for a package where the set has 25,000: not for an event loop.
    """
    lacking = sorted(set(packages))
    told = []
    for package in lacking[:_UNKNOWN_SHOWN_MAX]:
        near = _near(package, spellings)
        told.append(repr(package) + (f" (did you mean {', '.join(near)}?)" if near else ""))
    more = len(lacking) - _UNKNOWN_SHOWN_MAX
    also = f" and {more} more" if more > 0 else ""
    return RefusedError(
        Code.MANIFEST_UNKNOWN,
        f"the package set has no {', '.join(told)}{also}",
        {"packages": lacking[:PACKAGES_MAX]},
    )


def _near(package: str, spellings: Spellings) -> list[str]:
    *outer, last = package.split(".")
    way = spelled(".".join(outer), spellings) if outer else ()
    names = sorted(spellings.get(way, {}))
    near = difflib.get_close_matches(last, names, n=_NEAR_MAX, cutoff=0.75)
    return [".".join([*outer, name]) for name in near]
