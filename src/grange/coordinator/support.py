"""What builds tell of themselves in nix-support, as the journal and the API have it."""

import json
from dataclasses import asdict

from grange.wire.messages import NixSupport

_NOTHING = NixSupport()


def support_json(support: NixSupport) -> str:
    """JSON with the keys of `NixSupport`; "" where the build told nothing."""
    if support == _NOTHING:
        return ""
    return json.dumps(asdict(support), separators=(",", ":"))
