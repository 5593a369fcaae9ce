"""Credentials, agents' accounts, and who did what."""

import time
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request

from grange.client.account_models import (
    AccountView,
    AuditView,
    CredentialView,
    NewAgentRequest,
    NewTokenAnswer,
    NewTokenRequest,
    PasswordAnswer,
    TagsRequest,
    WhoView,
)
from grange.coordinator.farm import Farm
from grange.errors import PeerError
from grange.identity import AgentAccount, Credential, Identity, Role
from grange.scheduler.facts import NO_AGENT_RULE
from grange.web.rights import did, needs, open_to_all
from grange.web.views import Views

AUDIT_PAGE_MAX: Final = 10_000

Admin = Annotated[Identity, needs(Role.ADMINISTER)]
Operator = Annotated[Identity, needs(Role.OPERATE)]


def account_calls(api: APIRouter, farm: Farm, views: Views) -> None:
    @api.get("/whoami")
    async def whoami(
        who: Annotated[Identity, open_to_all("tells callers nothing but who they are")],
    ) -> WhoView:
        return WhoView(
            name=who.name,
            roles=sorted(who.roles),
            projects=None if who.projects is None else sorted(who.projects),
        )

    @api.get("/audit", dependencies=[needs(Role.ADMINISTER)])
    async def audit(
        *, limit: Annotated[int, Query(ge=1, le=AUDIT_PAGE_MAX)] = 100, before: int | None = None
    ) -> list[AuditView]:
        """The newest first; `before` pages on by id."""
        return [
            AuditView(id=each.id, time=each.time, who=each.who, address=each.address, did=each.did)
            for each in await farm.accounts.audit(limit=limit, before=before)
        ]

    _token_calls(api, farm)
    _agent_calls(api, farm, views)


def _token_calls(api: APIRouter, farm: Farm) -> None:
    @api.get("/tokens", dependencies=[needs(Role.ADMINISTER)])
    async def tokens() -> list[CredentialView]:
        """All credentials there ever were, oldest first; without their secrets."""
        return [_view(each) for each in await farm.accounts.credentials()]

    @api.post("/tokens")
    async def new_token(request: Request, wanted: NewTokenRequest, who: Admin) -> NewTokenAnswer:
        """The token is told this once."""
        expires = None if wanted.expires_s is None else time.time() + wanted.expires_s
        if wanted.kind == "registration":
            made, token = await farm.keeper.new_registration(
                wanted.name,
                who.name,
                tags=wanted.tags,
                expires=expires,
                uses_max=wanted.uses_max,
            )
        else:
            made, token = await farm.keeper.new_token(
                wanted.name,
                who.name,
                _roles(wanted.roles),
                projects=None if wanted.projects is None else frozenset(wanted.projects),
                expires=expires,
            )
        did(request, f"made the {made.kind.value} {made.name} ({made.id}): {_rights(made)}")
        return NewTokenAnswer(token=token, credential=_view(made))

    @api.post("/tokens/{id}/revoke")
    async def revoke(request: Request, id: str, _: Admin) -> CredentialView:  # noqa: A002
        """At once, for good."""
        gone = await farm.keeper.revoke(id)
        did(request, f"revoked the {gone.kind.value} {gone.name} ({gone.id})")
        return _view(gone)


def _agent_calls(api: APIRouter, farm: Farm, views: Views) -> None:
    keeper = farm.keeper

    def view(account: AgentAccount) -> AccountView:
        rule = views.core.agent_rules.get(account.id, NO_AGENT_RULE)
        agent = views.core.agents.get(account.id)
        here = None if agent is None else views.agent(agent)
        return AccountView(
            id=account.id,
            name=account.name,
            created=account.created,
            registered_by=account.registered_by,
            tags=list(rule.tags),
            is_paused=rule.is_paused,
            pause_reason=rule.reason,
            state="gone" if here is None else "set aside" if here.is_set_aside else here.state,
            detail="" if here is None else here.detail,
        )

    @api.get("/agent-accounts", dependencies=[needs(Role.READ)])
    async def accounts() -> list[AccountView]:
        """All agents that may join, by name; they need not be here."""
        return [view(each) for each in await farm.accounts.agents()]

    @api.post("/agent-accounts")
    async def new_agent(request: Request, wanted: NewAgentRequest, who: Admin) -> AccountView:
        made = await keeper.new_agent(wanted.name, who.name, wanted.tags)
        did(request, f"made agent {made.id} ({made.name}) an account")
        return view(made)

    @api.get("/agent-accounts/{agent}", dependencies=[needs(Role.READ)])
    async def account(agent: str) -> AccountView:
        """By its UUID, or by its name where no other agent has that."""
        return view(await keeper.find(agent))

    @api.post("/agent-accounts/{agent}/passwords")
    async def new_password(request: Request, agent: str, who: Admin) -> PasswordAnswer:
        """Another one; it is told this once."""
        found = await keeper.find(agent)
        password = await keeper.new_password(found, who.name)
        did(request, f"made a password for agent {found.id} ({found.name})")
        return PasswordAnswer(agent=found.id, password=password)

    @api.post("/agent-accounts/{agent}/tags")
    async def tags(request: Request, agent: str, wanted: TagsRequest, _: Operator) -> AccountView:
        """Put these in the place of those that operators gave it."""
        found = await keeper.find(agent)
        await keeper.rule(found, tags=wanted.tags)
        shown = ", ".join(wanted.tags) or "none"
        did(request, f"set the tags of agent {found.id} ({found.name}) to {shown}")
        return view(found)

    @api.post("/agent-accounts/{agent}/remove")
    async def remove(request: Request, agent: str, _: Admin) -> AccountView:
        """It is hung up on and never let in again; another may have its name."""
        found = await keeper.find(agent)
        await keeper.remove(found)
        did(request, f"removed agent {found.id} ({found.name})")
        return view(found)


def _roles(names: list[str]) -> frozenset[Role]:
    try:
        return frozenset(map(Role, names))
    except ValueError as error:
        raise PeerError(f"there is no such role: {error}") from None


def _rights(made: Credential) -> str:
    parts = [", ".join(sorted(made.roles))]
    if made.projects is not None:
        parts.append(f"in {', '.join(sorted(made.projects))}")
    return " ".join(parts)


def _view(one: Credential) -> CredentialView:
    return CredentialView(
        id=one.id,
        kind=one.kind.value,
        name=one.name,
        roles=sorted(one.roles),
        projects=None if one.projects is None else sorted(one.projects),
        tags=list(one.tags),
        agent=one.agent,
        uses=one.uses,
        uses_max=one.uses_max,
        created=one.created,
        created_by=one.created_by,
        expires=one.expires,
        last_used=one.last_used,
        revoked=one.revoked,
    )
