"""The calls of /api/v1 that tell of accounts, credentials and who did what."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

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
from grange.client.api import GrangeClient


class AccountClient(GrangeClient):
    """A farm, for those who administer it."""

    def whoami(self) -> WhoView:
        return self._one(WhoView, "GET", "whoami")

    def tokens(self) -> list[CredentialView]:
        return self._many(CredentialView, "GET", "tokens")

    def new_token(self, wanted: NewTokenRequest) -> NewTokenAnswer:
        return self._one(NewTokenAnswer, "POST", "tokens", json=wanted.model_dump())

    def revoke(self, token: str) -> CredentialView:
        return self._one(CredentialView, "POST", f"tokens/{_part(token)}/revoke")

    def accounts(self) -> list[AccountView]:
        return self._many(AccountView, "GET", "agent-accounts")

    def account(self, agent: str) -> AccountView:
        """By its UUID or its name."""
        return self._one(AccountView, "GET", f"agent-accounts/{_part(agent)}")

    def new_agent(self, name: str, tags: Sequence[str] = ()) -> AccountView:
        wanted = NewAgentRequest(name=name, tags=list(tags))
        return self._one(AccountView, "POST", "agent-accounts", json=wanted.model_dump())

    def new_password(self, agent: str) -> PasswordAnswer:
        return self._one(PasswordAnswer, "POST", f"agent-accounts/{_part(agent)}/passwords")

    def set_tags(self, agent: str, tags: Sequence[str]) -> AccountView:
        wanted = TagsRequest(tags=list(tags))
        path = f"agent-accounts/{_part(agent)}/tags"
        return self._one(AccountView, "POST", path, json=wanted.model_dump())

    def remove_agent(self, agent: str) -> AccountView:
        return self._one(AccountView, "POST", f"agent-accounts/{_part(agent)}/remove")

    def audit(self, *, limit: int, before: int | None = None) -> list[AuditView]:
        """The newest first; `before`, an id, turns the page."""
        query: dict[str, Any] = {"limit": limit}
        if before is not None:
            query["before"] = before
        return self._many(AuditView, "GET", "audit", params=query)


def _part(text: str) -> str:
    """`text` as one part of a path."""
    return quote(text, safe="")
