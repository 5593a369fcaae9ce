"""Who asks, and what they may: resolved once from a credential, and carried with the request."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from grange.errors import ForbiddenError, UnauthenticatedError
from grange.scheduler.facts import AgentId


class Role(StrEnum):
    """A right to one kind of request. None implies another but ADMINISTER, which implies all
    that people have."""

    READ = "read"  # builds, logs, agents, the cache
    SUBMIT = "submit"  # derivations with their sources, and builds of certain projects
    IMPORT = "import"  # paths whose content does not prove them: signed with the farm's own key
    OPERATE = "operate"  # others' builds, priorities, pauses, pins, collection, hooks
    ADMINISTER = "administer"  # accounts and credentials
    BUILD = "build"  # as an agent: own attempts, their logs and outputs
    JOIN = "join"  # as a machine not known yet: register as an agent


PEOPLE: Final = frozenset(Role) - {Role.BUILD, Role.JOIN}
ANONYMOUS_NAME: Final = "anonymous"
ALL_PROJECTS: Final[frozenset[str] | None] = None


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. `name` is what the audit log calls it: "token ci", "agent 6f1c…", "anonymous"."""

    name: str
    roles: frozenset[Role]
    projects: frozenset[str] | None = ALL_PROJECTS  # that it may submit to and change builds of
    agent: AgentId | None = None  # whose attempts it may touch, where it is an agent
    tags: tuple[str, ...] = ()  # of agents that register with it

    def may(self, role: Role) -> bool:
        return role in self.roles or (Role.ADMINISTER in self.roles and role in PEOPLE)

    def demand(self, *roles: Role) -> None:
        """Raises ForbiddenError unless it has one of `roles`; UnauthenticatedError where it has
        not said who it is."""
        if not any(map(self.may, roles)):
            wanted = " or ".join(role.value for role in roles)
            if self.name == ANONYMOUS_NAME and roles == (Role.BUILD,):
                raise UnauthenticatedError(
                    "this needs the right to build, and no password was shown: run the agent of "
                    "this farm's release, with --token-file; for one of 0.1, which knows neither, "
                    "set trust_loopback in [access] of the farm's file (docs/operating/security.md)"
                )
            if self.name == ANONYMOUS_NAME:
                raise UnauthenticatedError(
                    f"this needs the right to {wanted}, and no token was shown; name one with "
                    "--token-file or GRANGE_TOKEN"
                )
            raise ForbiddenError(
                f"{self.name} has no right to {wanted}; ask whoever runs this farm for a token "
                f"with the role {wanted}"
            )

    def demand_project(self, project: str) -> None:
        """Raises ForbiddenError where it may not submit to `project`."""
        self.demand(Role.SUBMIT)
        if self.projects is not None and project not in self.projects:
            raise ForbiddenError(
                f"{self.name} may submit to {', '.join(sorted(self.projects))}, not to {project}"
            )

    def demand_build_of(self, project: str) -> None:
        """Raises ForbiddenError where it may not change a build of `project`."""
        if not self.may(Role.OPERATE):
            self.demand_project(project)


ANONYMOUS: Final = Identity(ANONYMOUS_NAME, frozenset())


# --- What is remembered of credentials and accounts ------------------------------------------


class CredentialKind(StrEnum):
    TOKEN = "token"  # of a person or a program
    PASSWORD = "password"  # of one agent
    REGISTRATION = "registration"  # of agents that register themselves


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret's record. The secret itself is random, of 256 bits, and known to its owner alone."""

    id: str  # public: in listings, and in the token before its secret
    kind: CredentialKind
    name: str
    digest: bytes  # SHA-256 of the secret
    roles: frozenset[Role]
    created: float  # wall clock, as all that follow
    created_by: str  # name of an identity
    projects: frozenset[str] | None = ALL_PROJECTS
    tags: tuple[str, ...] = ()  # of agents that register with it
    agent: AgentId | None = None  # whose password it is
    uses_max: int | None = None  # agents that may register with it; None: any number
    uses: int = 0
    expires: float | None = None
    last_used: float | None = None  # to the minute
    revoked: float | None = None

    def is_good(self, now: float) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)


@dataclass(frozen=True, slots=True)
class AgentAccount:
    """An agent that may join, whether it is here or not. What its operators say of it besides is
    `grange.scheduler.facts.AgentRule`."""

    id: AgentId
    name: str
    created: float  # wall clock
    registered_by: str  # name of an identity
    tags: tuple[str, ...] = ()  # of the credential it registered with; operators' until they say
    removed: float | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Something that someone did."""

    time: float  # wall clock
    who: str  # name of an identity
    address: str  # that the request came from; "" where nobody's did
    did: str
    id: int = 0  # ascends; given by the journal
