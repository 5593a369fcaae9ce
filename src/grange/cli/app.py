"""The command `grange`, and how any error leaves it.

Exit codes: 0 done, 1 a build failed, 2 the request was wrong, 3 the farm or the world is at fault,
130 interrupted.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from grange import errors

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True)
class _Entry:
    module: str
    name: str
    summary: str


# Where each command is. Its module, and with it HTTP and tables, is imported when it is called.
_COMMANDS: Final = {
    "build": _Entry("build", "build", "Build derivations or Nix expressions, and show progress."),
    "list": _Entry("builds", "list_builds", "List builds, the newest first."),
    "show": _Entry("builds", "show", "Show a build and its steps."),
    "log": _Entry("log", "log", "Print the log of a build or step."),
    "why": _Entry("why", "why", "Say why something is not running."),
    "cancel": _Entry("builds", "cancel", "Stop builds."),
    "retry": _Entry("builds", "retry", "Try failed builds again."),
    "priority": _Entry("knobs", "priority", "Raise or lower the priority of a build."),
    "projects": _Entry("knobs", "projects", "List projects: shares, quotas and use."),
    "pause": _Entry("knobs", "pause", "Begin nothing more: at all, of a project, on an agent."),
    "pauses": _Entry("knobs", "pauses", "List what is paused."),
    "resume": _Entry("knobs", "resume", "End a pause."),
    "hooks": _Entry("hooks", "hooks", "List hooks, and see to what they failed to take."),
    "status": _Entry("farm", "status", "Show how the farm is doing."),
    "agents": _Entry("farm", "agents", "List the agents and what they do."),
    "capacity": _Entry("capacity", "capacity", "Look at and steer elastic capacity."),
    "collect": _Entry("retention", "collect", "Delete from the cache what nothing keeps."),
    "pin": _Entry("retention", "pin", "Keep a path or a build."),
    "pins": _Entry("retention", "pins", "List what is pinned."),
    "unpin": _Entry("retention", "unpin", "Let go of a pin."),
    "token": _Entry("token", "token", "Make, list and revoke tokens."),
    "whoami": _Entry("token", "whoami", "Say who the farm takes you for."),
    "audit": _Entry("token", "audit", "Show who did what."),
    "serve": _Entry("serve", "serve", "Run a farm: coordinator, cache and web."),
    "agent": _Entry("agent", "agent", "Run agents, and say who may be one."),
    "cache": _Entry("cache", "cache", "Serve a binary cache alone, without a farm."),
    "db": _Entry("db", "db", "Migrate, check and move the farm's journal."),
    "store": _Entry("store", "store", "Bring the cache's stores level."),
    "key": _Entry("key", "key", "Make signing keys."),
}


class _Commands(click.Group):
    """The commands of `_COMMANDS`, in that order."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (entry := _COMMANDS.get(cmd_name)) is None:
            return None
        command = getattr(import_module(f"grange.cli.{entry.module}"), entry.name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])

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
