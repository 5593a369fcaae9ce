"""What projects use of the farm, live: the places they hold, and those they held of late.

The past is an integral of places over time, in agent-seconds, that loses half its weight with each
half-life. Divided by the time that it spans it is a mean number of places, to which those held
now are added; over the project's share this gives its rank. Hydra's counts nothing that began
after the farm did, and so comes to nothing.
"""

import math
from collections.abc import Mapping
from typing import Final

from grange.scheduler.facts import NO_RULE, ProjectRule

NO_BOUND: Final = 1 << 62
NEGLIGIBLE_S: Final = 1.0  # of agent time: what has faded to less is forgotten


class Account:
    """One project's. Only this package changes it."""

    __slots__ = (
        "past_s",
        "pause",
        "project",
        "queued",
        "rule",
        "running",
        "running_max",
        "since",
        "use",
        "weight",
    )

    def __init__(self, project: str, rule: ProjectRule, now: float) -> None:
        self.project = project
        self.running = 0  # attempts
        self.queued = 0  # unfinished builds
        self.pause: str | None = None  # why nothing is begun for it; None where it is not paused
        self.past_s = 0.0  # decayed agent-seconds as of `since`
        self.since = now
        self.use = 0.0  # what the order goes by: places now and of late, over the share
        self.set_rule(rule)

    def set_rule(self, rule: ProjectRule) -> None:
        self.rule = rule
        self.weight = 1.0 / rule.share
        self.running_max = rule.running_max or NO_BOUND

    @property
    def is_full(self) -> bool:
        return self.running >= self.running_max

    def settle(self, now: float, mean_s: float) -> None:
        """Bring its use up to `now`. `mean_s` is how long what it used counts on average."""
        fading = math.exp((self.since - now) / mean_s)
        self.past_s = self.past_s * fading + self.running * mean_s * (1.0 - fading)
        self.since = now
        self.use = (self.running + self.past_s / mean_s) * self.weight


class Accounts(dict[str, Account]):
    """By project; one that is asked for is opened."""

    def __init__(self, half_life_s: float) -> None:
        super().__init__()
        self.mean_s = half_life_s / math.log(2.0)
        self.now = 0.0  # as told: what is read is settled up to it
        self.rules: Mapping[str, ProjectRule] = {}

    def __missing__(self, project: str) -> Account:
        account = self[project] = Account(project, self.rules.get(project, NO_RULE), self.now)
        return account

    def settled(self, project: str) -> Account:
        """The account of `project`, its use as of now."""
        account = self[project]
        if account.since != self.now:
            account.settle(self.now, self.mean_s)
        return account

    def bring_up(self, account: Account) -> None:
        """Settle it as of now."""
        if account.since != self.now:
            account.settle(self.now, self.mean_s)

    def charge(self, project: str) -> Account:
        """One more attempt."""
        account = self[project]
        if account.since != self.now:
            account.settle(self.now, self.mean_s)
        account.running += 1
        account.use += account.weight
        return account

    def discharge(self, account: Account) -> None:
        """One attempt less."""
        if account.since != self.now:
            account.settle(self.now, self.mean_s)
        account.running -= 1
        account.use -= account.weight

    def rule(self, rules: Mapping[str, ProjectRule]) -> None:
        self.rules = dict(rules)
        for account in self.values():
            account.set_rule(rules.get(account.project, NO_RULE))
            account.settle(self.now, self.mean_s)

    def recall(self, uses: Mapping[str, float], at: float) -> None:
        """Take in what projects had used as of `at`, which may be long ago."""
        for project, past_s in uses.items():
            account = self.settled(project)
            account.past_s += past_s * math.exp(min(0.0, at - self.now) / self.mean_s)
            account.settle(self.now, self.mean_s)

    def uses(self) -> list[tuple[str, float]]:
        """The decayed agent-seconds of each project that has any, as of now.

        Forgets accounts that say nothing any more.
        """
        found = []
        for project in list(self):
            account = self.settled(project)
            if account.past_s >= NEGLIGIBLE_S:
                found.append((project, account.past_s))
            elif not account.running and not account.queued and account.pause is None:
                del self[project]
        return found
