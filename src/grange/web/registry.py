"""The registry beside the rest of a farm: who may pull, errors as whoever asks reads them, and what
registries elsewhere go by."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import Scope

from grange.client.image_models import RegistrySettings, SourceSettings
from grange.errors import ForbiddenError, GrangeError, UnauthenticatedError
from grange.identity import ANONYMOUS_NAME, Identity, Role
from grange.images.settings import ImageSettings
from grange.registry.app import Check, RegistryOptions
from grange.registry.doors import Images
from grange.registry.refusals import refusal
from grange.registry.requests import ROOT
from grange.web.answers import problem
from grange.web.rights import CALLER, needs


@dataclass(frozen=True, slots=True)
class RegistryParts:
    """What a coordinator has for its registry."""

    images: Images
    options: RegistryOptions
    settings: Callable[[], ImageSettings]  # as they are now


def registry_calls(api: APIRouter, parts: RegistryParts) -> None:
    """For registries that stand beside this one."""

    @api.get("/images/settings", dependencies=[needs(Role.READ)])
    async def settings() -> RegistrySettings:
        """By what images are looked up; asked for now and then, for it may change."""
        now = parts.settings()
        return RegistrySettings(
            sources=[
                SourceSettings(name=name, settings=source.settings)
                for name, source in now.sources.items()
            ],
            fresh_s=now.fresh_s,
            wait_s=parts.options.wait_s,
            is_zstd_allowed=now.is_zstd_allowed,
        )


def may_pull(*, is_open: bool) -> Check:
    """Who has the right to read, or with `is_open` everyone who shows nothing wrong."""

    def check(scope: Scope) -> None:
        who: Identity = scope[CALLER]
        if is_open or who.may(Role.READ):
            return
        if who.name == ANONYMOUS_NAME:
            raise UnauthenticatedError(
                "pulling from this farm needs a token with the right to read: log in to it with "
                "any user name, and the token as the password"
            )
        raise ForbiddenError(
            f"{who.name} has no right to read; ask whoever runs this farm for a token with the "
            "role read"
        )

    return check


def told(path: str, error: GrangeError) -> Response:
    """`error`, to whoever asked for `path`."""
    return refusal(error) if path.startswith(ROOT) else problem(error)
