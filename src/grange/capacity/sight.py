"""An observation, by what it is looked up by."""

from collections.abc import Mapping
from dataclasses import dataclass

from grange.capacity.facts import Instance, InstanceId, Observation, Presence, Server, SlotId


@dataclass(frozen=True, slots=True)
class Look:
    """None: not known this time."""

    listed: Mapping[InstanceId, Instance] | None
    servers: Mapping[SlotId, Server] | None
    presences: Mapping[SlotId, Presence] | None
    addresses: Mapping[InstanceId, str]
    builders: Mapping[InstanceId, int]

    @classmethod
    def of(cls, seen: Observation) -> "Look":
        listed, servers, presences = seen.instances, seen.servers, seen.presences
        return cls(
            None if listed is None else {each.id: each for each in listed},
            None if servers is None else {each.slot: each for each in servers},
            None if presences is None else {each.slot: each for each in presences},
            dict(seen.addresses),
            dict(seen.builders),
        )
