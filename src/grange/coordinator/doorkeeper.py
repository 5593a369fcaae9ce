"""The one door: whoever shows a credential, over HTTP or gRPC, is found out here or turned away."""

import asyncio
import logging
import uuid
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final
from urllib.parse import unquote

from grange.coordinator.nearby import is_nearby
from grange.coordinator.throttle import Throttle
from grange.coordinator.tokens import (
    PASSWORD_CHARS_MIN,
    HookTokens,
    digest_of,
    is_same,
    is_token,
    new_password,
    split_token,
)
from grange.errors import OutsideError, UnauthenticatedError
from grange.identity import AgentAccount, AuditEntry, Credential, CredentialKind, Identity, Role
from grange.ports import Accounts, Clock
from grange.scheduler.facts import AgentId
from grange.wire.callers import Caller

log = logging.getLogger(__name__)

KNOWN_S: Final = 5.0  # a revocation by another coordinator is heeded this late
KNOWN_MAX: Final = 10_000  # of a kilobyte
LAST_USED_S: Final = 60.0
# What clients of registries show that have no password and are asked for one, too.
_NOTHING: Final = ("", "Basic Og==")
NAME_CHARS_MAX: Final = 200  # of an agent: host names have 253 at most, and few have 60

# Programs of the coordinator's machine, where those are trusted: what the first release, which
# knew no credentials and listened to its own machine only, let everyone do.
NEARBY: Final = Identity(
    "this machine", frozenset({Role.READ, Role.SUBMIT, Role.OPERATE, Role.JOIN, Role.BUILD})
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request shows of who sends it. Secrets are in here, so it is never printed."""

    authorization: str = field(default="", repr=False)  # as the header or metadata has it
    registration: str = field(default="", repr=False)  # token of an agent that is not known yet
    name: str = ""  # that such an agent wants to go by
    certificate: frozenset[str] | None = None  # names in it; None where none is asked for
    is_nearby: bool = False  # it comes from a program of this machine
    agent: str = ""  # that it says it is; known without a credential for such programs alone


@dataclass(frozen=True, slots=True)
class _Known:
    identity: Identity
    credential: str  # its id; "" for one without a record
    until: float  # monotonic


class Doorkeeper:
    """Finds out identities. Belongs to one event loop."""

    def __init__(
        self,
        accounts: Accounts,
        clock: Clock,
        hook_tokens: HookTokens,
        anonymous: Identity,
        own: Collection[str] = (),
        *,
        trusts_nearby: bool = False,
    ) -> None:
        """`anonymous` is who shows nothing; `own` are the ids of tokens that the farm itself has
        made, and may not have remembered yet. With `trusts_nearby` programs of this machine that
        show nothing are `NEARBY`."""
        self._accounts = accounts
        self._own = own
        self._trusts_nearby = trusts_nearby
        self._clock = clock
        self._hook_tokens = hook_tokens
        self.anonymous = anonymous
        self.on_registered: Callable[[AgentAccount], None] = lambda _account: None
        self._throttle = Throttle(clock)
        self._known: OrderedDict[tuple[bytes, frozenset[str] | None], _Known] = OrderedDict()
        self._age = 0  # of `_known`: what was looked up in an earlier one is not kept
        self._used: dict[str, float] = {}  # credentials, and when; not written yet

    async def identify(self, shown: Shown, address: str) -> Identity:
        """Who it is. Raises UnauthenticatedError for a credential that is not good, ThrottledError
        where `address` has shown too many of those, OutsideError where nobody can tell now."""
        if shown.authorization in _NOTHING:
            is_trusted = self._trusts_nearby and shown.is_nearby and shown.certificate is None
            return await self._nearby(shown, address) if is_trusted else self.anonymous
        key = sha256(shown.authorization.encode(errors="replace")).digest(), shown.certificate
        known = self._known.get(key)
        if known is None or known.until <= self._clock.monotonic_s():
            known = await self._look_up(shown, address, key)
        if known.credential:
            self._used[known.credential] = self._clock.wall_s()
        return known.identity

    async def _look_up(
        self, shown: Shown, address: str, key: tuple[bytes, frozenset[str] | None]
    ) -> _Known:
        self._throttle.check(address)
        age = self._age
        try:
            identity, credential = await self._resolve(shown, address)
        except UnauthenticatedError as error:
            self._throttle.count(address)
            log.warning("a caller at %s was turned away: %s", address or "no address", error)
            raise
        known = _Known(identity, credential, self._clock.monotonic_s() + KNOWN_S)
        if age == self._age:
            self._known[key] = known
            self._known.move_to_end(key)
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        return known

    def forget(self) -> None:
        """Look everyone up anew: a credential was revoked."""
        self._known.clear()
        self._age += 1

    async def save_last_used(self) -> None:
        """Until cancelled: write, now and then, when credentials were last used."""
        while True:
            await asyncio.sleep(LAST_USED_S)
            used, self._used = self._used, {}
            try:
                await self._accounts.save_last_used(used)
            except OutsideError as error:
                log.warning("when credentials were last used is not written: %s", error)
                self._used = used | self._used

    # --- Kinds of credentials -----------------------------------------------------------------

    async def _resolve(self, shown: Shown, address: str) -> tuple[Identity, str]:
        """The identity, and the id of its credential's record."""
        scheme, _, rest = shown.authorization.partition(" ")
        match scheme.lower():
            case "bearer":
                return await self._token(rest.strip())
            case "basic":
                user, password = _basic(rest.strip())
                if is_token(password):
                    return await self._token(password)
                return await self._agent(user, password, shown, address)
        raise UnauthenticatedError("this farm takes tokens by Bearer or Basic authorization only")

    async def _token(self, text: str) -> tuple[Identity, str]:
        if HookTokens.is_one(text):
            return self._hook_tokens.read(text), ""
        found = await self._record(text)
        if found.kind is CredentialKind.REGISTRATION:
            identity = Identity(f"registration {found.name}", found.roles, tags=found.tags)
        else:
            identity = Identity(f"token {found.name}", found.roles, found.projects)
        return identity, found.id

    async def _record(self, text: str) -> Credential:
        """The record of a token that is good."""
        parts = split_token(text)
        found = await self._accounts.credential(parts[0]) if parts is not None else None
        if parts is not None and found is None and parts[0] in self._own:
            raise OutsideError("the farm is starting up and knows nobody yet; ask again soon")
        if parts is None or found is None or not is_same(found.digest, parts[1]):
            raise UnauthenticatedError(
                "this token is not known here; ask whoever runs this farm for one of its own"
            )
        self._demand_good(found)
        return found

    def _demand_good(self, found: Credential) -> None:
        if not found.is_good(self._clock.wall_s()):
            what = "has expired" if found.revoked is None else "was revoked"
            raise UnauthenticatedError(f"the {found.kind.value} {found.name!r} {what}")

    # --- Agents -------------------------------------------------------------------------------

    async def _agent(
        self, user: str, password: str, shown: Shown, address: str
    ) -> tuple[Identity, str]:
        try:
            id_ = AgentId(str(uuid.UUID(user)))
        except ValueError:
            raise UnauthenticatedError(
                "neither a token nor an agent's UUID and password was shown"
            ) from None
        account = await self._accounts.agent(id_)
        if account is None:
            return await self._register(id_, password, shown, address)
        if account.removed is not None:
            raise UnauthenticatedError(f"agent {id_} was removed from this farm")
        if shown.certificate is not None:
            _demand_named(account, shown.certificate)
        passwords = await self._accounts.passwords_of(id_)
        for found in passwords:
            if is_same(found.digest, password):
                self._demand_good(found)
                return _agent_identity(id_), found.id
        if account.registered_by == NEARBY.name and not passwords:
            return await self._register(id_, password, shown, address)
        if shown.certificate is None:
            raise UnauthenticatedError(
                f"this is not the password of agent {id_}; give it a new one: "
                f"grange agent {id_} password new"
            )
        # Its certificate proves who it is; for the cache over HTTP it needs a password, too.
        by = f"certificate of {account.name}"
        return await self._save(account, password, by, None, address)

    async def _register(
        self, id_: AgentId, password: str, shown: Shown, address: str
    ) -> tuple[Identity, str]:
        """Make an account for an agent that shows a registration token, or a certificate that
        names it."""
        name = _checked_name(shown.name or id_)
        now = self._clock.wall_s()
        account = AgentAccount(id_, name, now, "")
        if shown.certificate is not None:
            _demand_named(account, shown.certificate)
            by = f"certificate of {name}"
            return await self._save(account, password, by, None, address)
        if not shown.registration:
            raise UnauthenticatedError(
                f"no agent {id_} is known here; have it register with a token (--token-file), or "
                "make it an account: grange agent new"
            )
        used = await self._record(shown.registration)
        if Role.JOIN not in used.roles:
            raise UnauthenticatedError(
                f"the token {used.name!r} registers no agents; make one that does: "
                "grange token new --registration"
            )
        account = AgentAccount(id_, name, now, f"registration {used.name}", used.tags)
        return await self._save(account, password, account.registered_by, used, address)

    async def _nearby(self, shown: Shown, address: str) -> Identity:
        """A program of this machine, or the agent that it says it is."""
        if not shown.agent:
            return NEARBY
        try:
            id_ = AgentId(str(uuid.UUID(shown.agent)))
        except ValueError:
            raise UnauthenticatedError("an agent's id is a UUID") from None
        account = await self._accounts.agent(id_)
        if account is None:
            now = self._clock.wall_s()
            new = AgentAccount(id_, _checked_name(shown.name or id_), now, NEARBY.name)
            await self._accounts.save_agent(new)
            did = f"took in agent {id_} ({new.name}), which shows no credential"
            await self._accounts.add_audit([AuditEntry(now, NEARBY.name, address, did)])
            log.info("%s %s", NEARBY.name, did)
        elif account.removed is not None:
            raise UnauthenticatedError(f"agent {id_} was removed from this farm")
        elif account.registered_by != NEARBY.name or await self._accounts.passwords_of(id_):
            raise UnauthenticatedError(f"agent {id_} has a password, and did not show it")
        return _agent_identity(id_)

    async def _save(
        self, account: AgentAccount, password: str, by: str, used: Credential | None, address: str
    ) -> tuple[Identity, str]:
        if len(password) < PASSWORD_CHARS_MIN:
            raise UnauthenticatedError(
                f"the password of agent {account.id} is shorter than {PASSWORD_CHARS_MIN} "
                "characters; let it make one for itself, or give it one: "
                "grange agent AGENT password new"
            )
        now = self._clock.wall_s()
        account = AgentAccount(account.id, account.name, account.created, by, account.tags)
        record = password_of(account, new_password()[0], digest_of(password), now, by)
        registration = None if used is None else used.id
        if not await self._accounts.register(account, record, registration):
            raise UnauthenticatedError(f"the token {by!r} has registered all agents that it may")
        did = f"registered agent {account.id} ({account.name})"
        await self._accounts.add_audit([AuditEntry(now, by, address, did)])
        log.info("%s %s from %s", by, did, address or "no address")
        if registration is not None:
            self._used[registration] = now
        self.on_registered(account)
        return _agent_identity(account.id), record.id


def password_of(account: AgentAccount, id_: str, digest: bytes, now: float, by: str) -> Credential:
    return Credential(
        id=id_,
        kind=CredentialKind.PASSWORD,
        name=account.name,
        digest=digest,
        roles=frozenset({Role.BUILD}),
        created=now,
        created_by=by,
        agent=account.id,
    )


def shown_by(caller: Caller) -> Shown:
    """What a gRPC call shows."""
    metadata = caller.metadata
    return Shown(
        metadata.get("authorization", ""),
        metadata.get("grange-registration", ""),
        unquote(metadata.get("grange-name", "")) or caller.name,
        caller.certificate,
        is_nearby(caller.address, metadata),
        caller.agent,
    )


def _agent_identity(id_: AgentId) -> Identity:
    return Identity(f"agent {id_}", frozenset({Role.BUILD}), frozenset(), id_)


def _basic(text: str) -> tuple[str, str]:
    try:
        user, colon, password = b64decode(text, validate=True).decode().partition(":")
    except ValueError:
        colon = ""
    if not colon:
        raise UnauthenticatedError("the Basic authorization is garbled") from None
    return user, password


def _checked_name(text: str) -> str:
    if len(text) > NAME_CHARS_MAX or not text.isprintable():
        raise UnauthenticatedError(
            f"an agent's name has at most {NAME_CHARS_MAX} characters, all of them printable"
        )
    return text


def _demand_named(account: AgentAccount, certificate: frozenset[str]) -> None:
    if not {account.id, account.name} & certificate:
        names = ", ".join(sorted(certificate)) or "nobody"
        raise UnauthenticatedError(
            f"the certificate is {names}'s, and not agent {account.id}'s ({account.name})"
        )
