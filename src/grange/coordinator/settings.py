"""What a farm is told of itself when it begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grange.coordinator.hooks.rules import EventRules
from grange.coordinator.keep import RetentionRules
from grange.identity import ANONYMOUS, Identity
from grange.scheduler.facts import Limits, Policy, ProjectRule
from grange.store.keys import SecretKey
from grange.store.path import StoreDir


@dataclass(frozen=True, slots=True)
class FarmSettings:
    store_dir: StoreDir
    cache_url: str  # how agents and clients reach the cache; no trailing slash
    keys: Sequence[SecretKey]
    upstream_keys: Sequence[str]  # public keys that paths of upstreams are signed with
    limits: Limits  # of builds whose project has none of its own
    lease_s: float
    downloads_max: int = 16
    projects: Mapping[str, ProjectRule] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)  # but for its lease
    is_fresh: bool = False  # agents build anew what their stores have already
    events: EventRules = field(default_factory=EventRules)  # the policy tells of what they want
    anonymous: Identity = ANONYMOUS  # who shows no credential
    trusts_nearby: bool = False  # programs of this machine need none
    retention: RetentionRules = field(default_factory=RetentionRules)
    folders: tuple[Path, ...] = ()  # where the farm keeps what it must not lose; watched for space
