"""What a build wrote to nix-support of an output: release name, metrics, products, failure.

The files are Hydra's (its manual, "Build products"), read more strictly: a line must match as a
whole, and a product must be there, in an output of the same build. What is malformed is left out
with a warning for the build's log.
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import isfinite
from typing import Final

from grange.errors import PeerError
from grange.store.path import StoreDir, StorePath
from grange.wire.messages import Metric, NixSupport, Product

FILE_BYTES_MAX: Final = 1 << 20  # real ones have a few lines
LINES_MAX: Final = 10_000
WARNINGS_MAX: Final = 20
SYMLINKS_MAX: Final = 40  # as the kernel
HASH_CHUNK_BYTES: Final = 1 << 20

_RELEASE: Final = re.compile(r"[a-zA-Z0-9.@:_-]{1,255}")
_METRIC: Final = re.compile(
    r"([a-zA-Z0-9._-]{1,255})[ \t]+"
    r"([+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?)"
    r"(?:[ \t]+([a-zA-Z0-9._%/-]{1,64}))?[ \t]*"
)
_PRODUCT: Final = re.compile(
    r"([a-zA-Z0-9_-]{1,255})[ \t]+([a-zA-Z0-9_-]{1,255})[ \t]+"
    r'(?:"([^"<>]+)"|([^"\s<>]+))(?:[ \t]+([^"\s<>]+))?[ \t]*'
)

Physical = Callable[[StorePath], str]
"""Where a store path lies in the file system of this machine."""


@dataclass(frozen=True, slots=True)
class Parsed:
    support: NixSupport
    warnings: tuple[str, ...]


_PLAIN: Final = Parsed(NixSupport(), ())


def parse_support(
    name: str,
    path: StorePath,
    outputs: Collection[StorePath],
    store_dir: StoreDir,
    physical: Physical,
) -> Parsed:
    """Read nix-support of output `name` at `path`, one of the build's `outputs`.

    Blocks, and for as long as it takes to hash the products: see `has_support`.
    """
    root = physical(path)
    if not os.path.isdir(root) or os.path.islink(root):
        return _PLAIN
    reader = _Reader(path, frozenset(outputs), store_dir, physical)
    return Parsed(
        NixSupport(
            is_failed=os.path.lexists(f"{root}/nix-support/failed"),
            release_name=reader.release_name(),
            products=reader.products(name),
            metrics=reader.metrics(),
        ),
        tuple(reader.warnings),
    )


def has_support(path: StorePath, physical: Physical) -> bool:
    """Whether there is anything to read at all: cheap, and mostly not."""
    return os.path.lexists(physical(path) + "/nix-support")


class _Reader:
    def __init__(
        self,
        path: StorePath,
        outputs: frozenset[StorePath],
        store_dir: StoreDir,
        physical: Physical,
    ) -> None:
        self._path = path
        self._outputs = outputs
        self._store_dir = store_dir
        self._physical = physical
        self.warnings: list[str] = []

    def _warn(self, text: str) -> None:
        if len(self.warnings) < WARNINGS_MAX:
            self.warnings.append(text)

    def release_name(self) -> str | None:
        text = self._read("hydra-release-name")
        if text is None:
            return None
        name = text.strip()
        if _RELEASE.fullmatch(name) is None:
            self._warn(f"nix-support/hydra-release-name is no release name: {name[:100]!r}")
            return None
        return name

    def metrics(self) -> dict[str, Metric]:
        metrics = {}
        for line in self._lines("hydra-metrics") or ():
            match = _METRIC.fullmatch(line)
            value = float(match[2]) if match else float("nan")
            if match is None or not isfinite(value):
                self._warn(f"nix-support/hydra-metrics: no 'name value [unit]': {line[:100]!r}")
                continue
            metrics[match[1]] = Metric(value, match[3])
        return metrics

    def products(self, output_name: str) -> tuple[Product, ...]:
        lines = self._lines("hydra-build-products")
        if lines is None:
            subtype = "" if output_name == "out" else output_name
            return (Product(self._path, "", "nix-build", subtype, "", "", False, None, None),)
        products = []
        for line in lines:
            try:
                products.append(self._product(line))
            except (PeerError, OSError) as error:
                self._warn(f"nix-support/hydra-build-products: {line[:200]!r}: {error}")
        return tuple(products)

    def _product(self, line: str) -> Product:
        match = _PRODUCT.fullmatch(line)
        if match is None:
            raise PeerError("no 'type subtype path [default]'")
        kind, subtype, quoted, bare, default = match.groups()
        output, sub_path = self._split(quoted or bare)
        if default is not None and not _is_inside(default):
            raise PeerError("the default is no relative path inside the product")
        place = self._resolve(output, sub_path)
        status = os.lstat(place)
        name = sub_path.rpartition("/")[2]
        if not stat.S_ISREG(status.st_mode):
            if not stat.S_ISDIR(status.st_mode):
                raise PeerError("neither a file nor a directory")
            return Product(output, sub_path, kind, subtype, name, default or "", False, None, None)
        digest, size = _sha256(place)
        return Product(output, sub_path, kind, subtype, name, default or "", True, digest, size)

    def _split(self, text: str) -> tuple[StorePath, str]:
        """The output and the path inside it that an absolute path names."""
        prefix = self._store_dir.root + "/"
        if not text.startswith(prefix):
            raise PeerError(f"not an absolute path in {self._store_dir.root}")
        base, _, sub_path = text[len(prefix) :].rstrip("/").partition("/")
        output = StorePath.parse_base(base)
        if output not in self._outputs:
            raise PeerError("not in an output of this build")
        if sub_path and not _is_inside(sub_path):
            raise PeerError("the path inside the output is not in its plain form")
        return output, sub_path

    def _resolve(self, path: StorePath, sub_path: str) -> str:
        """The place without symlinks on the way; they may lead elsewhere in the store only.

        Followed by hand, for where the store is not in its usual place its symlinks are said as if
        it were.
        """
        rest = [part for part in reversed(sub_path.split("/")) if part]
        here = [str(path)]  # below the store
        symlinks = 0
        while True:
            place = self._place(here)
            if stat.S_ISLNK(os.lstat(place).st_mode):
                symlinks += 1
                if symlinks > SYMLINKS_MAX:
                    raise PeerError("too many symlinks")
                target = os.readlink(place)
                here.pop()
                if target.startswith("/"):
                    if not target.startswith(self._store_dir.root + "/"):
                        raise PeerError("a symlink leads out of the store")
                    here = []
                    target = target[len(self._store_dir.root) + 1 :]
                rest.extend(reversed(target.split("/")))
            while rest and rest[-1] in {"", ".", ".."}:
                if rest.pop() == "..":
                    if not here:
                        raise PeerError("a symlink leads out of the store")
                    here.pop()
            if not rest:
                break
            here.append(rest.pop())
        return self._place(here)

    def _place(self, here: list[str]) -> str:
        if not here:
            raise PeerError("a symlink leads out of the store")
        return "/".join((self._physical(StorePath.parse_base(here[0])), *here[1:]))

    def _lines(self, name: str) -> list[str] | None:
        text = self._read(name)
        if text is None:
            return None
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        if len(lines) > LINES_MAX:
            self._warn(f"nix-support/{name}: only the first {LINES_MAX} lines are read")
        return lines[:LINES_MAX]

    def _read(self, name: str) -> str | None:
        """A file of nix-support as text; None where there is none that can be read."""
        try:
            place = self._resolve(self._path, f"nix-support/{name}")
            with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except (PeerError, OSError) as error:
            self._warn(f"nix-support/{name} cannot be read: {error}")
            return None
        if len(data) > FILE_BYTES_MAX:
            self._warn(f"nix-support/{name}: only the first {FILE_BYTES_MAX} bytes are read")
            data = data[:FILE_BYTES_MAX].rpartition(b"\n")[0]
        return data.decode(errors="replace")


def _is_inside(path: str) -> bool:
    return not any(part in {"", ".", ".."} for part in path.split("/")) and "\0" not in path


def _sha256(place: str) -> tuple[str, int]:
    """Digest in base 16 and size of a regular file."""
    hasher = hashlib.sha256()
    size = 0
    with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            hasher.update(chunk)
            size += len(chunk)
    return hasher.hexdigest(), size
