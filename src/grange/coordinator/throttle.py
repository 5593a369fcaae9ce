"""How often one address may fail to say who it is.

Secrets have 256 bits, and nobody guesses them: this keeps the database and the log from a caller
that tries for ever, such as a forgotten script.
"""

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Final

from grange.errors import ThrottledError
from grange.ports import Clock

FAILURES_MAX: Final = 20  # at once: many agents may share an address
FORGIVEN_S: Final = 1.0  # for one of them: an agent that will never be let in asks every 10 s
ADDRESSES_MAX: Final = 10_000  # the one that failed longest ago is forgotten


class Throttle:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # When all failures of an address will be forgiven, monotonic; latest failure last.
        self._forgiven: OrderedDict[str, float] = OrderedDict()

    def check(self, address: str) -> None:
        """Raises ThrottledError where it has failed too often of late."""
        left_s = self._forgiven.get(_network(address), 0.0) - self._clock.monotonic_s()
        if left_s > FAILURES_MAX * FORGIVEN_S:
            wait_s = left_s - FAILURES_MAX * FORGIVEN_S
            raise ThrottledError(
                f"too many bad credentials came from this address; try again in {wait_s:.0f} s"
            )

    def count(self, address: str) -> None:
        """It has failed."""
        network, now = _network(address), self._clock.monotonic_s()
        self._forgiven[network] = max(now, self._forgiven.get(network, 0.0)) + FORGIVEN_S
        self._forgiven.move_to_end(network)
        if len(self._forgiven) > ADDRESSES_MAX:
            self._forgiven.popitem(last=False)


def _network(address: str) -> str:
    """One customer's: of IPv6 everyone has 2⁶⁴ addresses."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return parsed.exploded[:19]
