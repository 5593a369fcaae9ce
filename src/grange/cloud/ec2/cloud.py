"""Amazon EC2 as a cloud: fleets of one, spot by default, found again by their tags alone."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final

from boto3 import Session

from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    LaunchFailure,
    LaunchOrder,
    Notice,
    Offering,
    PoolName,
)
from grange.cloud.ec2 import failures, listing, rights, template
from grange.cloud.ec2.calls import Calls, Lane, RefusedError
from grange.cloud.ec2.notices import Notices
from grange.cloud.ec2.prices import Prices
from grange.cloud.ec2.settings import Ec2Pool, Ec2Settings
from grange.cloud.ec2.templates import Templates
from grange.cloud.ec2.troubles import troubles
from grange.errors import GrangeError, OutsideError
from grange.ports import Clock, LaunchAnswer

PAGES_MAX: Final = 100  # of a thousand instances each
PAGE: Final = 1000
LISTED_S: Final = 300.0  # later than this EC2 lists nothing of what it launched
FINE_S: Final = 3600.0
SPENT_MAX: Final = 1000
CONSOLE_CHARS: Final = 64 << 10  # EC2 keeps as many bytes


class Ec2Cloud:
    """`grange.ports.Cloud`. Belongs to one event loop."""

    def __init__(
        self,
        settings: Ec2Settings,
        pools: Mapping[PoolName, Ec2Pool],
        user_data: Callable[[LaunchOrder], Awaitable[str]],
        *,
        clock: Clock,
        session: Session | None = None,
    ) -> None:
        """`user_data` is the same for the same token, however often it is asked for. `session` is
        in place of one of the settings' profile. Raises OperatorError where there is no region or
        profile to call with."""
        self._settings = settings
        self._pools = dict(pools)
        self._user_data = user_data
        self._clock = clock
        self._calls = Calls(settings, session)
        self._templates = Templates(settings.farm, self._calls, clock)
        self._notices = Notices(settings, self._calls, clock)
        self._prices = Prices(self._calls, clock)
        self._fine: tuple[tuple[Ec2Pool, ...], float] | None = None  # pools, and when
        self._spent_at: dict[str, float] = {}  # tokens refused as used, of which nothing is listed

    def change_pools(self, pools: Mapping[PoolName, Ec2Pool]) -> None:
        self._pools = dict(pools)

    async def launch(self, order: LaunchOrder) -> LaunchAnswer:
        pool = self._pools.get(order.pool.name)
        if pool is None:
            return LaunchAnswer(LaunchFailure.CONFIG, f"pool {order.pool.name} is not of EC2")
        try:
            user_data = await self._user_data(order)
            await self._templates.ensure(pool, order.market)
            if len(order.offerings) == 1:
                return await self._run(order, pool, user_data)
            return await self._fleet(order, pool, user_data)
        except RefusedError as error:
            return await self._refused(order, pool, error)
        except OutsideError as error:
            return LaunchAnswer(LaunchFailure.THROTTLED, str(error))
        except GrangeError as error:
            return LaunchAnswer(LaunchFailure.CONFIG, str(error))

    async def instances(self) -> tuple[Instance, ...]:
        return await self._listed(template.FARM, self._settings.farm, "list its instances")

    async def terminate(self, instance: InstanceId) -> None:
        try:
            await self._calls.ask("ec2", "terminate_instances", InstanceIds=[instance])
        except RefusedError as error:
            if error.refused.code not in failures.NO_SUCH_INSTANCE:
                raise await rights.raised(self._calls, f"end {instance}", error) from None

    async def console(self, instance: InstanceId) -> str:
        for is_latest in (True, False):  # types that are not of Nitro know only how they booted
            try:
                said = await self._calls.ask(
                    "ec2", "get_console_output", InstanceId=instance, Latest=is_latest
                )
            except RefusedError as error:
                if error.refused.code in failures.NO_SUCH_INSTANCE:
                    return ""
                if error.refused.code == "UnsupportedOperation" and is_latest:
                    continue
                what = f"read what {instance} printed"
                raise await rights.raised(self._calls, what, error) from None
            return str(said.get("Output") or "")[-CONSOLE_CHARS:]
        return ""

    def notices(self) -> AsyncIterator[Notice]:
        return self._notices.all()

    def inject(self, notice: Notice) -> None:
        """One that came another way: from the instance itself. May be called from this loop only;
        whoever follows `notices` gets it."""
        self._notices.inject(notice)

    async def appraise(self, offerings: Sequence[Offering]) -> tuple[Offering, ...]:
        """The same, with today's spot price and the number of vCPUs where they are not known and
        EC2 tells them. Never raises."""
        return await self._prices.appraise(offerings)

    async def troubles(self) -> tuple[str, ...]:
        """Settings in which nothing is wrong are looked at again an hour later: dry runs of
        launches count against the account's limits, and show in its records."""
        now, pools = self._clock.monotonic_s(), tuple(self._pools.values())
        said: tuple[str, ...] = ()
        if self._fine is None or self._fine[0] != pools or now - self._fine[1] >= FINE_S:
            said = await troubles(self._settings, pools, self._calls)
            self._fine = None if said else (pools, now)
        return (*said, *self._notices.troubles())

    async def close(self) -> None:
        await self._calls.close()

    async def _run(self, order: LaunchOrder, pool: Ec2Pool, user_data: str) -> LaunchAnswer:
        params = template.run_params(self._settings.farm, pool, order, user_data)
        said = await self._calls.ask("ec2", "run_instances", lane=Lane.LAUNCH, **params)
        made = said.get("Instances")
        if not made:
            return LaunchAnswer(LaunchFailure.UNKNOWN, "what came is no answer of EC2's")
        return LaunchAnswer(listing.instance(made[0], self._pools))

    async def _fleet(self, order: LaunchOrder, pool: Ec2Pool, user_data: str) -> LaunchAnswer:
        params = template.fleet_params(self._settings.farm, pool, order, user_data)
        said = await self._calls.ask("ec2", "create_fleet", lane=Lane.LAUNCH, **params)
        answer = listing.fleet_answer(said, order, pool, self._clock.wall_s())
        for each in said.get("Errors") or ():
            if answer.answer is LaunchFailure.CONFIG and each.get("ErrorCode") in failures.DENIED:
                why = await rights.missing(self._calls, "ec2:CreateFleet", each["ErrorMessage"])
                return LaunchAnswer(answer.answer, why, answer.failed)
        return answer

    async def _refused(
        self, order: LaunchOrder, pool: Ec2Pool, error: RefusedError
    ) -> LaunchAnswer:
        if error.refused.code in failures.USED_TOKENS:
            return await self._spent(order, error)
        if error.refused.code in failures.TEMPLATE_GONE:
            self._templates.forget(pool, order.market)
        explained = await rights.named(self._calls, error)
        return LaunchAnswer(failures.meaning(error.refused), explained.refused.text)

    async def _spent(self, order: LaunchOrder, error: RefusedError) -> LaunchAnswer:
        """The token has been used: for which instance is told by its tag. Where there is none for
        long, it was for a launch that came to nothing."""
        try:
            found = await self._listed(template.TOKEN, order.token, "find a launch's instance")
        except GrangeError as unlisted:
            return LaunchAnswer(LaunchFailure.UNKNOWN, str(unlisted))
        mine = [each for each in found if each.slot == order.slot]
        if mine:
            live = [each for each in mine if each.state is not InstanceState.TERMINATED]
            return LaunchAnswer((live or mine)[0], error.refused.text)
        now = self._clock.monotonic_s()
        if order.token not in self._spent_at and len(self._spent_at) >= SPENT_MAX:
            del self._spent_at[next(iter(self._spent_at))]
        since = self._spent_at.setdefault(order.token, now)
        if error.refused.code == failures.TOKEN_OF_THE_DEAD or now - since >= LISTED_S:
            return LaunchAnswer(listing.dead(order, self._clock.wall_s()), error.refused.text)
        return LaunchAnswer(LaunchFailure.UNKNOWN, error.refused.text)

    async def _listed(self, key: str, value: str, what: str) -> tuple[Instance, ...]:
        try:
            found = await self._calls.pages(
                "ec2",
                "describe_instances",
                "Reservations",
                pages_max=PAGES_MAX,
                Filters=[{"Name": f"tag:{key}", "Values": [value]}],
                MaxResults=PAGE,
            )
        except RefusedError as error:
            raise await rights.raised(self._calls, what, error) from None
        return tuple(listing.instance(each, self._pools) for each in listing.instances_of(found))
