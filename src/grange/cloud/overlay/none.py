"""No overlay: this machine is on the instances' own network."""

from collections.abc import Sequence

from grange.capacity.facts import Instance, InstanceId


class NoOverlay:
    """`grange.ports.Overlay` of private addresses."""

    async def addresses(self, instances: Sequence[Instance]) -> tuple[tuple[InstanceId, str], ...]:
        return tuple((each.id, each.address) for each in instances if each.address)

    async def forget(self, instance: InstanceId) -> None:
        """There is no device."""

    async def troubles(self) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        """Nothing is open."""
