"""`grange status` and `grange agents`."""

import time
from typing import Final

import click
from rich.table import Table
from rich.text import Text

from grange.cli import options
from grange.cli.text import console, count, duration, moment, print_json, print_table, size
from grange.client.api import GrangeClient
from grange.client.models import AgentView

_STATE_STYLES: Final = {
    "connected": "green",
    "cut off": "bold red",
    "draining": "yellow",
    "paused": "yellow",
    "refusing": "yellow",
    "gone": "dim",
}


@click.command()
@options.JSON
@options.URL
def status(*, as_json: bool, url: str) -> None:
    """Show how the farm is doing."""
    with GrangeClient(url) as client:
        answer = client.status()
    if as_json:
        print_json(answer)
        return
    steps = [f"{number:,} {state}" for state, number in answer.steps.items() if number]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("farm", f"{url}, Grange {answer.version}, up since {moment(answer.started)}")
    if "," in url or answer.role == "standby":
        grid.add_row("leads", answer.leader or "nobody now")
    grid.add_row("builds", f"{answer.builds_unfinished:,} unfinished")
    grid.add_row("steps", ", ".join(steps) or "none under way")
    places = f"{answer.places_used} of {count(answer.places, 'place')} taken"
    grid.add_row("agents", f"{answer.agents_connected} connected, {places}")
    grid.add_row("uploads", f"{answer.uploads_pending:,} pending")
    grid.add_row("journal", Text(answer.journal, "green" if answer.journal == "ok" else "bold red"))
    grid.add_row("cache", answer.cache_url)
    grid.add_row("store", answer.store_dir)
    for key in answer.public_keys:
        grid.add_row("public key", key)
    screen = console()
    screen.print(grid)
    for line in answer.trouble:
        screen.print(Text(f"! {line}", "bold yellow"), soft_wrap=True)


@click.command()
@options.JSON
@options.URL
def agents(*, as_json: bool, url: str) -> None:
    """List the agents, what they offer and what they do."""
    with GrangeClient(url) as client:
        answer = client.agents()
    if as_json:
        print_json(answer)
        return
    if not answer:
        click.echo("No agent has joined: grange agent run.")
        return
    columns = ("agent", "state", "places", "systems", "load", "memory", "store free", "heard")
    print_table(columns, (_agent_row(agent) for agent in answer))


def _agent_row(agent: AgentView) -> tuple[str | Text, ...]:
    word = "set aside" if agent.is_set_aside else agent.state
    state = Text(word, _STATE_STYLES[agent.state])
    if agent.detail:
        state.append(f": {agent.detail}", "dim")
    offers = [*agent.systems, *agent.features]
    offers += [f"only {feature}" for feature in agent.mandatory_features]
    offers += [f"#{tag}" for tag in agent.tags]
    offers += [f"only #{tag}" for tag in agent.mandatory_tags]
    memory = size(agent.memory_bytes)
    if agent.memory_used_bytes is not None:
        memory = f"{size(agent.memory_used_bytes)} of {memory}"
    heard_s = None if agent.last_heard is None else time.time() - agent.last_heard
    return (
        agent.name,
        state,
        f"{agent.places_used} of {agent.max_jobs}",
        ", ".join(offers),
        "" if agent.load1 is None else f"{agent.load1:.2f}",
        memory,
        "" if agent.store_free_percent is None else f"{agent.store_free_percent:.0f} %",
        "" if heard_s is None else f"{duration(heard_s)} ago",
    )
