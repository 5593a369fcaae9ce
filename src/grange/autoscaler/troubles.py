"""What fails just now: told once in the log, and shown until it is over."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from grange.ports import Clock

log = logging.getLogger(__name__)

ACT_S: Final = 120.0  # an act that failed and was not wanted since is no trouble any more
SHOWN_MAX: Final = 200
TEXT_MAX: Final = 2_000  # characters


@dataclass(slots=True)
class _Trouble:
    text: str
    since_wall_s: float
    until: float | None  # it is over then by itself


class Troubles:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, _Trouble] = {}
        self._settings: tuple[str, ...] = ()

    def began(self, what: str, error: BaseException | str, *, is_act: bool = False) -> None:
        """`what` fails, such as "the cloud cannot be asked"; as often as it does."""
        text = (str(error) or repr(error))[:TEXT_MAX]
        until = self._clock.monotonic_s() + ACT_S if is_act else None
        known = self._known.get(what)
        if known is None:
            log.warning("%s: %s", what, text)
            self._drop_old()
            self._known[what] = _Trouble(text, self._clock.wall_s(), until)
        else:
            known.text, known.until = text, until

    def ended(self, what: str) -> None:
        if self._known.pop(what, None) is not None:
            log.info("%s: it works again", what)

    def found(self, settings: Sequence[str]) -> None:
        """What keeps the settings from working, as far as is known."""
        for text in settings:
            if text not in self._settings:
                log.warning("%s", text)
        self._settings = tuple(settings)

    def words(self) -> list[str]:
        """All, for people."""
        self._drop_old()
        said = [
            f"{what} since {_shown(each.since_wall_s)}: {each.text}"
            for what, each in self._known.items()
        ]
        texts = [each.text for each in self._known.values()]
        return [*said[:SHOWN_MAX], *(each for each in self._settings if each not in texts)]

    def _drop_old(self) -> None:
        now = self._clock.monotonic_s()
        for what in [w for w, each in self._known.items() if each.until and each.until <= now]:
            del self._known[what]


def _shown(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
