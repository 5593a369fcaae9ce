"""Calls of agents that end before they are answered."""

import asyncio
import logging
from typing import Any

import grpc
import pytest

from grange.errors import OutsideError
from grange.store.path import NIX_STORE
from grange.wire.server import _RunnerService


class HungUp:
    """A call whose agent has gone: nothing can be told any more."""

    async def abort(self, _code: grpc.StatusCode, _text: str) -> None:
        raise grpc.aio.InternalError


@pytest.mark.parametrize("failure", [OutsideError("not the leader"), RuntimeError("a bug")])
async def test_who_has_hung_up_is_told_nothing(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    service: Any = _RunnerService
    handler: Any = None

    async def method(*_: object) -> None:
        raise failure

    call = service(handler, NIX_STORE, None, None, 1.0).guarded("BuildStepUpdate", method)
    with pytest.raises(asyncio.CancelledError):
        await call(None, HungUp())
    bugs = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(bugs) == isinstance(failure, RuntimeError)
