"""Where each slot's alias listens: one port for a pool, and one for each of its slots after it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from grange.capacity.facts import Pool, PoolName, SlotId
from grange.errors import OperatorError

POOL_PORTS: Final = 1000  # so that a pool may grow without moving the next one's
PORT_MAX: Final = 65_535


@dataclass(frozen=True, slots=True)
class Wiring:
    """Pools in the order of their file, and where clients reach them."""

    pools: tuple[Pool, ...]
    host: str = "127.0.0.1"  # of HAProxy, as clients see it; aliases listen there alone
    port_first: int = 22_000
    user: str = "nix"  # whom clients are on instances; trusted by Nix there

    def port(self, name: PoolName) -> int:
        """Of all its slots. Raises OperatorError."""
        number = [pool.name for pool in self.pools].index(name)
        port = self.port_first + number * POOL_PORTS
        if port + self.pools[number].max > PORT_MAX or self.pools[number].max >= POOL_PORTS:
            raise OperatorError(
                f"pool {name!r} has no ports for {self.pools[number].max} slots: a pool may have"
                f" {POOL_PORTS - 1}, and the last port is {PORT_MAX}; set max of the pool, or"
                " port_first in [haproxy], to less"
            )
        return port


def slots(pool: Pool) -> Iterator[tuple[int, SlotId]]:
    """Numbers, from 1, and names."""
    return ((number, SlotId(f"{pool.name}-{number}")) for number in range(1, pool.max + 1))
