"""Who asks, and what they may: resolved once from a credential, and carried with the request."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from grange.errors import ForbiddenError
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

    def demand(self, role: Role) -> None:
        """Raises ForbiddenError without `role`."""
        if not self.may(role):
            raise ForbiddenError(
                f"{self.name} has no right to {role.value}; ask whoever runs this farm for a token "
                f"with the role {role.value!r}"
            )

    def demand_project(self, project: str) -> None:
        """Raises ForbiddenError where it may not submit to `project`."""
        self.demand(Role.SUBMIT)
        if self.projects is not None and project not in self.projects:
            raise ForbiddenError(
                f"{self.name} may submit to {', '.join(sorted(self.projects))}, not to {project}"
            )


ANONYMOUS: Final = Identity("anonymous", frozenset())
