"""What EC2 tells of instances and fleets, as facts. Pure."""

from collections.abc import Mapping
from typing import Any, Final

from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    LaunchFailure,
    LaunchOrder,
    Market,
    Offering,
    PoolName,
    SlotId,
)
from grange.cloud.ec2 import failures
from grange.cloud.ec2.settings import Ec2Pool
from grange.cloud.ec2.template import CONFIG, GENERATION, POOL, SLOT, TOKEN
from grange.ports import LaunchAnswer

_STATES: Final = {
    "pending": InstanceState.PENDING,
    "running": InstanceState.RUNNING,
    "terminated": InstanceState.TERMINATED,
}
"""All others are of one that is on its way out, or was stopped by somebody and must be ended."""


def instance(said: Mapping[str, Any], pools: Mapping[PoolName, Ec2Pool]) -> Instance:
    """EC2's Instance."""
    tags = {each["Key"]: each["Value"] for each in said.get("Tags", ())}
    type_ = said["InstanceType"]
    zone = said.get("Placement", {}).get("AvailabilityZone", "")
    pool = pools.get(PoolName(tags.get(POOL, "")))
    offering = _offering(pool.pool.offerings if pool else (), type_, zone)
    generation = tags.get(GENERATION, "")
    reason = said.get("StateReason", {})
    return Instance(
        InstanceId(said["InstanceId"]),
        _STATES.get(said["State"]["Name"], InstanceState.STOPPING),
        SlotId(tags[SLOT]) if SLOT in tags else None,
        int(generation) if generation.isdecimal() else None,
        tags.get(TOKEN, ""),
        Market.SPOT if said.get("InstanceLifecycle") == "spot" else Market.ON_DEMAND,
        offering,
        said["LaunchTime"].timestamp(),
        said.get("PrivateIpAddress") or "",
        tags.get(CONFIG, ""),
        reason.get("Code", ""),
    )


def instances_of(reservations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each once, however many pages it was on."""
    found = {each["InstanceId"]: each for group in reservations for each in group["Instances"]}
    return list(found.values())


def fleet_answer(
    said: Mapping[str, Any], order: LaunchOrder, pool: Ec2Pool, wall_s: float
) -> LaunchAnswer:
    """What an instant fleet of one came to: an instance is a success, whatever errors are beside
    it; without one it is certain that there is none, for the token is spent."""
    if not said.get("FleetId"):
        return LaunchAnswer(LaunchFailure.UNKNOWN, "what came is no answer of EC2's")
    errors = said.get("Errors") or ()
    text = _text(errors)
    failed = tuple(
        dict.fromkeys(
            found
            for each in errors
            if failures.meaning_of_offering(each.get("ErrorCode", ""))
            in (LaunchFailure.CAPACITY, LaunchFailure.PRICE)
            and (found := _of_override(each, order, pool)) is not None
        )
    )
    launched = next((each for each in said.get("Instances") or () if each["InstanceIds"]), None)
    if launched is not None:
        got = _of_override(launched, order, pool) or order.offerings[0]
        made = Instance(
            InstanceId(launched["InstanceIds"][0]),
            InstanceState.PENDING,
            order.slot,
            order.generation,
            order.token,
            Market.SPOT if launched.get("Lifecycle") == "spot" else Market.ON_DEMAND,
            got,
            wall_s,
            config_hash=order.pool.config_hash,
        )
        return LaunchAnswer(made, text, tuple(each for each in failed if each != got))
    meaning = failures.worst(
        [failures.meaning_of_offering(each.get("ErrorCode", "")) for each in errors]
    )
    return LaunchAnswer(meaning, text or "EC2 launched nothing and said no reason", failed)


def dead(order: LaunchOrder, wall_s: float) -> Instance:
    """The instance of a launch of which nothing is known but that it has ended."""
    return Instance(
        InstanceId("i-forgotten"),
        InstanceState.TERMINATED,
        order.slot,
        order.generation,
        order.token,
        order.market,
        order.offerings[0],
        wall_s,
        reason=failures.TOKEN_OF_THE_DEAD,
    )


def _offering(offerings: tuple[Offering, ...], type_: str, zone: str) -> Offering:
    """The one that is known by type and zone, with its prices."""
    known = (each for each in offerings if (each.type, each.zone) == (type_, zone))
    return next(known, Offering(type_, zone))


def _of_override(said: Mapping[str, Any], order: LaunchOrder, pool: Ec2Pool) -> Offering | None:
    overrides = said.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
    type_ = said.get("InstanceType") or overrides.get("InstanceType")
    zone = said.get("AvailabilityZone") or overrides.get("AvailabilityZone")
    subnet = said.get("SubnetId") or overrides.get("SubnetId")
    for each in order.offerings:
        if each.type == type_ and (each.zone == zone or pool.subnet(each.zone) == subnet):
            return each
    return None


def _text(errors: Any) -> str:
    """Each thing that is said once."""
    said = dict.fromkeys(
        f"{each.get('ErrorCode', '')}: {each.get('ErrorMessage', '')}" for each in errors
    )
    return "; ".join(said)[: failures.TEXT_MAX]
