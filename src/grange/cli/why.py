"""`grange why`."""

import click

from grange.cli import options
from grange.cli.ids import find_step_or_build
from grange.cli.text import STYLES, console, print_json, step_name
from grange.client.api import GrangeClient
from grange.client.models import BuildView


@click.command()
@click.argument("what", metavar="BUILD|STEP|DRV")
@options.JSON
@options.URL
def why(*, what: str, as_json: bool, url: str) -> None:
    """Say why a step, or whatever a build waits for, is not running."""
    with GrangeClient(url) as client:
        found = find_step_or_build(client, what)
        if isinstance(found, BuildView):
            answers = client.why_build(found.id)
        else:
            answers = [client.why_step(found.id)]
    if as_json:
        print_json(answers)
        return
    screen = console()
    if isinstance(found, BuildView) and not answers:
        ended = f"it has ended: {found.outcome}" if found.outcome else "nothing holds it up"
        screen.print(f"{step_name(found.drv_path)}: {ended}")
    for each in answers:
        screen.print(f"{step_name(each.drv_path)} (step {each.step})", style="bold", end=": ")
        screen.print(each.state.value, style=STYLES[each.state])
        screen.print(f"  {each.answer}", soft_wrap=True)
        for line in each.details:
            screen.print(f"  - {line}", style="dim", soft_wrap=True)
