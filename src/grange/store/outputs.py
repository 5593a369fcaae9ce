"""Where things go in the store: the paths that follow from contents and from derivations.

A path's hash part digests a fingerprint ``type:sha256:digest:store directory:name``. For an input
addressed derivation the digest is that of its text, with its own outputs left out and every input
derivation replaced by the digest of *its* text, modulo fixed outputs: those count by what they are,
not by how they are fetched.
Source: Nix manual, "Complete Store Path Calculation"; libstore/derivations.cc,
`hashDerivationModulo`; E. Dolstra's thesis, section 5.4.
"""

import hashlib
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from grange.errors import PeerError
from grange.store.derivation import DRV_SUFFIX, Derivation, DrvText, Output, parse, unparse
from grange.store.hash import DIGEST_BYTES, Hash, base32_encode, compress_hash
from grange.store.path import StoreDir, StorePath, parse_name

_PATH_DIGEST_BYTES: Final = 20
_RECURSIVE: Final = "r:"
_STRUCTURED: Final = "__json"  # the variable that holds structured attributes
_COMMA: Final = '","'


class OutputKind(StrEnum):
    """How an output's path is found. Grange builds the first two."""

    INPUT_ADDRESSED = "input-addressed"
    FIXED = "fixed-output"
    FLOATING = "floating content-addressed"
    DEFERRED = "deferred (it depends on a floating content-addressed derivation)"
    IMPURE = "impure"


@dataclass(frozen=True, slots=True)
class Modulo:
    """What dependants need to know of a checked derivation."""

    digest: str  # of its text modulo fixed outputs: SHA-256, base 16
    outputs: tuple[str, ...]


# Paths that follow from contents


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_path(kind: str, digest: str, name: str, store_dir: StoreDir) -> StorePath:
    """The path of type `kind`, for a SHA-256 in base 16 and a name that is already valid."""
    fingerprint = f"{kind}:sha256:{digest}:{store_dir.root}:{name}"
    whole = hashlib.sha256(fingerprint.encode()).digest()
    return StorePath(f"{base32_encode(compress_hash(whole, _PATH_DIGEST_BYTES))}-{name}")


def _with_references(kind: str, references: Iterable[StorePath], store_dir: StoreDir) -> str:
    return f":{store_dir.root}/".join([kind, *sorted(set(references))])


def text_path(
    name: str, text_hash: Hash, references: Iterable[StorePath], store_dir: StoreDir
) -> StorePath:
    """Where a text file goes, such as a derivation or what ``builtins.toFile`` writes."""
    kind = _with_references("text", references, store_dir)
    return make_path(kind, text_hash.base16(), parse_name(name), store_dir)


def source_path(
    name: str,
    nar_hash: Hash,
    references: Iterable[StorePath],
    store_dir: StoreDir,
    *,
    self_reference: bool = False,
) -> StorePath:
    """Where a file tree goes by the SHA-256 of its NAR."""
    kind = _with_references("source", references, store_dir) + ":self" * self_reference
    return make_path(kind, nar_hash.base16(), parse_name(name), store_dir)


def fixed_output_path(
    name: str, content_hash: Hash, store_dir: StoreDir, *, recursive: bool
) -> StorePath:
    """Where a tree without references goes by its hash: of the NAR, or of the one flat file."""
    if recursive and content_hash.algorithm == "sha256":
        return source_path(name, content_hash, (), store_dir)
    method = _RECURSIVE * recursive + content_hash.algorithm
    digest = _sha256(f"fixed:out:{method}:{content_hash.base16()}:".encode())
    return make_path("output:out", digest, parse_name(name), store_dir)


# Paths that follow from derivations


def output_name(drv_name: str, output: str) -> str:
    """The name of an output's path: ``hello`` for its output out, ``hello-dev`` for dev."""
    return drv_name if output == "out" else f"{drv_name}-{output}"


def derivation_path(drv: Derivation, store_dir: StoreDir) -> StorePath:
    """Where the text of `drv` itself goes."""
    aterm = drv.text.aterm if drv.text else unparse(drv, store_dir)
    kind = _with_references("text", [*drv.input_srcs, *drv.input_drvs], store_dir)
    return make_path(kind, _sha256(aterm), parse_name(drv.name + DRV_SUFFIX), store_dir)


def kind_of(drv: Derivation) -> OutputKind:
    """The kind of all outputs of `drv`; raises PeerError where they are mixed or malformed."""
    kinds = {_kind(output) for output in drv.outputs.values()}
    if len(kinds) == 1 and (kind := kinds.pop()) is not None:
        return kind
    raise PeerError(f"derivation {drv.name!r} has outputs of mixed kinds, or of none Nix knows")


def _kind(output: Output) -> OutputKind | None:
    match (output.path is not None, output.hash_algo != "", output.hash):
        case (True, False, ""):
            return OutputKind.INPUT_ADDRESSED
        case (True, True, digest) if digest not in ("", "impure"):
            return OutputKind.FIXED
        case (False, True, ""):
            return OutputKind.FLOATING
        case (False, False, ""):
            return OutputKind.DEFERRED
        case (False, True, "impure"):
            return OutputKind.IMPURE
    return None


def fixed_output_hash(drv: Derivation) -> tuple[Hash, bool]:
    """What the one output of a fixed-output `drv` must hash to, and whether as a NAR.

    Raises PeerError where it has other outputs or the hash is not in Nix's own spelling.
    """
    if [*drv.outputs] != ["out"]:
        raise PeerError(
            f"derivation {drv.name!r} is fixed-output, so its one output must be 'out', "
            f"not {', '.join(drv.outputs)}"
        )
    output = drv.outputs["out"]
    recursive = output.hash_algo.startswith(_RECURSIVE)
    algorithm = output.hash_algo.removeprefix(_RECURSIVE)
    if algorithm not in DIGEST_BYTES:
        raise PeerError(
            f"derivation {drv.name!r} fixes its output by {output.hash_algo!r}, which Grange does "
            f"not know; it knows {', '.join(DIGEST_BYTES)}, each also behind {_RECURSIVE!r}"
        )
    if len(output.hash) == 2 * DIGEST_BYTES[algorithm]:
        content_hash = Hash.parse(output.hash, algorithm)
        if content_hash.base16() == output.hash:
            return content_hash, recursive
    raise PeerError(
        f"derivation {drv.name!r} fixes its output to {output.hash[:200]!r}, "
        f"which is not {algorithm} in lower-case base 16"
    )


# Checking


def check(
    drv: Derivation,
    drv_path: StorePath,
    store_dir: StoreDir,
    modulo: MutableMapping[StorePath, Modulo],
) -> Modulo:
    """Raise PeerError unless `drv_path` and all output paths follow from what `drv` says.

    `modulo` holds every input derivation, checked before, and gains this one. The paths in the
    environment must agree too: they are what the builder writes to. Only with structured
    attributes may they be missing.
    """
    if drv.text is None:
        drv = parse(unparse(drv, store_dir), drv.name, store_dir)
    assert drv.text is not None
    kind = kind_of(drv)
    if kind not in (OutputKind.INPUT_ADDRESSED, OutputKind.FIXED):
        raise PeerError(f"derivation {drv_path} is {kind}; Grange does not build this kind")
    _agree(drv_path, "path", drv_path, derivation_path(drv, store_dir))
    _check_env(drv, drv_path, store_dir)
    inputs = _inputs_modulo(drv, drv_path, modulo)
    if kind is OutputKind.FIXED:
        digest = _check_fixed(drv, drv_path, store_dir)
    else:
        digest = _check_input_addressed(drv, drv.text, drv_path, inputs, store_dir)
    known = modulo[drv_path] = Modulo(digest, tuple(drv.outputs))
    return known


def _agree(drv_path: StorePath, field: str, found: str, expected: str) -> None:
    if found != expected:
        raise PeerError(
            f"derivation {drv_path}: its {field} is {found[:300]!r}, but from what it says "
            f"follows {expected!r}; it was altered, or not written by Nix or Guix"
        )


def _check_env(drv: Derivation, drv_path: StorePath, store_dir: StoreDir) -> None:
    for name, output in drv.outputs.items():
        assert output.path is not None
        found = drv.env.get(name)
        if found is None and _STRUCTURED in drv.env:
            continue
        variable = f"environment variable {name!r}"
        _agree(drv_path, variable, found or "", store_dir.show(output.path))


def _inputs_modulo(
    drv: Derivation, drv_path: StorePath, modulo: Mapping[StorePath, Modulo]
) -> bytes:
    """The section of input derivations with digests for paths; equal digests are one input."""
    used: dict[str, tuple[str, ...]] = {}
    for path, names in drv.input_drvs.items():
        known = modulo.get(path)
        if known is None:
            raise PeerError(
                f"derivation {drv_path}: its input {path} is unknown; send it before this one"
            )
        for name in names:
            if name not in known.outputs:
                raise PeerError(f"derivation {drv_path}: its input {path} has no output {name!r}")
        merged = used.get(known.digest)
        used[known.digest] = names if merged is None else tuple(sorted({*merged, *names}))
    inputs = [f'("{digest}",["{_COMMA.join(names)}"])' for digest, names in sorted(used.items())]
    return ",".join(inputs).encode()


def _check_fixed(drv: Derivation, drv_path: StorePath, store_dir: StoreDir) -> str:
    """Check the output of a fixed-output derivation; its digest modulo fixed outputs."""
    content_hash, recursive = fixed_output_hash(drv)
    output = drv.outputs["out"]
    assert output.path is not None
    expected = fixed_output_path(drv.name, content_hash, store_dir, recursive=recursive)
    _agree(drv_path, "output 'out'", output.path, expected)
    path = store_dir.show(output.path)
    return _sha256(f"fixed:out:{output.hash_algo}:{output.hash}:{path}".encode())


def _check_input_addressed(
    drv: Derivation, text: DrvText, drv_path: StorePath, inputs: bytes, store_dir: StoreDir
) -> str:
    """Check the outputs of an input-addressed derivation; its digest modulo fixed outputs.

    Works on slices of the text as it was read: printing it again would cost more than hashing.
    """
    aterm, outputs_end, inputs_end, env_start = text
    masked_outputs = ",".join([f'("{name}","","","")' for name in drv.outputs])
    masked_env = aterm[env_start:]
    for name, output in drv.outputs.items():
        if name in drv.env:
            assert output.path is not None
            # A quote inside a value is escaped, so this is found as a variable or not at all.
            variable = f'("{name}","{store_dir.show(output.path)}")'
            masked_env = masked_env.replace(variable.encode(), f'("{name}","")'.encode(), 1)
    behind = aterm[inputs_end:env_start]
    head = f"Derive([{masked_outputs}],[".encode()
    masked = _sha256(b"".join([head, inputs, behind, masked_env]))
    for name, output in drv.outputs.items():
        assert output.path is not None
        path_name = parse_name(output_name(drv.name, name))
        expected = make_path(f"output:{name}", masked, path_name, store_dir)
        _agree(drv_path, f"output {name!r}", output.path, expected)
    return _sha256(b"".join([aterm[: outputs_end + 3], inputs, aterm[inputs_end:]]))
