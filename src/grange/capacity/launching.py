"""Launches: what may be, tokens, orders, answers, and how long not to ask again.

A slot's generation advances only when what became of its launch is certain. Until then it is asked
for with the same token and the same parameters, so that there is one instance at most.
"""

from hashlib import sha256
from typing import Final, assert_never

from grange.capacity import budget, draining
from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.facts import (
    Instance,
    InstanceState,
    LaunchFailure,
    LaunchOrder,
    Market,
    Offering,
    SlotState,
)
from grange.capacity.memory import Memory
from grange.capacity.state import IN_FLIGHT, BackOff, PoolState, Seat

SHORT_S: Final = 180.0  # what has no capacity has none for some minutes
SHORT_MAX_S: Final = 1800.0
QUOTA_S: Final = 300.0  # somebody must ask for more, or something must end
QUOTA_MAX_S: Final = 3600.0
BREAKER_S: Final = 600.0  # an operator's mistake is tried again now and then
RETRY_S: Final = 2.0
RETRY_MAX_S: Final = 60.0
TRIES_MAX: Final = 10  # of a token: one that is never answered keeps its slot from others


def token_of(farm: str, seat: Seat, zone: str) -> str:
    """64 characters, as many as EC2 takes."""
    said = f"{farm}\n{seat.slot.id}\n{seat.slot.generation}\n{zone}"
    return sha256(said.encode()).hexdigest()


def market_of(memory: Memory, pool: PoolState, is_on_demand: bool) -> Market | None:
    """Where to buy just now; None where nothing is to be had."""
    wanted = [pool.pool.market, pool.pool.fallback]
    for market in [Market.ON_DEMAND] if is_on_demand else wanted:
        if market is not None and market in wanted and offered(memory, pool, market):
            return market
    return None


def offered(memory: Memory, pool: PoolState, market: Market) -> tuple[Offering, ...]:
    """What may be asked for, cheapest first, of one zone where tokens are zonal."""
    if (quota := pool.quotas.get(market)) and quota.until > memory.now:
        return ()
    free = [
        each
        for each in pool.pool.offerings
        if (off := pool.back_offs.get(_sold(each, market))) is None or off.until <= memory.now
    ]
    free.sort(key=lambda each: each.price(market))
    if pool.pool.is_zonal:
        free = [each for each in free if each.zone == free[0].zone]
    return tuple(free)


def closed(memory: Memory, pool: PoolState) -> str:
    """Why nothing at all is launched for this pool; "" where something may be."""
    if pool.is_gone:
        return "the pool is no longer configured"
    if memory.pause is not None:
        return f"all pools are paused: {memory.pause.reason}"
    if pool.pause is not None:
        return f"the pool is paused: {pool.pause}"
    if pool.is_broken(memory.now):
        return f"the cloud refuses its configuration: {pool.breaker}"
    if memory.now < pool.hold_until:
        wait_s = pool.hold_until - memory.now
        return f"{pool.failures} instances in a row never became ready; next try in {wait_s:.0f} s"
    if not pool.is_seen:
        return "its instances of before were not looked for yet"
    if memory.now < memory.launch_from:
        wait_s = memory.launch_from - memory.now
        return f"instances of before this start may not be listed yet; so for {wait_s:.0f} s more"
    if budget.is_exhausted(memory, pool):
        return f"monthly_budget of ${pool.pool.monthly_budget:.2f} is used up"
    if market_of(memory, pool, is_on_demand=False) is None:
        return "no offering has capacity or quota just now"
    return ""


def launch(memory: Memory, pool: PoolState, seat: Seat, market: Market) -> None:
    """Make the intent durable, then call."""
    offerings = offered(memory, pool, market)
    zone = offerings[0].zone if pool.pool.is_zonal else ""
    seat.is_blank = seat.is_bound = seat.is_serving = False
    seat.tries, seat.asked_at, seat.missing = 0, memory.now, 0
    seat.not_before = memory.now
    seat.launched_at = seat.idle_since = seat.down_since = seat.drain_until = None
    memory.move(
        seat,
        SlotState.LAUNCHING,
        f"{market}, {', '.join(each.type for each in offerings)} in {zone or 'any zone'}",
        market=market,
        token=token_of(memory.rules.farm, seat, zone),
        offerings=offerings,
        offering=None,
        instance=None,
        address="",
        config_hash=pool.pool.config_hash,
        uses=0,
        drain_cause=None,
    )
    memory.wake(memory.now + pool.pool.timeouts.launch_s)
    memory.act(do.Launch(_order(pool, seat)))


def _order(pool: PoolState, seat: Seat) -> LaunchOrder:
    slot = seat.slot
    assert slot.market is not None
    return LaunchOrder(slot.id, slot.generation, slot.token, pool.pool, slot.market, slot.offerings)


def answered(memory: Memory, event: on.LaunchAnswered) -> None:
    seat = memory.seats.get(event.slot)
    if seat is None or seat.slot.state not in IN_FLIGHT or seat.slot.token != event.token:
        return  # what it launched, if anything, is an orphan
    pool = memory.pools[seat.slot.pool]
    market = seat.slot.market
    assert market is not None
    for each in event.failed:
        _back_off(memory, pool.back_offs.setdefault(_sold(each, market), BackOff()), SHORT_S)
    match event.answer:
        case Instance() as instance:
            _launched(memory, pool, seat, instance)
        case failure:
            _refused(memory, pool, seat, failure, event)


def _launched(memory: Memory, pool: PoolState, seat: Seat, instance: Instance) -> None:
    if instance.state in (InstanceState.STOPPING, InstanceState.TERMINATED):
        why = "the token was of an instance that is dead already"
        memory.amend(seat, generation=seat.slot.generation + 1)
        draining.fail_start(memory, seat, why)
        return
    settle_in(memory, pool, seat, instance, f"launched as {instance.id}")


def settle_in(memory: Memory, pool: PoolState, seat: Seat, instance: Instance, reason: str) -> None:
    """The launch's instance is known: be it from the answer, be it from its tags."""
    seat.missing, seat.launched_at, seat.doomed_at = 0, None, None
    pool.back_offs.pop(_sold(instance.offering, instance.market), None)
    pool.quotas.pop(instance.market, None)
    pool.breaker = ""
    memory.move(
        seat,
        SlotState.BOOTING,
        reason,
        generation=seat.slot.generation + 1,
        instance=instance.id,
        offering=instance.offering,
        market=instance.market,
        config_hash=instance.config_hash or seat.slot.config_hash,
        token=instance.token,
    )
    budget.begin(memory, pool, seat)
    memory.wake(memory.now + pool.pool.timeouts.boot_s)


def _refused(
    memory: Memory, pool: PoolState, seat: Seat, failure: LaunchFailure, event: on.LaunchAnswered
) -> None:
    market = seat.slot.market
    assert market is not None
    match failure:
        case LaunchFailure.CAPACITY | LaunchFailure.PRICE:
            for each in () if event.failed else seat.slot.offerings:
                off = pool.back_offs.setdefault(_sold(each, market), BackOff())
                _back_off(memory, off, SHORT_S)
            vacate(memory, seat, f"{failure}: {event.message}")
        case LaunchFailure.QUOTA:
            off = pool.quotas.setdefault(market, BackOff())
            _back_off(memory, off, QUOTA_S, QUOTA_MAX_S)
            vacate(memory, seat, f"{failure}: {event.message}")
        case LaunchFailure.CONFIG:
            pool.breaker = event.message or "the cloud refuses the pool's configuration"
            pool.breaker_until = memory.now + BREAKER_S
            memory.wake(pool.breaker_until)
            vacate(memory, seat, f"{failure}: {event.message}")
        case LaunchFailure.THROTTLED | LaunchFailure.UNKNOWN:
            doubt(memory, seat, f"{failure}: {event.message}")
        case _:
            assert_never(failure)


def vacate(memory: Memory, seat: Seat, reason: str) -> None:
    """It is certain that the launch came to nothing."""
    memory.move(seat, SlotState.EMPTY, reason, generation=seat.slot.generation + 1)


def doubt(memory: Memory, seat: Seat, reason: str) -> None:
    """It may have worked: ask again with the same token, later each time."""
    if seat.slot.state is not SlotState.UNKNOWN:
        memory.move(seat, SlotState.UNKNOWN, reason)
    wait_s = min(RETRY_S * 2.0 ** min(seat.tries, 10), RETRY_MAX_S)
    spread = int(seat.slot.token[:4] or "0", 16) / 0xFFFF  # so that not all ask at once
    seat.retry_at = memory.now + wait_s * (0.5 + 0.5 * spread)
    seat.tries += 1
    memory.wake(seat.retry_at)


def resume(memory: Memory, pool: PoolState, seat: Seat) -> None:
    """Ask again what is unknown, if nothing speaks against an instance."""
    if seat.retry_at is None or seat.retry_at > memory.now or not is_resumable(memory, pool, seat):
        return
    seat.retry_at, seat.asked_at, seat.missing = None, memory.now, 0
    memory.wake(memory.now + pool.pool.timeouts.launch_s)
    memory.act(do.Launch(_order(pool, seat)))


def is_resumable(memory: Memory, pool: PoolState, seat: Seat) -> bool:
    """Else its outcome is waited for in the cloud's lists."""
    return not (
        pool.is_gone
        or seat.is_retired
        or seat.tries > TRIES_MAX
        or seat.slot.config_hash != pool.pool.config_hash
        or pool.pause is not None
        or memory.pause is not None
        or pool.is_broken(memory.now)
        or budget.is_exhausted(memory, pool)
    )


def _sold(offering: Offering, market: Market) -> tuple[str, str, Market]:
    """What has capacity or none: at whatever price."""
    return offering.type, offering.zone, market


def _back_off(memory: Memory, off: BackOff, first_s: float, most_s: float = SHORT_MAX_S) -> None:
    off.until = memory.now + min(first_s * 2.0 ** min(off.failures, 10), most_s)
    off.failures += 1
    memory.wake(off.until)
