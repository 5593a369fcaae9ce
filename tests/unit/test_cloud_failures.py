"""What EC2's errors mean for the next launch: every code that there is a rule for."""

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from grange.capacity.facts import LaunchFailure
from grange.cloud.ec2.failures import (
    MEANINGS,
    TEXT_MAX,
    Refusal,
    meaning,
    meaning_of_offering,
    refusal,
    worst,
)

CAPACITY = LaunchFailure.CAPACITY
QUOTA = LaunchFailure.QUOTA
PRICE = LaunchFailure.PRICE
THROTTLED = LaunchFailure.THROTTLED
CONFIG = LaunchFailure.CONFIG
UNKNOWN = LaunchFailure.UNKNOWN

SAID = {
    CAPACITY: [
        "InsufficientInstanceCapacity",
        "UnfulfillableCapacity",
        "InsufficientHostCapacity",
        "Unsupported",
        "InsufficientFreeAddressesInSubnet",
        "InsufficientReservedInstanceCapacity",
        "InsufficientCapacity",
        "InvalidFleetConfiguration",
    ],
    QUOTA: [
        "MaxSpotInstanceCountExceeded",
        "VcpuLimitExceeded",
        "InstanceLimitExceeded",
        "MaxIOPSLimitExceeded",
        "VolumeLimitExceeded",
        "MaxSpotFleetRequestCountExceeded",
        "NetworkInterfaceLimitExceeded",
        "ResourceLimitExceeded",
        "SomethingNewLimitExceeded",
    ],
    PRICE: ["SpotMaxPriceTooLow", "InvalidSpotPrice"],
    THROTTLED: [
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "EC2ThrottledException",
        "RequestThrottled",
        "SlowDown",
        "ServiceUnavailable",
        "Unavailable",
        "InternalError",
        "InternalFailure",
        "ConcurrentIdempotentRequest",
        "InvalidLaunchTemplateName.NotFoundException",
        "InvalidLaunchTemplateId.NotFound",
    ],
    UNKNOWN: ["IdempotentParameterMismatch", "IdempotentInstanceTerminated", "RequestTimeout"],
    CONFIG: [
        "UnauthorizedOperation",
        "AccessDenied",
        "AuthFailure",
        "InvalidAMIID.NotFound",
        "InvalidParameterValue",
        "InvalidParameterCombination",
        "InvalidLaunchTemplateName.MalformedException",
        "OptInRequired",
        "PendingVerification",
        "Blocked",
        "InvalidSubnetID.NotFound",
    ],
}
RULES = [(code, means) for means, codes in SAID.items() for code in codes]


def client_error(code: str, status: int = 400, message: str = "so it is") -> ClientError:
    said = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(said, "RunInstances")


@pytest.mark.parametrize(("code", "means"), RULES)
def test_a_code_means_this(code: str, means: LaunchFailure) -> None:
    refused = refusal(client_error(code))
    assert meaning(refused) is means
    assert refused.text == f"{code}: so it is"


def test_every_code_of_the_table_is_tried_here() -> None:
    assert set(MEANINGS) <= {code for code, _ in RULES}


@pytest.mark.parametrize(
    ("code", "status", "means"),
    [
        ("InsufficientInstanceCapacity", 500, CAPACITY),  # EC2 says it so
        ("SomethingNew", 400, CONFIG),
        ("SomethingNew", 500, UNKNOWN),
        ("SomethingNew", 503, UNKNOWN),
        ("SomethingNew", 429, THROTTLED),
        ("", 502, UNKNOWN),  # of a proxy on the way
    ],
)
def test_codes_without_a_rule_go_by_status(code: str, status: int, means: LaunchFailure) -> None:
    assert meaning(refusal(client_error(code, status))) is means


URL = "https://ec2.invalid"


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (EndpointConnectionError(endpoint_url=URL), THROTTLED),
        (ConnectTimeoutError(endpoint_url=URL), THROTTLED),
        (ProxyConnectionError(proxy_url=URL), THROTTLED),
        (CredentialRetrievalError(provider="role", error_msg="no answer"), THROTTLED),
        (ReadTimeoutError(endpoint_url=URL), UNKNOWN),
        (ConnectionClosedError(endpoint_url=URL), UNKNOWN),
        (HTTPClientError(error="reset"), UNKNOWN),
        (SSLError(endpoint_url=URL, error="eof"), UNKNOWN),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), UNKNOWN),
        (ResponseParserError("no XML"), UNKNOWN),
        (NoCredentialsError(), CONFIG),
        (ParamValidationError(report="unknown parameter"), CONFIG),
    ],
    ids=lambda each: type(each).__name__,
)
def test_without_an_answer_only_what_was_not_sent_is_certain(
    error: BotoCoreError | ResponseParserError, means: LaunchFailure
) -> None:
    assert meaning(refusal(error)) is means


@pytest.mark.parametrize("code", [code for code, _ in RULES])
def test_an_answer_that_came_leaves_nothing_open(code: str) -> None:
    """A fleet's token is spent with its answer: asked again it would say the same for ever."""
    said = meaning_of_offering(code)
    assert said not in (THROTTLED, UNKNOWN)
    if meaning(Refusal(code, "")) in (THROTTLED, UNKNOWN):
        assert said is CAPACITY


@pytest.mark.parametrize(
    ("meanings", "means"),
    [
        ([CAPACITY, CONFIG, QUOTA], CONFIG),
        ([CAPACITY, QUOTA, PRICE], QUOTA),
        ([CAPACITY, PRICE], PRICE),
        ([CAPACITY], CAPACITY),
        ([], CAPACITY),
    ],
)
def test_of_several_reasons_that_counts_which_a_person_can_mend(
    meanings: list[LaunchFailure], means: LaunchFailure
) -> None:
    assert worst(meanings) is means


def test_what_is_said_is_bounded() -> None:
    assert len(refusal(client_error("AuthFailure", message="x" * 100_000)).text) == TEXT_MAX
