"""What a derivation asks of a builder: its system, and the features of all that is to be built.

A build of one derivation builds those of its inputs that exist nowhere yet, on the same kind of
builder. Which those are is asked of Nix itself, where the build will run, since only Nix knows what
its substituters have.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from grange.coordinator.attributes import required_features
from grange.errors import PeerError
from grange.store.derivation import DRV_SUFFIX, Derivation, parse
from grange.store.path import StoreDir, StorePath

UNBUILT_MAX: Final = 100_000  # derivations of one plan; beyond that it is not looked into
FEATURES: Final = "requiredSystemFeatures"  # the attribute, plain or structured
ANY_SYSTEM: Final = "builtin"  # Nix does it itself, wherever it is

_WILL_BUILD: Final = re.compile(r"(?:this derivation|these (?:\d+ )?derivations) will be built:\Z")
_OTHER: Final = re.compile(
    r"(?:this path|these (?:\d+ )?paths) will be fetched|don't know how to build|warning: |\Z"
)
_MARK: Final = "grange-drv "
_END: Final = "grange-end"


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a builder, and how it was found out, for people."""

    system: str
    features: tuple[str, ...]  # sorted
    found: str


def plan_command(drv_path: str) -> list[str]:
    """Prints, on standard error, what building `drv_path` would build and download."""
    return ["nix-store", "--realise", "--dry-run", drv_path]


def read_plan(text: str, store_dir: StoreDir) -> tuple[StorePath, ...] | None:
    """The derivations that would be built, by the words of Nix; None where these are not known,
    which is not to be taken for nothing to build."""
    found: list[StorePath] = []
    is_building = False
    for line in text.splitlines():
        if not line.startswith(" "):
            is_building = _WILL_BUILD.match(line) is not None
            if not is_building and _OTHER.match(line) is None:
                return None
        elif is_building:
            try:
                path = store_dir.parse(line.strip())
            except PeerError:
                return None
            if not path.endswith(DRV_SUFFIX) or len(found) >= UNBUILT_MAX:
                return None
            found.append(path)
    return tuple(found)


def fetch_command(drv_path: str) -> list[str]:
    """Prints `drv_path` and those derivations named on its input that say anything of features.

    Structured attributes are found by the same word. Base 64 has short lines, which workers pass
    on as they are; what it needs is in the path of a NixOS service.
    """
    script = (
        "set -eu\n"
        f'{{ echo "$1"; xargs -r grep -lF -e {FEATURES} --; }} |\n'
        'while IFS= read -r drv; do\n[ -r "$drv" ] || exit 1\n'
        f'printf \'{_MARK}%s\\n\' "$drv"; base64 <"$drv" | fold -w 76; echo; done\n'
        f"echo {_END}\n"
    )
    return ["sh", "-c", script, "sh", drv_path]


def read_fetched(text: str, store_dir: StoreDir) -> dict[StorePath, bytes] | None:
    """Texts by path, from what `fetch_command` printed; None where it is cut off or garbled."""
    found: dict[StorePath, bytes] = {}
    lines: list[str] = []
    name: StorePath | None = None
    for line in text.splitlines():
        if not line.startswith(_MARK) and line != _END:
            lines.append(line)
            continue
        try:
            if name is not None:
                found[name] = base64.b64decode("".join(lines), validate=True)
            name = None if line == _END else store_dir.parse(line.removeprefix(_MARK))
        except (PeerError, binascii.Error):
            return None
        if line == _END:
            return found
        lines.clear()
    return None


def features_of(texts: Mapping[StorePath, bytes], store_dir: StoreDir) -> tuple[str, ...]:
    """Of all of them together. Raises PeerError where one is no derivation."""
    features: set[str] = set()
    for path, aterm in texts.items():
        if FEATURES.encode() not in aterm:
            continue  # most of them
        features.update(required_features(read_drv(aterm, path, store_dir)))
    return tuple(sorted(features))


def read_drv(aterm: bytes, path: StorePath, store_dir: StoreDir) -> Derivation:
    """Raises PeerError."""
    return parse(aterm, path.name.removesuffix(DRV_SUFFIX), store_dir)


def ask_of(
    systems: Sequence[str | None], features: Iterable[str], always: Iterable[str], found: str
) -> Ask | None:
    """`systems` in order of trust; None where none of them names one that builders have."""
    for system in systems:
        if system and system != ANY_SYSTEM:
            return Ask(system, tuple(sorted({*features, *always})), found)
    return None
