"""The tables of the farm's file that say whom to tell of events: [hooks.NAME] and [events]."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from grange.coordinator.hooks.rules import (
    BACKOFF_S,
    DEPTH,
    KEEP_DAYS,
    NAME,
    PARALLEL,
    PARALLEL_MAX,
    TIMEOUT_S,
    TRIES,
    EventRules,
    HookRule,
)
from grange.identity import PEOPLE, Role
from grange.scheduler.facts import EventKind

_RESERVED = "GRANGE_"

Text = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class HookTable(_Table):
    events: Annotated[list[Annotated[EventKind, Field(strict=False)]], Field(min_length=1)]
    command: Annotated[list[Text], Field(min_length=1)] | None = None
    url: Annotated[str, Field(pattern=r"^https?://[^/]")] | None = None
    entry_point: Text | None = None
    projects: list[Text] | None = None
    parallel: Annotated[int, Field(ge=1, le=PARALLEL_MAX)] = PARALLEL
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = TIMEOUT_S
    tries: Annotated[int, Field(ge=1, le=1_000)] = TRIES
    backoff_s: Annotated[float, Field(ge=0, le=3_600)] = BACKOFF_S
    roles: list[Annotated[Role, Field(strict=False)]] = [Role.READ]
    secret_file: Text | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    depth: Annotated[int, Field(ge=0, le=10)] = DEPTH

    @field_validator("roles")
    @classmethod
    def _may_be_given(cls, roles: list[Role]) -> list[Role]:
        if wrong := [each.value for each in roles if each not in PEOPLE - {Role.ADMINISTER}]:
            raise ValueError(f"no hook may {wrong[0]}")
        return roles

    @field_validator("environment")
    @classmethod
    def _is_not_ours(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            if not name or "=" in name or "\0" in name + value or name.startswith(_RESERVED):
                raise ValueError(f"{name!r} cannot be set for a hook")
        return environment

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        kinds = [self.command, self.url, self.entry_point]
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("a hook has exactly one of command, url and entry_point")
        if self.secret_file is not None and self.url is None:
            raise ValueError("secret_file is for a hook with a url")
        if self.environment and self.command is None:
            raise ValueError("environment is for a hook with a command")
        return self

    def rule(self, name: str, folder: Path) -> HookRule:
        """Relative paths are relative to `folder`."""
        return HookRule(
            name,
            frozenset(self.events),
            tuple(self.command or ()),
            self.url or "",
            self.entry_point or "",
            None if self.projects is None else frozenset(self.projects),
            self.parallel,
            self.timeout_s,
            self.tries,
            self.backoff_s,
            frozenset(self.roles),
            None if self.secret_file is None else folder / self.secret_file,
            self.environment,
            self.depth,
        )


class EventsTable(_Table):
    stream: bool = False
    keep_days: Annotated[float, Field(gt=0, le=3_650)] = KEEP_DAYS


class HookTables(_Table):
    """What [hooks] and [events] say together."""

    hooks: dict[str, HookTable] = Field(default_factory=dict)
    events: EventsTable = EventsTable()

    @field_validator("hooks")
    @classmethod
    def _have_plain_names(cls, hooks: dict[str, HookTable]) -> dict[str, HookTable]:
        for name in hooks:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a hook: it takes letters, digits and ._-")
        return hooks

    def rules(self, folder: Path) -> EventRules:
        hooks = tuple([hook.rule(name, folder) for name, hook in self.hooks.items()])
        return EventRules(hooks, self.events.stream, self.events.keep_days)
