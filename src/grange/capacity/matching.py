"""Which pools suit which work."""

from collections.abc import Iterable
from dataclasses import dataclass

from grange.capacity.facts import Claim, Market, Need, Pool, PoolName


@dataclass(frozen=True, slots=True)
class Kind:
    """What work asks for."""

    system: str
    features: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    is_on_demand: bool = False
    size: int = 1

    @classmethod
    def of_claim(cls, claim: Claim) -> "Kind":
        return cls(
            claim.system, frozenset(claim.features), frozenset(), claim.is_on_demand, claim.size
        )

    @classmethod
    def of_need(cls, need: Need) -> "Kind":
        features, tags = frozenset(need.features), frozenset(need.tags)
        return cls(need.system, features, tags, need.is_on_demand)


@dataclass(frozen=True, slots=True)
class Match:
    own: tuple[PoolName, ...]  # may launch for it: what they offer beyond it is least
    others: tuple[PoolName, ...]  # special: it may use there what is paid for already

    @property
    def all(self) -> tuple[PoolName, ...]:
        return self.own + self.others


class Matches:
    """Pools in order of price, by what is asked for."""

    def __init__(self, pools: Iterable[Pool]) -> None:
        self._pools = sorted(pools, key=lambda each: (_price(each), each.name))
        self._known: dict[Kind, Match] = {}

    def of(self, kind: Kind) -> Match:
        if (match := self._known.get(kind)) is None:
            if len(self._known) > 10_000:  # kinds are asked from outside
                self._known.clear()
            self._known[kind] = match = self._find(kind)
        return match

    def _find(self, kind: Kind) -> Match:
        fit = [each for each in self._pools if not objection(each, kind)]
        own = [
            each
            for each in fit
            if not any(set(other.features) < set(each.features) for other in fit)
        ]
        others = [each.name for each in fit if each not in own]
        return Match(tuple(each.name for each in own), tuple(others))

    def why_none(self, kind: Kind) -> str:
        """Why no pool suits, in words."""
        if not self._pools:
            return "there are no pools; add a [pools.NAME] section"
        said = "; ".join(f"pool {each.name}: {objection(each, kind)}" for each in self._pools[:20])
        return f"no pool can ever serve it ({said})"


def objection(pool: Pool, kind: Kind) -> str:
    """Why such work never comes to this pool; "" where it may."""
    if kind.system not in pool.systems:
        return f"is for {', '.join(pool.systems) or 'nothing'}, not {kind.system}"
    if lacks := kind.features.difference(pool.features, pool.mandatory_features):
        return f"lacks {', '.join(sorted(lacks))}"
    if unasked := set(pool.mandatory_features) - kind.features:
        return f"is only for work that requires {', '.join(sorted(unasked))}"
    if lacks := kind.tags.difference(pool.tags):
        return f"lacks the tags {', '.join(sorted(lacks))}"
    if kind.size > pool.capacity:
        return f"has slots of {pool.capacity} places, and {kind.size} are asked for in one"
    if pool.max < 1:
        return "may have no slots: max is 0"
    if kind.is_on_demand and Market.ON_DEMAND not in (pool.market, pool.fallback):
        return "is never on demand"
    return ""


def _price(pool: Pool) -> float:
    return min((each.price(pool.market) for each in pool.offerings), default=0.0)
