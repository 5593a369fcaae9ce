"""`grange token`, `grange whoami` and `grange audit`."""

import time
from typing import Final

import click
from rich.text import Text

from grange.cli import options
from grange.cli.knobs import moment
from grange.cli.text import duration, print_json, print_table
from grange.cli.text import moment as shown_moment
from grange.client.account_models import CredentialView, NewTokenRequest
from grange.client.accounts import AccountClient

EXPIRES: Final = click.option(
    "--expires",
    callback=moment,
    metavar="TIME",
    help="No good from then on: 2030-01-31T22:00, or +90d from now [default: never].",
)


@click.group(short_help="Make, list and revoke tokens.")
def token() -> None:
    """Tokens say who a person or program is, and what they may do."""


@token.command()
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(["read", "submit", "import", "operate", "administer"]),
    help="A right; may be repeated [default: read and submit].",
)
@click.option(
    "--project",
    "projects",
    multiple=True,
    help="Submit only to this project, and change its builds alone; may be repeated.",
)
@click.option("--registration", is_flag=True, help="For agents that register themselves with it.")
@click.option("--tag", "tags", multiple=True, help="Of agents that register with it; repeatable.")
@click.option("--uses", type=click.IntRange(min=1), help="So many agents may register with it.")
@EXPIRES
@options.JSON
@options.URL
def new(
    *,
    name: str,
    roles: tuple[str, ...],
    projects: tuple[str, ...],
    registration: bool,
    tags: tuple[str, ...],
    uses: int | None,
    expires: float,
    as_json: bool,
    url: str,
) -> None:
    """Make a token and print it. It is told this once: nobody can look it up again."""
    if registration and (roles or projects):
        raise click.UsageError("a token to register with has neither roles nor projects")
    if not registration and (tags or uses):
        raise click.UsageError("--tag and --uses are for --registration")
    wanted = NewTokenRequest(
        name=name,
        kind="registration" if registration else "token",
        roles=[] if registration else list(roles or ("read", "submit")),
        projects=list(projects) or None,
        tags=list(tags),
        uses_max=uses,
        expires_s=max(1, round(expires - time.time())) if expires else None,
    )
    with AccountClient(url) as client:
        answer = client.new_token(wanted)
    if as_json:
        print_json(answer)
        return
    click.echo(f"token {answer.credential.id}; keep it now, it is not told again:", err=True)
    click.echo(answer.token)


@token.command("list")
@click.option("--all", "is_all", is_flag=True, help="Those that are no good any more, too.")
@options.JSON
@options.URL
def list_tokens(*, is_all: bool, as_json: bool, url: str) -> None:
    """List tokens and agents' passwords, without their secrets."""
    with AccountClient(url) as client:
        answer = client.tokens()
    found = [each for each in answer if is_all or not _end(each)]
    if as_json:
        print_json(found)
        return
    columns = ("id", "kind", "name", "may", "made", "last used", "ends")
    print_table(columns, (_row(each) for each in found))


@token.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@options.JSON
@options.URL
def revoke(*, ids: tuple[str, ...], as_json: bool, url: str) -> None:
    """Make tokens or passwords no good, at once and for ever."""
    gone = []
    with AccountClient(url) as client:
        for each in ids:
            gone.append(client.revoke(each))
            if not as_json:
                click.echo(f"revoked the {gone[-1].kind} {gone[-1].name} ({gone[-1].id})")
    if as_json:
        print_json(gone)


@click.command()
@options.JSON
@options.URL
def whoami(*, as_json: bool, url: str) -> None:
    """Say who the farm takes you for, and what you may do."""
    with AccountClient(url) as client:
        answer = client.whoami()
    if as_json:
        print_json(answer)
        return
    where = "" if answer.projects is None else f" in {', '.join(answer.projects) or 'no project'}"
    click.echo(f"{answer.name}: {', '.join(answer.roles) or 'nothing'}{where}")


@click.command()
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--before", type=int, metavar="ID", help="Only what is older than this entry.")
@options.JSON
@options.URL
def audit(*, limit: int, before: int | None, as_json: bool, url: str) -> None:
    """Show who did what, the newest first."""
    with AccountClient(url) as client:
        answer = client.audit(limit=limit, before=before)
    if as_json:
        print_json(answer)
        return
    rows = [
        (str(each.id), shown_moment(each.time), each.who, each.address, each.did) for each in answer
    ]
    print_table(("id", "when", "who", "from", "did"), rows)


def _end(one: CredentialView) -> str:
    """Why it is no good any more; "" where it is good."""
    if one.revoked is not None:
        return "revoked"
    return "expired" if one.expires is not None and one.expires <= time.time() else ""


def _row(one: CredentialView) -> tuple[str | Text, ...]:
    may = ", ".join(one.roles)
    if one.projects is not None:
        may += f" in {', '.join(one.projects) or 'no project'}"
    if one.kind == "registration":
        may = f"register {one.uses_max - one.uses} more" if one.uses_max else "register agents"
        may += "".join(f" #{tag}" for tag in one.tags)
    used = "never" if one.last_used is None else f"{duration(time.time() - one.last_used)} ago"
    ends = "" if one.expires is None else shown_moment(one.expires)
    made = f"{shown_moment(one.created)} by {one.created_by}"
    return one.id, one.kind, one.name, may, made, used, Text(_end(one) or ends)
