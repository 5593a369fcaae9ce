"""The command `grange`, and how any error leaves it.

Exit codes: 0 done, 1 a build failed, 2 the request was wrong, 3 the farm or the world is at fault,
130 interrupted.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from grange import errors
from grange.cli.lazy import Entry, LazyGroup

if TYPE_CHECKING:
    from grange.cli.capacity_tables import AloneFile, CapacityFile
    from grange.cli.config import AgentOptions, ServeConfig
    from grange.cli.db import JournalTools
    from grange.client.sources import LocalStore

EXIT_FAILED: Final = 1
EXIT_REQUEST: Final = 2
EXIT_OUTSIDE: Final = 3
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Adapters:
    """What the commands run and do not build themselves."""

    serve: "Callable[[ServeConfig], None]"  # returns when the farm was told to stop
    run_agent: "Callable[[AgentOptions], None]"
    local_store: "Callable[[str | None], LocalStore]"  # a chroot store's directory, or the system's
    journal_tools: "Callable[[], JournalTools]"
    # Given the file, and what reads it anew. As what follows, not for tests of other commands.
    run_autoscaler: "Callable[[AloneFile, Callable[[], AloneFile]], None] | None" = None
    # What of the outside is not as the file needs it.
    capacity_troubles: "Callable[[AloneFile | CapacityFile], list[str]] | None" = None


_COMMANDS: Final = {
    "build": Entry("build", "build", "Build derivations or Nix expressions, and show progress."),
    "list": Entry("builds", "list_builds", "List builds, the newest first."),
    "show": Entry("builds", "show", "Show a build and its steps."),
    "log": Entry("log", "log", "Print the log of a build or step."),
    "why": Entry("why", "why", "Say why something is not running."),
    "cancel": Entry("builds", "cancel", "Stop builds."),
    "retry": Entry("builds", "retry", "Try failed builds again."),
    "priority": Entry("knobs", "priority", "Raise or lower the priority of a build."),
    "projects": Entry("knobs", "projects", "List projects: shares, quotas and use."),
    "pause": Entry("knobs", "pause", "Begin nothing more: at all, of a project, on an agent."),
    "pauses": Entry("knobs", "pauses", "List what is paused."),
    "resume": Entry("knobs", "resume", "End a pause."),
    "hooks": Entry("hooks", "hooks", "List hooks, and see to what they failed to take."),
    "status": Entry("farm", "status", "Show how the farm is doing."),
    "agents": Entry("farm", "agents", "List the agents and what they do."),
    "capacity": Entry("capacity", "capacity", "Look at and steer elastic capacity."),
    "collect": Entry("retention", "collect", "Delete from the cache what nothing keeps."),
    "pin": Entry("retention", "pin", "Keep a path or a build."),
    "pins": Entry("retention", "pins", "List what is pinned."),
    "unpin": Entry("retention", "unpin", "Let go of a pin."),
    "image": Entry("image", "image", "Make container images of packages, and look into them."),
    "token": Entry("token", "token", "Make, list and revoke tokens."),
    "whoami": Entry("token", "whoami", "Say who the farm takes you for."),
    "audit": Entry("token", "audit", "Show who did what."),
    "serve": Entry("serve", "serve", "Run a farm: coordinator, cache and web."),
    "agent": Entry("agent", "agent", "Run agents, and say who may be one."),
    "autoscaler": Entry("autoscaler", "autoscaler", "Run elastic capacity alone, without a farm."),
    "cache": Entry("cache", "cache", "Serve a binary cache alone, without a farm."),
    "registry": Entry("registry", "registry", "Serve a farm's images beside its coordinator."),
    "db": Entry("db", "db", "Migrate, check and move the farm's journal."),
    "store": Entry("store", "store", "Bring the cache's stores level."),
    "key": Entry("key", "key", "Make signing keys."),
}


class _Commands(LazyGroup):
    """Tells errors as people are to read them, and exits with their code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.GrangeError as error:
            complain(str(error))
            ctx.exit(exit_code(error))
        except ValueError as error:
            if "pydantic" in sys.modules and (wrong := _wrong(error)):
                complain(wrong)
                ctx.exit(EXIT_REQUEST)
            raise
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


def _wrong(error: ValueError) -> str:
    """What a request that was never sent has wrong; "" for any other error.

    Answers of a farm are errors of ours by now: what is left is what this command line was told.
    """
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return ""
    said = error.errors(include_url=False)
    return "; ".join(
        f"{'.'.join(map(str, each['loc']))} cannot be {each['input']!r}: "
        f"{each['msg'][:1].lower()}{each['msg'][1:]}"
        for each in said
    )


def make_cli(adapters: Adapters) -> click.Group:
    """The whole command line, over these adapters."""

    @click.group(
        cls=_Commands,
        entries=_COMMANDS,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        epilog="The farm is found by --url, else GRANGE_URL, else http://127.0.0.1:7380.",
    )
    @click.version_option(package_name="grange", message="%(prog)s %(version)s")
    @click.pass_context
    def cli(ctx: click.Context) -> None:
        """Grange, an elastic build farm for Nix and Guix."""
        ctx.obj = adapters

    return cli


def exit_code(error: errors.GrangeError) -> int:
    return EXIT_REQUEST if isinstance(error, errors.PeerError) else EXIT_OUTSIDE


def complain(text: str) -> None:
    """Say in red, where the terminal has it, what went wrong."""
    is_plain = "NO_COLOR" in os.environ or not sys.stderr.isatty()
    click.secho(f"grange: {text}", err=True, fg="red", color=not is_plain)
