"""Content addresses: what a path holds, said so that its place in the store follows from it.

``text:sha256:...`` for a text file, ``fixed:algo:...`` for a flat file and ``fixed:r:algo:...`` for
a tree by its NAR.
Source: Nix manual, "Content-addressing store objects"; libstore/content-address.cc.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from grange.errors import PeerError
from grange.store.hash import Hash
from grange.store.outputs import fixed_output_path, source_path, text_path
from grange.store.path import StoreDir, StorePath


class Method(StrEnum):
    """What is hashed; the value is how a content address begins."""

    TEXT = "text:"
    FLAT = "fixed:"
    NAR = "fixed:r:"


@dataclass(frozen=True, slots=True)
class ContentAddress:
    """A hash of content, and of what form of it."""

    method: Method
    hash: Hash

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the one spelling Nix writes, in base 32; raises PeerError on any other text."""
        for method in (Method.TEXT, Method.NAR, Method.FLAT):
            if text.startswith(method):
                address = cls(method, Hash.parse(text.removeprefix(method)))
                if address.show() == text and (
                    method is not Method.TEXT or address.hash.algorithm == "sha256"
                ):
                    return address
                break
        raise PeerError(f"{text[:200]!r} is not a content address as Nix writes it")

    def show(self) -> str:
        return f"{self.method}{self.hash.nix()}"


def path_of(
    address: ContentAddress,
    name: str,
    references: Collection[StorePath],
    store_dir: StoreDir,
    *,
    self_reference: bool = False,
) -> StorePath:
    """The path that follows; `references` leave out the path itself.

    Raises PeerError where content of this form cannot have such references.
    """
    is_tree = address.method is Method.NAR and address.hash.algorithm == "sha256"
    if self_reference and not is_tree:
        raise PeerError(f"{name!r} cannot refer to itself: its content address is {address.show()}")
    if is_tree:
        return source_path(name, address.hash, references, store_dir, self_reference=self_reference)
    if address.method is Method.TEXT:
        return text_path(name, address.hash, references, store_dir)
    if references:
        raise PeerError(f"{name!r} cannot have references: its content address is {address.show()}")
    recursive = address.method is Method.NAR
    return fixed_output_path(name, address.hash, store_dir, recursive=recursive)


def check_path(
    path: StorePath,
    address: ContentAddress,
    references: Collection[StorePath],
    store_dir: StoreDir,
) -> None:
    """Raise PeerError unless `path` follows; here `references` may hold the path itself."""
    others = [reference for reference in references if reference != path]
    self_reference = len(others) != len(references)
    expected = path_of(address, path.name, others, store_dir, self_reference=self_reference)
    if path != expected:
        raise PeerError(
            f"{path} does not follow from its content address {address.show()}: "
            f"with its references that makes {expected}"
        )
