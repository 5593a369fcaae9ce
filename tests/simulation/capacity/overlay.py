"""An overlay network in memory: devices that come late, twice or not at all, and outlive instances.

Addresses that are given back are given out again at once.
"""

import random
from dataclasses import dataclass, field
from itertools import count

from grange.capacity.facts import Instance, InstanceId
from tests.simulation.capacity.cloud import Cloud, Machine

EPHEMERAL_S = 2400.0  # by itself it forgets a device so long after its instance
LATE_S = 20.0  # a device comes up to so long after the boot
DOUBLE_S = 90.0  # a device that registered again is there twice for up to so long


@dataclass(slots=True, eq=False)
class Device:
    address: str
    until: float | None = None  # a second one, which goes by itself


@dataclass(slots=True)
class Overlay:
    cloud: Cloud
    rng: random.Random
    doubled: float = 0.0
    devices: dict[InstanceId, list[Device]] = field(default_factory=dict)
    due: dict[InstanceId, float] = field(default_factory=dict)
    forgotten: int = 0

    def __post_init__(self) -> None:
        self.cloud.aliases = {}

    def advance(self, now: float) -> None:
        for machine in self.cloud.machines.values():
            self._join(machine, now)
            if machine.dead_at is not None and now - machine.dead_at > EPHEMERAL_S:
                self._drop(machine.instance.id)
        for id_, devices in list(self.devices.items()):
            for device in [each for each in devices if each.until is not None]:
                if device.until is not None and now >= device.until:
                    devices.remove(device)
                    self._aliases.pop(device.address, None)
            assert devices, f"{id_} lost the device that was there first"

    def _join(self, machine: Machine, now: float) -> None:
        id_ = machine.instance.id
        if not machine.is_live or machine.boots_at is None or now < machine.boots_at:
            return
        if id_ not in self.due:
            self.due[id_] = now + self.rng.uniform(0, LATE_S)
        if now >= self.due[id_] and id_ not in self.devices:
            self.devices[id_] = [Device(self._address(id_))]
            if self.rng.random() < self.doubled:
                second = Device(self._address(id_), now + self.rng.uniform(10, DOUBLE_S))
                self.devices[id_].append(second)

    def _address(self, id_: InstanceId) -> str:
        free = next(a for a in (f"100.64.0.{n}" for n in count(1)) if a not in self._aliases)
        self._aliases[free] = id_
        return free

    def addresses(self, instances: tuple[Instance, ...]) -> tuple[tuple[InstanceId, str], ...]:
        """As of those listed, the dead as well; none of one that is there twice."""
        return tuple(
            (each.id, self.devices[each.id][0].address)
            for each in instances
            if len(self.devices.get(each.id, ())) == 1
        )

    def forget(self, instance: InstanceId) -> None:
        self.forgotten += instance in self.devices
        self._drop(instance)

    def of(self, machine: Machine) -> set[str]:
        """Addresses at which it is reached."""
        return {each.address for each in self.devices.get(machine.instance.id, ())}

    def _drop(self, instance: InstanceId) -> None:
        for device in self.devices.pop(instance, ()):
            del self._aliases[device.address]

    @property
    def _aliases(self) -> dict[str, InstanceId]:
        assert self.cloud.aliases is not None
        return self.cloud.aliases
