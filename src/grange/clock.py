"""The system's clocks."""

import time


class SystemClock:
    """Implements `grange.ports.Clock`."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()
