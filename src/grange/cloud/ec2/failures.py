"""What EC2's errors mean for the next launch.

Certain is only what EC2 itself has refused. An answer that did not come, or that says that EC2 is
at fault, leaves it open whether there is an instance.
"""

from dataclasses import dataclass
from typing import Any, Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    LoginError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProxyConnectionError,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError

from grange.capacity.facts import LaunchFailure

TEXT_MAX: Final = 1000  # of what EC2 says; encoded messages are longer than people read

MEANINGS: Final[dict[str, LaunchFailure]] = {
    # None of this type in this zone just now.
    "InsufficientInstanceCapacity": LaunchFailure.CAPACITY,
    "InsufficientCapacity": LaunchFailure.CAPACITY,
    "InsufficientHostCapacity": LaunchFailure.CAPACITY,
    "InsufficientReservedInstanceCapacity": LaunchFailure.CAPACITY,
    "InsufficientFreeAddressesInSubnet": LaunchFailure.CAPACITY,
    "UnfulfillableCapacity": LaunchFailure.CAPACITY,
    "Unsupported": LaunchFailure.CAPACITY,  # the zone does not have this type
    "InvalidFleetConfiguration": LaunchFailure.CAPACITY,  # so says a fleet of the same
    # The account's limits.
    "MaxSpotInstanceCountExceeded": LaunchFailure.QUOTA,
    "VcpuLimitExceeded": LaunchFailure.QUOTA,
    "InstanceLimitExceeded": LaunchFailure.QUOTA,
    "MaxIOPSLimitExceeded": LaunchFailure.QUOTA,
    "VolumeLimitExceeded": LaunchFailure.QUOTA,
    "MaxSpotFleetRequestCountExceeded": LaunchFailure.QUOTA,
    "NetworkInterfaceLimitExceeded": LaunchFailure.QUOTA,
    "ResourceLimitExceeded": LaunchFailure.QUOTA,
    # The market's price.
    "SpotMaxPriceTooLow": LaunchFailure.PRICE,
    "InvalidSpotPrice": LaunchFailure.PRICE,
    # Later, with the same token.
    "RequestLimitExceeded": LaunchFailure.THROTTLED,
    "Throttling": LaunchFailure.THROTTLED,
    "ThrottlingException": LaunchFailure.THROTTLED,
    "EC2ThrottledException": LaunchFailure.THROTTLED,
    "RequestThrottled": LaunchFailure.THROTTLED,
    "SlowDown": LaunchFailure.THROTTLED,
    "ServiceUnavailable": LaunchFailure.THROTTLED,
    "Unavailable": LaunchFailure.THROTTLED,
    "InternalError": LaunchFailure.THROTTLED,
    "InternalFailure": LaunchFailure.THROTTLED,
    "ConcurrentIdempotentRequest": LaunchFailure.THROTTLED,  # another call with it is under way
    "InvalidLaunchTemplateName.NotFoundException": LaunchFailure.THROTTLED,  # made a moment ago
    "InvalidLaunchTemplateId.NotFound": LaunchFailure.THROTTLED,
    # There may be an instance of this token.
    "IdempotentParameterMismatch": LaunchFailure.UNKNOWN,
    "IdempotentInstanceTerminated": LaunchFailure.UNKNOWN,
    "RequestTimeout": LaunchFailure.UNKNOWN,
    # An operator must act.
    "UnauthorizedOperation": LaunchFailure.CONFIG,
    "AccessDenied": LaunchFailure.CONFIG,
    "AuthFailure": LaunchFailure.CONFIG,
    "OptInRequired": LaunchFailure.CONFIG,
    "PendingVerification": LaunchFailure.CONFIG,
    "Blocked": LaunchFailure.CONFIG,
    "InvalidAMIID.NotFound": LaunchFailure.CONFIG,
}
"""By EC2's code. Codes that are not here are judged by `meaning`."""

TOKEN_OF_THE_DEAD: Final = "IdempotentInstanceTerminated"
USED_TOKENS: Final = {"IdempotentParameterMismatch", TOKEN_OF_THE_DEAD}
TEMPLATE_GONE: Final = {
    "InvalidLaunchTemplateName.NotFoundException",
    "InvalidLaunchTemplateId.NotFound",
}
NO_SUCH_INSTANCE: Final = {"InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"}
DENIED: Final = {
    "UnauthorizedOperation",
    "AccessDenied",
    "AccessDeniedException",
    "AWS.SimpleQueueService.AccessDenied",
}

_NOT_SENT: Final = (
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    MetadataRetrievalError,
    ProxyConnectionError,
    TokenRetrievalError,
)
_OURS: Final = (
    LoginError,
    NoAuthTokenError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    SSOError,
)
_SEVERITY: Final = (
    LaunchFailure.CONFIG,
    LaunchFailure.QUOTA,
    LaunchFailure.PRICE,
    LaunchFailure.CAPACITY,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a call failed with, in EC2's own words. `status` is HTTP's; zero: there was no answer.
    `code` is boto3's exception where EC2 had no say."""

    code: str
    message: str
    status: int = 400
    was_sent: bool = True
    is_ours: bool = False  # boto3 refused it: credentials, or a parameter that it does not know

    @property
    def text(self) -> str:
        return f"{self.code}: {self.message}"[:TEXT_MAX]


def refusal(error: ClientError | BotoCoreError | ResponseParserError) -> Refusal:
    if isinstance(error, ClientError):
        said: dict[str, Any] = error.response
        about = said.get("Error", {})
        status = int(said.get("ResponseMetadata", {}).get("HTTPStatusCode", 400))
        code = str(about.get("Code", "")) or f"HTTP {status}"
        return Refusal(code, str(about.get("Message", "")), status)
    is_ours = isinstance(error, _OURS)
    was_sent = not is_ours and not isinstance(error, _NOT_SENT)
    hint = "; a newer boto3 may know it" if isinstance(error, ParamValidationError) else ""
    return Refusal(type(error).__name__, f"{error}{hint}", 0, was_sent, is_ours)


def meaning(refused: Refusal) -> LaunchFailure:
    """Of a call that failed as a whole."""
    if refused.is_ours:
        return LaunchFailure.CONFIG
    if not refused.status:
        return LaunchFailure.UNKNOWN if refused.was_sent else LaunchFailure.THROTTLED
    if refused.code in MEANINGS:
        return MEANINGS[refused.code]
    if refused.status >= 500:
        return LaunchFailure.UNKNOWN
    if refused.status == 429:
        return LaunchFailure.THROTTLED
    if refused.code.endswith("LimitExceeded"):
        return LaunchFailure.QUOTA
    return LaunchFailure.CONFIG


def meaning_of_offering(code: str) -> LaunchFailure:
    """Of an error within an answer that came: the token is spent, so nothing may be left open."""
    said = meaning(Refusal(code, ""))
    if said in (LaunchFailure.THROTTLED, LaunchFailure.UNKNOWN):
        return LaunchFailure.CAPACITY
    return said


def worst(meanings: list[LaunchFailure]) -> LaunchFailure:
    """What a fleet that launched nothing means: what an operator can mend comes first."""
    return next((each for each in _SEVERITY if each in meanings), LaunchFailure.CAPACITY)
