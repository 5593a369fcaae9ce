"""`grange capacity`: pools, slots and reservations, of a farm or of an autoscaler alone."""

import click


@click.group()
def capacity() -> None:
    """Elastic capacity: slots, who has them, what they cost, and what is wrong."""
