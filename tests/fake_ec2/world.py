"""A region of EC2 on virtual time: what is sold, what runs, what it costs, and what goes wrong.

Nothing happens by itself: `clock.ahead` moves time, and whatever is due has happened by the next
call. What real EC2 does and moto does not is here: tokens, lists that lag, shortages, quotas,
prices, refusals, answers that are lost, interruptions, and the bill.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from grange.capacity.facts import Market
from tests.fake_ec2.protocol import AwsError

LOST: Final = "(the connection is lost)"
FLOOR_S: Final = 60.0  # that every instance is billed for
LISTED_DEAD_S: Final = 3600.0
TOKEN_S: Final = 86_400.0  # that a token outlives its instance
WARNING_S: Final = 120.0

Params = dict[str, Any]
Action = Callable[["FakeEc2", Params], Mapping[str, Any]]


class VirtualClock:
    def __init__(self, wall_s: float = 1_800_000_000.0) -> None:
        self.now = 0.0
        self._wall_s = wall_s

    def monotonic_s(self) -> float:
        return self.now

    def wall_s(self) -> float:
        return self._wall_s + self.now

    def ahead(self, by_s: float) -> None:
        self.now += by_s

    def date(self, at: float | None = None) -> datetime:
        """Of a time on this clock."""
        return datetime.fromtimestamp(self._wall_s + (self.now if at is None else at), UTC)


@dataclass(frozen=True)
class Type:
    vcpus: int
    price: float  # on demand, an hour
    architecture: str = "x86_64"
    features: tuple[str, ...] = ()
    is_old: bool = False  # before Nitro


@dataclass
class Machine:
    id: str
    type: str
    zone: str
    subnet: str
    market: Market
    price: float  # an hour
    tags: dict[str, str]
    data: Params  # of its template
    user_data: str
    token: str
    address: str
    born: float
    listed_at: float
    runs_at: float
    dies_at: float | None = None  # an interruption's end
    marked_at: float | None = None
    ended_at: float | None = None
    reason: str = ""

    @property
    def is_live(self) -> bool:
        return self.ended_at is None


@dataclass
class Fault:
    """Befalls the next `times` calls of an action: in place of it, or of its answer only."""

    action: str
    code: str
    message: str = ""
    status: int = 400
    times: int = 1
    is_applied: bool = False


@dataclass
class Message:
    id: str
    body: str
    hidden_until: float = 0.0


@dataclass
class Answered:
    """What a token was used for."""

    digest: str
    ids: list[str]
    errors: list[Params]


@dataclass
class FakeEc2:
    seed: int = 0
    lag_s: float = 0.0  # at most so late is a new instance listed
    pending_s: float = 0.0
    ending_s: float = 0.0
    clock: VirtualClock = field(default_factory=VirtualClock)
    types: dict[str, Type] = field(
        default_factory=lambda: {
            "m5.large": Type(2, 0.096),
            "c5.large": Type(2, 0.085),
            "m8i.xlarge": Type(4, 0.21, features=("nested-virtualization",)),
            "m7g.large": Type(2, 0.08, "arm64"),
        }
    )
    zones: tuple[str, ...] = ("us-east-1a", "us-east-1b")
    not_sold: set[tuple[str, str]] = field(default_factory=set)
    spot_share: float = 0.4  # of the full price
    stock: dict[tuple[str, str, Market], int] = field(default_factory=dict)  # absent: plenty
    vcpus_max: dict[Market, int] = field(default_factory=dict)  # absent: plenty
    images: dict[str, str] = field(default_factory=lambda: {"ami-1": "x86_64", "ami-2": "arm64"})
    groups: set[str] = field(default_factory=lambda: {"sg-1"})
    forgets_the_dead: bool = False  # a token of one is refused, instead of answered with it
    can_decode: bool = True
    page: int = 1000

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.subnets = {f"subnet-{zone[-1]}": zone for zone in self.zones}
        self.machines: dict[str, Machine] = {}
        self.templates: dict[str, Params] = {}  # by name: data, tags, made
        self.tokens: dict[tuple[str, str], Answered] = {}
        self.faults: list[Fault] = []
        self.chaos: Callable[[str], Fault | None] = lambda _: None
        self.denied: dict[str, tuple[str, bool]] = {}  # action: resource, and whether it is encoded
        self.messages: dict[str, Message] = {}
        self.late: list[str] = []  # reasons for which the next to be launched end at once
        self.calls: list[tuple[str, Params]] = []

    def call(self, action: str, params: Params, act: Action) -> Mapping[str, Any]:
        self.calls.append((action, params))
        self.settle()
        fault = self._fault(action)
        if fault is not None and not fault.is_applied:
            raise AwsError(fault.code, fault.message, fault.status)
        self._authorize(action)
        said = act(self, params)
        if fault is not None:
            raise AwsError(fault.code, fault.message, fault.status)
        return said

    def fail(self, action: str, code: str, message: str = "", **more: Any) -> None:
        self.faults.append(Fault(action, code, message, **more))

    def lose_answer(self, action: str, times: int = 1) -> None:
        """It is done, and the caller never hears of it."""
        self.faults.append(Fault(action, LOST, times=times, is_applied=True))

    def deny(self, action: str, resource: str, is_encoded: bool = True) -> None:
        self.denied[action] = (resource, is_encoded)

    def subnet_of(self, zone: str) -> str:
        return next(subnet for subnet, where in self.subnets.items() if where == zone)

    def price_of(self, type_: str, market: Market) -> float:
        return self.types[type_].price * (self.spot_share if market is Market.SPOT else 1.0)

    def settle(self) -> None:
        """What was due has happened."""
        for each in self.machines.values():
            if each.is_live and each.dies_at is not None and each.dies_at <= self.clock.now:
                self.end(each, "Server.SpotInstanceTermination", each.dies_at)

    def end(self, machine: Machine, reason: str, at: float | None = None) -> None:
        if machine.is_live:
            machine.ended_at = self.clock.now if at is None else at
            machine.reason = reason
            key = (machine.type, machine.zone, machine.market)
            if key in self.stock:
                self.stock[key] += 1

    def interrupt(self, id_: str, in_s: float = WARNING_S, is_told: bool = True) -> None:
        """The spot market wants it back: noticed by a request's state and a message, or not."""
        machine = self.machines[id_]
        machine.dies_at = self.clock.now + in_s
        if is_told:
            machine.marked_at = self.clock.now
            self.post("EC2 Spot Instance Interruption Warning", id_)

    def recommend(self, id_: str) -> None:
        self.post("EC2 Instance Rebalance Recommendation", id_)

    def post(self, kind: str, id_: str) -> None:
        said = {
            "detail-type": kind,
            "source": "aws.ec2",
            "time": self.clock.date().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "detail": {"instance-id": id_, "instance-action": "terminate"},
        }
        self.send(json.dumps(said))

    def send(self, body: str) -> None:
        id_ = f"message-{len(self.messages)}-{self.rng.random()}"
        self.messages[id_] = Message(id_, body)

    def power_off(self, id_: str) -> None:
        self.end(self.machines[id_], "Client.InstanceInitiatedShutdown")

    def bill(self) -> float:
        """Dollars so far."""
        total = 0.0
        for each in self.machines.values():
            until = self.clock.now if each.ended_at is None else each.ended_at
            total += max(until - each.born, FLOOR_S) * each.price / 3600.0
        return total

    def live(self) -> list[Machine]:
        self.settle()
        return [each for each in self.machines.values() if each.is_live]

    def is_listed(self, machine: Machine) -> bool:
        ended = machine.ended_at
        is_kept = ended is None or self.clock.now - ended < LISTED_DEAD_S
        return machine.listed_at <= self.clock.now and is_kept

    def state_of(self, machine: Machine) -> str:
        if machine.ended_at is not None:
            is_over = self.clock.now >= machine.ended_at + self.ending_s
            return "terminated" if is_over else "shutting-down"
        return "running" if self.clock.now >= machine.runs_at else "pending"

    def authorize_dry(self) -> None:
        raise AwsError("DryRunOperation", "Request would have succeeded", 412)

    def unauthorized(self, action: str) -> AwsError | None:
        if action not in self.denied:
            return None
        resource, is_encoded = self.denied[action]
        who = "arn:aws:iam::123456789012:role/farm"
        if not is_encoded:
            text = f"User: {who} is not authorized to perform: {action} on resource: {resource}"
        else:
            about = {"principal": {"arn": who}, "action": action, "resource": resource}
            said = json.dumps({"allowed": False, "explicitDeny": False, "context": about})
            text = (
                f"Encoded authorization failure message: {base64.b64encode(said.encode()).decode()}"
            )
        return AwsError(
            "UnauthorizedOperation",
            f"You are not authorized to perform this operation. {text}",
            403,
        )

    def _authorize(self, action: str) -> None:
        error = self.unauthorized(action)
        if error is not None:
            raise error

    def _fault(self, action: str) -> Fault | None:
        for each in self.faults:
            if each.action == action and each.times:
                each.times -= 1
                return each
        return self.chaos(action)
