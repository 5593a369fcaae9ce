"""What offerings cost and have where the settings do not say it: asked of EC2, kept a while."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from grange.capacity.facts import Offering
from grange.cloud.ec2.calls import Calls, RefusedError
from grange.ports import Clock

KEPT_S: Final = 3600.0
TYPES_AT_ONCE: Final = 100  # EC2's limit
PAGES_MAX: Final = 10
SYSTEM: Final = "Linux/UNIX"

_log = logging.getLogger(__name__)


class Prices:
    def __init__(self, calls: Calls, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock
        self._asked_at: dict[str, float] = {}  # by type
        self._spot: dict[tuple[str, str], float] = {}  # by type and zone
        self._vcpus: dict[str, int] = {}

    async def appraise(self, offerings: Sequence[Offering]) -> tuple[Offering, ...]:
        now = self._clock.monotonic_s()
        wanted = {
            each.type
            for each in offerings
            if (each.price_spot is None or not each.vcpus)
            and now - self._asked_at.get(each.type, -KEPT_S) >= KEPT_S
        }
        types = sorted(wanted)
        for start in range(0, len(types), TYPES_AT_ONCE):
            await self._ask(types[start : start + TYPES_AT_ONCE])
        self._asked_at.update(dict.fromkeys(types, now))
        return tuple(self._appraised(each) for each in offerings)

    def _appraised(self, offering: Offering) -> Offering:
        price = offering.price_spot
        if price is None:
            price = self._spot.get((offering.type, offering.zone))
        vcpus = offering.vcpus or self._vcpus.get(offering.type, 0)
        return replace(offering, price_spot=price, vcpus=vcpus)

    async def _ask(self, types: list[str]) -> None:
        """What cannot be had, for want of a right or of an answer, stays unknown."""
        history = await self._pages(
            "describe_spot_price_history",
            "SpotPriceHistory",
            InstanceTypes=types,
            ProductDescriptions=[SYSTEM],
            StartTime=datetime.fromtimestamp(self._clock.wall_s(), UTC),  # today's alone
            MaxResults=1000,
        )
        for each in history:
            key = each["InstanceType"], each.get("AvailabilityZone", "")
            self._spot[key] = float(each["SpotPrice"])
        for each in await self._pages(
            "describe_instance_types",
            "InstanceTypes",
            Filters=[{"Name": "instance-type", "Values": types}],
        ):
            self._vcpus[each["InstanceType"]] = int(each["VCpuInfo"]["DefaultVCpus"])

    async def _pages(self, operation: str, of: str, **params: Any) -> list[dict[str, Any]]:
        try:
            return await self._calls.pages("ec2", operation, of, pages_max=PAGES_MAX, **params)
        except RefusedError as error:
            _log.info("prices or vCPUs of some offerings are not known: %s", error)
            return []
