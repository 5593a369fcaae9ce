"""A derivation as a daemon builds it: resolved, its inputs plain store paths.

What is left of a derivation once its inputs are realised; a daemon builds it without a ``.drv``.
Source: Nix's `BasicDerivation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from grange.store.path import StorePath


@dataclass(frozen=True, slots=True)
class BasicOutput:
    """One output. For a fixed output, the hash its content must have."""

    path: StorePath
    hash_algo: str = ""  # "sha256", or "r:sha256" for the hash of a NAR; empty unless fixed
    hash: str = ""  # base 16; empty unless fixed


@dataclass(frozen=True, slots=True)
class BasicDerivation:
    """What to run, and on which inputs. Text is UTF-8 with surrogates for stray bytes."""

    outputs: Mapping[str, BasicOutput]  # by output name
    input_srcs: tuple[StorePath, ...]  # direct inputs; their runtime closures are implied
    system: str
    builder: str
    args: tuple[str, ...]
    env: Mapping[str, str]
