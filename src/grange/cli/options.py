"""Options that several commands share."""

from typing import Final

import click

from grange.client.api import DEFAULT_URL

URL: Final = click.option(
    "--url",
    envvar="GRANGE_URL",
    default=DEFAULT_URL,
    show_default=True,
    show_envvar=True,
    help="The farm.",
)
JSON: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
