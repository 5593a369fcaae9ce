"""What differs between two results of one build, for the person who has to find out why."""

import hashlib
import os
from collections.abc import Iterator
from stat import S_ISDIR, S_ISLNK, S_ISREG, S_IXUSR
from typing import Final

LINES_MAX: Final = 50  # whoever has more differences than that looks for a pattern, not at each
DIGEST_CHARS: Final = 16  # enough to tell that two are the same thing again and again
CHUNK_BYTES: Final = 1 << 20


def differences(first: str, second: str) -> list[str]:
    """A line for each file that differs, in order of names, at most LINES_MAX and one for the rest.

    Looks at what a NAR would hold: contents, kinds, targets of symlinks, executable bits. Blocks
    for as long as it takes to hash what differs. Raises OSError.
    """
    lines: list[str] = []
    for line in _differences(os.fsencode(first), os.fsencode(second)):
        if len(lines) == LINES_MAX:
            lines.append(f"more than {LINES_MAX} lines; the others are left out")
            break
        lines.append(line)
    return lines


def _differences(first: bytes, second: bytes) -> Iterator[str]:
    pending = [b""]  # names below both, the next one last; a tree may be too deep for recursion
    while pending:
        name = pending.pop()
        left, right = first + name, second + name
        shown = _shown(name.removeprefix(b"/")) or "the output itself"
        if os.path.lexists(left) != os.path.lexists(right):
            yield f"{shown}: only in the {'first' if os.path.lexists(left) else 'second'}"
            continue
        modes = os.lstat(left).st_mode, os.lstat(right).st_mode
        if S_ISDIR(modes[0]) and S_ISDIR(modes[1]):
            entries = {*os.listdir(left), *os.listdir(right)}
            pending += [name + b"/" + entry for entry in sorted(entries, reverse=True)]
        else:
            yield from _in_files(left, right, modes, shown)


def _in_files(left: bytes, right: bytes, modes: tuple[int, int], shown: str) -> Iterator[str]:
    """Of two that are not both directories."""
    if _kind(modes[0]) != _kind(modes[1]):
        yield f"{shown}: {_kind(modes[0])} in the first, {_kind(modes[1])} in the second"
    elif S_ISLNK(modes[0]):
        targets = os.fsdecode(os.readlink(left)), os.fsdecode(os.readlink(right))
        if targets[0] != targets[1]:
            yield f"{shown}: symlink to {targets[0]!r} in the first, {targets[1]!r} in the second"
    elif S_ISREG(modes[0]):
        if not _is_same(left, right):
            sizes = os.path.getsize(left), os.path.getsize(right)
            yield (
                f"{shown}: content differs: {sizes[0]} bytes sha256:{_digest(left)}… in the first,"
                f" {sizes[1]} bytes sha256:{_digest(right)}… in the second"
            )
        if (modes[0] ^ modes[1]) & S_IXUSR:
            yield f"{shown}: executable only in the {'first' if modes[0] & S_IXUSR else 'second'}"


def _shown(name: bytes) -> str:
    """A name on one line, whatever its bytes are."""
    text = name.decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _kind(mode: int) -> str:
    if S_ISDIR(mode):
        return "a directory"
    if S_ISLNK(mode):
        return "a symlink"
    return "a file" if S_ISREG(mode) else "no file"


def _is_same(first: bytes, second: bytes) -> bool:
    with open(first, "rb", buffering=0) as left, open(second, "rb", buffering=0) as right:
        while True:
            chunks = left.read(CHUNK_BYTES), right.read(CHUNK_BYTES)
            if chunks[0] != chunks[1]:
                return False
            if not chunks[0]:
                return True


def _digest(path: bytes) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_CHARS]
