"""Calls of Amazon's client, which blocks: in threads, a bounded number at once, each tried once."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any, Final

from boto3 import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from grange.cloud.ec2.failures import Refusal, refusal
from grange.cloud.ec2.settings import Ec2Settings
from grange.errors import OperatorError

CONNECT_S: Final = 5
ANSWER_S: Final = 60
READS_AT_ONCE: Final = 4


class Lane(StrEnum):
    """Calls of a lane wait for each other only, so that launches keep nothing from being seen."""

    LAUNCH = "launch"
    OTHER = "other"
    WAIT = "wait"  # for messages


class RefusedError(Exception):
    """A call came to nothing, or nobody knows what it came to."""

    def __init__(self, action: str, refused: Refusal) -> None:
        super().__init__(f"{action}: {refused.text}")
        self.action = action  # as policies name it: "ec2:RunInstances"
        self.refused = refused


class Calls:
    def __init__(self, settings: Ec2Settings, session: Session | None = None) -> None:
        """Raises OperatorError where there is no region, or no such profile."""
        config = Config(
            connect_timeout=CONNECT_S,
            read_timeout=ANSWER_S,
            retries={"total_max_attempts": 1},  # the core decides what is tried again, and when
            max_pool_connections=settings.launches_at_once + READS_AT_ONCE,
        )
        try:
            session = session or Session(
                profile_name=settings.profile or None, region_name=settings.region or None
            )
            services = ("ec2", "sts", "sqs") if settings.sqs_url else ("ec2", "sts")
            self._clients: Mapping[str, Any] = {
                name: session.client(
                    name,
                    region_name=settings.region or None,
                    endpoint_url=settings.endpoint or None,
                    config=config,
                )
                for name in services
            }
        except (BotoCoreError, ValueError) as error:
            raise OperatorError(
                f"EC2 cannot be used: {error}; see region, profile and endpoint in [ec2]"
            ) from None
        self._threads = {
            Lane.LAUNCH: ThreadPoolExecutor(settings.launches_at_once, "ec2-launch"),
            Lane.OTHER: ThreadPoolExecutor(READS_AT_ONCE, "ec2"),
            Lane.WAIT: ThreadPoolExecutor(1, "ec2-wait"),
        }

    async def ask(
        self, service: str, operation: str, *, lane: Lane = Lane.OTHER, **params: Any
    ) -> dict[str, Any]:
        """`operation` as boto3 names it: "run_instances". Raises RefusedError."""
        call = getattr(self._clients[service], operation)
        action = f"{service}:{self._clients[service].meta.method_to_api_mapping[operation]}"

        def run() -> dict[str, Any]:
            try:
                answer: dict[str, Any] = call(**params)
            except (ClientError, BotoCoreError, ResponseParserError) as error:
                raise RefusedError(action, refusal(error)) from None
            return answer

        return await asyncio.get_running_loop().run_in_executor(self._threads[lane], run)

    async def pages(
        self, service: str, operation: str, of: str, *, pages_max: int, **params: Any
    ) -> list[dict[str, Any]]:
        """The items `of` all pages: a part of them never passes for the whole. Raises
        RefusedError."""
        found: list[dict[str, Any]] = []
        token: dict[str, Any] = {}
        for _ in range(pages_max):
            answer = await self.ask(service, operation, **params, **token)
            if of not in answer:  # an empty list is said, too
                raise RefusedError(operation, Refusal("NoAnswer", f"what came has no {of}", 0))
            found += answer[of]
            if not answer.get("NextToken"):
                return found
            token = {"NextToken": answer["NextToken"]}
        raise RefusedError(operation, Refusal("TooManyPages", f"more than {pages_max} pages"))

    async def close(self) -> None:
        """Calls under way end by themselves; nobody waits for them."""
        for each in self._threads.values():
            each.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()
