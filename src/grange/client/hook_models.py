"""The API's shapes of hooks and events."""

from typing import Annotated, Any

from pydantic import BaseModel, Field


class HookView(BaseModel):
    name: str
    does: str  # "runs /usr/bin/tell", "posts to https://chat.example.org", "calls publish"
    events: list[str]  # kinds it is told of
    projects: list[str] | None  # whose; None: of all
    parallel: int
    waiting: int  # events under way to it
    given_up: int  # events that it did not take in all its tries
    behind: int  # events, of any kind, that it has not passed
    last_error: str  # "" where the latest try went well


class HookFailure(BaseModel):
    hook: str
    tries: int
    error: str
    event: dict[str, Any]  # as the hook would get it


class HookEvents(BaseModel):
    """Which of a hook's failures are meant; None for all."""

    events: Annotated[list[int], Field(max_length=10_000)] | None = None


class HookChange(BaseModel):
    changed: int  # events
