"""From Nix expressions to ``.drv`` files, by `nix-instantiate`."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from grange.errors import OperatorError, PeerError

# It wants a root for what it makes. The farm has it soon, and garbage collection in between is
# answered by an error that says what to do.
_NOISE: Final = b"you did not specify '--add-root'"


def instantiate(
    file: str | None,
    attributes: Sequence[str],
    argstrs: Sequence[tuple[str, str]],
    store: str | None,
) -> list[str]:
    """The ``.drv`` paths of the expression, or of these attributes of it, each once.

    What Nix has to say goes to standard error while it works. PeerError where it fails,
    OperatorError where there is no Nix.
    """
    command = ["nix-instantiate", *(["--store", store] if store else []), file or "."]
    for attribute in attributes:
        command += ["-A", attribute]
    for name, value in argstrs:
        command += ["--argstr", name, value]
    # Evaluation makes derivations; nothing may be fetched for it from elsewhere.
    config = os.environ.get("NIX_CONFIG", "") + "\nsubstituters =\n"
    environment = os.environ | {"NIX_CONFIG": config}
    with TemporaryFile() as out:
        try:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, env=environment)
        except FileNotFoundError:
            raise OperatorError(
                "there is no nix-instantiate here to read Nix expressions with; install Nix, "
                "or hand in .drv paths"
            ) from None
        with process:
            assert process.stderr is not None
            for line in process.stderr:
                if _NOISE not in line:
                    sys.stderr.buffer.write(line)
                    sys.stderr.buffer.flush()
        if process.returncode:
            raise PeerError(f"Nix could not evaluate {file or Path.cwd()}; see its message above")
        out.seek(0)
        text = out.read().decode()
    # "!doc" behind a path asks for one output; the farm always builds all.
    paths = list(dict.fromkeys(line.partition("!")[0] for line in text.splitlines()))
    if not paths:
        raise PeerError(f"{file or Path.cwd()} evaluates to no derivation; choose one with -A")
    return paths
