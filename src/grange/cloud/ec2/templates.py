"""Launch templates, kept as the pools are configured now."""

import logging
from typing import Final

from grange.capacity.facts import Market
from grange.cloud.ec2 import template
from grange.cloud.ec2.calls import Calls, Lane, RefusedError
from grange.cloud.ec2.settings import Ec2Pool
from grange.ports import Clock

KEPT_S: Final = 86_400.0  # one that is not of today's settings may yet be asked for by its name

_log = logging.getLogger(__name__)


class Templates:
    def __init__(self, farm: str, calls: Calls, clock: Clock) -> None:
        self._farm = farm
        self._calls = calls
        self._clock = clock
        self._known: set[str] = set()

    async def ensure(self, pool: Ec2Pool, market: Market) -> None:
        """There is one that says what the pool says. Raises RefusedError."""
        name = template.template_name(self._farm, pool, market)
        if name in self._known:
            return
        params = template.template_params(self._farm, pool, market)
        try:
            await self._calls.ask("ec2", "create_launch_template", lane=Lane.LAUNCH, **params)
        except RefusedError as error:
            if error.refused.code != "InvalidLaunchTemplateName.AlreadyExistsException":
                raise
        self._known.add(name)
        await self._sweep(pool)

    def forget(self, pool: Ec2Pool, market: Market) -> None:
        """Somebody deleted it: make it again when it is next wanted."""
        self._known.discard(template.template_name(self._farm, pool, market))

    async def _sweep(self, pool: Ec2Pool) -> None:
        """Delete what says how the pool was once. A failure is of no consequence."""
        wanted = {template.template_name(self._farm, pool, market) for market in Market}
        try:
            found = await self._calls.pages(
                "ec2",
                "describe_launch_templates",
                "LaunchTemplates",
                pages_max=5,
                Filters=[
                    {"Name": f"tag:{template.FARM}", "Values": [self._farm]},
                    {"Name": f"tag:{template.POOL}", "Values": [pool.pool.name]},
                ],
            )
            for each in found:
                name = each["LaunchTemplateName"]
                age_s = self._clock.wall_s() - each["CreateTime"].timestamp()
                if name not in wanted and age_s > KEPT_S:
                    await self._calls.ask("ec2", "delete_launch_template", LaunchTemplateName=name)
                    self._known.discard(name)
        except RefusedError as error:
            _log.info("old launch templates of pool %s stay: %s", pool.pool.name, error)
