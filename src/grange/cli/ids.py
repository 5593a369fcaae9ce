"""What a person types for a build, a step or a derivation, and what it means."""

import re
from typing import Final

from grange.client.api import GrangeClient
from grange.client.models import BuildView, StepView
from grange.errors import PeerError

# How far back an abbreviation or a build's .drv path is looked for; older ones want their UUID.
BUILDS_SEARCHED: Final = 1_000

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_PREFIX: Final = re.compile(r"[0-9a-f][0-9a-f-]{0,35}\Z")


def find_build(client: GrangeClient, text: str) -> BuildView:
    """The build meant by a UUID or its unique beginning, or by its ``.drv`` path (the newest)."""
    text = text.lower() if "/" not in text else text
    if _UUID.match(text):
        return client.build(text)
    if text.endswith(".drv"):
        found = [each for each in client.builds(limit=BUILDS_SEARCHED) if each.drv_path == text]
        if not found:
            raise PeerError(f"no recent build is of {text}; grange list shows builds")
        return found[0]
    if not _PREFIX.match(text):
        raise PeerError(f"{text!r} is neither a build's UUID, its beginning nor a .drv path")
    found = [each for each in client.builds(limit=BUILDS_SEARCHED) if each.id.startswith(text)]
    if not found:
        raise PeerError(f"no recent build's UUID begins with {text}; grange list shows builds")
    if len(found) > 1:
        raise PeerError(
            f"{len(found)} builds begin with {text}, such as {found[0].id} and {found[1].id}; "
            "give more of it"
        )
    return found[0]


def find_step_or_build(client: GrangeClient, text: str) -> StepView | BuildView:
    """The step meant by its number or ``.drv`` path, or else a build.

    A number is a step's; a build whose UUID begins with digits only needs more of it.
    """
    if text.isascii() and text.isdigit():
        return client.step(int(text))
    if not text.endswith(".drv"):
        return find_build(client, text)
    return client.step_of(text)
