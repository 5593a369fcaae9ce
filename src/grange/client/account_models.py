"""The shapes of /api/v1 that tell of accounts, credentials and who did what."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from grange.client.models import LIMIT_MAX, NAME_MAX, Tag

# What a person reads in lists and logs: no control characters.
Name = Annotated[str, Field(min_length=1, max_length=NAME_MAX, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class WhoView(BaseModel):
    """Who asks, as the farm sees it."""

    name: str
    roles: list[str]
    projects: list[str] | None = None  # None: all


class CredentialView(BaseModel):
    """What is known of a secret; never the secret."""

    id: str
    kind: Literal["token", "password", "registration"]
    name: str
    roles: list[str]
    projects: list[str] | None = None  # None: all
    tags: list[str] = []  # of agents that register with it
    agent: str | None = None  # whose password it is
    uses: int = 0  # agents that registered with it
    uses_max: int | None = None
    created: float
    created_by: str
    expires: float | None = None
    last_used: float | None = None  # to the minute
    revoked: float | None = None


class NewTokenRequest(BaseModel):
    name: Name
    kind: Literal["token", "registration"] = "token"
    roles: list[str] = []  # of a token
    projects: Annotated[list[Name], Field(max_length=1000)] | None = None  # of a token; None: all
    tags: Annotated[list[Tag], Field(max_length=100)] = []  # of a registration
    uses_max: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None  # of a registration
    expires_s: Annotated[int, Field(ge=1, le=LIMIT_MAX)] | None = None  # from now; None: never


class NewTokenAnswer(BaseModel):
    token: str  # told this once
    credential: CredentialView


class AccountView(BaseModel):
    """An agent's account, and what operators say of it."""

    id: str
    name: str
    created: float
    registered_by: str
    tags: list[str]  # its operators', beside those that it says of itself
    is_paused: bool
    pause_reason: str = ""
    state: str  # as in AgentView, or "set aside"; "gone" where it is not here
    detail: str = ""  # as in AgentView


class NewAgentRequest(BaseModel):
    name: Name
    tags: Annotated[list[Tag], Field(max_length=100)] = []


class TagsRequest(BaseModel):
    tags: Annotated[list[Tag], Field(max_length=100)]


class PasswordAnswer(BaseModel):
    agent: str
    password: str  # told this once


class AuditView(BaseModel):
    id: int
    time: float
    who: str
    address: str
    did: str
