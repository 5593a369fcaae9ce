"""`grange capacity`: pools, slots and reservations, of a farm or of an autoscaler alone."""

from typing import Final

import click

from grange.cli.lazy import Entry, LazyGroup

_COMMANDS: Final[dict[str, Entry]] = {}


@click.group(
    cls=LazyGroup,
    entries=_COMMANDS,
    epilog="It is found by --url, else GRANGE_CAPACITY_URL, else at the socket of an autoscaler on "
    "this machine, else where GRANGE_URL says that the farm is.",
)
def capacity() -> None:
    """Elastic capacity: slots, who has them, what they cost, and what is wrong."""
