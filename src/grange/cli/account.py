"""What operators do with agents: `grange agent new`, `list`, `tags` and so on."""

import click
from rich.table import Table

from grange.cli import options
from grange.cli.text import console, moment, print_json, print_table
from grange.client.account_models import AccountView
from grange.client.accounts import AccountClient
from grange.client.models import PauseRequest
from grange.errors import PeerError

_AGENT = click.argument("agent")


class AgentCommands(click.Group):
    """Takes the agent before the command as well: ``grange agent ci-3 password new``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if len(args) > 1 and args[0] not in self.commands and args[1] in self.commands:
            args = [args[1], args[0], *args[2:]]
        return super().resolve_command(ctx, args)


@click.command()
@click.argument("name")
@click.option("--tag", "tags", multiple=True, help="Build also what carries this tag; repeatable.")
@options.JSON
@options.URL
def new(*, name: str, tags: tuple[str, ...], as_json: bool, url: str) -> None:
    """Make an agent an account, and print its UUID."""
    with AccountClient(url) as client:
        made = client.new_agent(name, tags)
    if as_json:
        print_json(made)
        return
    click.echo(f"next: grange agent {name} password new > password-file", err=True)
    click.echo(made.id)


@click.command()
@_AGENT
@click.argument("action", type=click.Choice(["new"]), default="new")
@options.JSON
@options.URL
def password(*, agent: str, action: str, as_json: bool, url: str) -> None:
    """Make AGENT another password and print it. It is told this once.

    Earlier ones stay good until `grange token revoke`.
    """
    assert action == "new"
    with AccountClient(url) as client:
        answer = client.new_password(agent)
    if as_json:
        print_json(answer)
    else:
        click.echo(answer.password)


@click.command("list")
@options.JSON
@options.URL
def list_accounts(*, as_json: bool, url: str) -> None:
    """List the agents that may join, whether they are here or not."""
    with AccountClient(url) as client:
        answer = client.accounts()
    if as_json:
        print_json(answer)
        return
    print_table(("id", "name", "state", "tags", "since"), map(_row, answer))


def _row(one: AccountView) -> tuple[str, ...]:
    since = f"{moment(one.created)} by {one.registered_by}"
    return one.id, one.name, _state(one), ", ".join(one.tags), since


@click.command()
@_AGENT
@options.JSON
@options.URL
def show(*, agent: str, as_json: bool, url: str) -> None:
    """Show an agent's account; `grange agents` tells what it offers and does."""
    with AccountClient(url) as client:
        answer = client.account(agent)
    _tell(answer, as_json=as_json)


@click.command()
@_AGENT
@click.argument("tags", nargs=-1)
@click.option("--none", "is_none", is_flag=True, help="Take all of them away.")
@options.JSON
@options.URL
def tags(*, agent: str, tags: tuple[str, ...], is_none: bool, as_json: bool, url: str) -> None:
    """Give AGENT these tags, in the place of those it was given before; without any, show it."""
    if tags and is_none:
        raise PeerError("say tags or --none, not both")
    with AccountClient(url) as client:
        answer = client.set_tags(agent, tags) if tags or is_none else client.account(agent)
    _tell(answer, as_json=as_json)


@click.command()
@_AGENT
@click.option("--reason", default="", help="For people who look.")
@options.JSON
@options.URL
def pause(*, agent: str, reason: str, as_json: bool, url: str) -> None:
    """Let AGENT finish what it has, and give it nothing new."""
    with AccountClient(url) as client:
        found = client.account(agent)
        client.pause(PauseRequest(agent=found.id, reason=reason))
        answer = client.account(found.id)
    _tell(answer, as_json=as_json)


@click.command()
@_AGENT
@options.JSON
@options.URL
def resume(*, agent: str, as_json: bool, url: str) -> None:
    """Give AGENT work again."""
    with AccountClient(url) as client:
        found = client.account(agent)
        client.resume(PauseRequest(agent=found.id))
        answer = client.account(found.id)
    _tell(answer, as_json=as_json)


@click.command()
@_AGENT
@options.JSON
@options.URL
def remove(*, agent: str, as_json: bool, url: str) -> None:
    """Hang up on AGENT and never let it in again; its passwords are revoked."""
    with AccountClient(url) as client:
        gone = client.remove_agent(agent)
    if as_json:
        print_json(gone)
        return
    click.echo(f"removed agent {gone.id} ({gone.name})")


ALL = (new, password, list_accounts, show, tags, pause, resume, remove)


def _tell(account: AccountView, *, as_json: bool) -> None:
    if as_json:
        print_json(account)
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("agent", account.name)
    grid.add_row("id", account.id)
    grid.add_row("state", _state(account))
    grid.add_row("tags", ", ".join(account.tags) or "none")
    grid.add_row("since", f"{moment(account.created)} by {account.registered_by}")
    console().print(grid)


def _state(account: AccountView) -> str:
    why = account.pause_reason if account.is_paused else account.detail
    word = account.state
    if account.is_paused and word != "paused":  # a pause lasts while it is away, or drains
        word += ", paused"
    return f"{word}: {why}" if why else word
