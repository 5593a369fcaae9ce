"""Package sources evaluated with Nix, in bounded processes, for a farm that needs to know."""

from typing import Final

FEATURE: Final = "grange-eval"  # an agent that offers it evaluates too
