"""`grange capacity`: pools, slots and reservations, of a farm or of an autoscaler alone."""

from typing import Final

import click

from grange.cli.lazy import Entry, LazyGroup

_COMMANDS: Final = {
    "status": Entry("capacity_look", "status", "Show pools, and what is wrong."),
    "slots": Entry("capacity_look", "slots", "List slots: state, age, sessions, price."),
    "reservations": Entry("capacity_look", "reservations", "List reservations."),
    "events": Entry("capacity_look", "events", "List what happened, the newest first."),
    "explain": Entry("capacity_look", "explain", "Say why a pool, slot or reservation is so."),
    "orphans": Entry("capacity_look", "orphans", "List instances that no slot owns."),
    "cost": Entry("capacity_look", "cost", "Show what it costs, now and in this month."),
    "reserve": Entry("capacity_reserve", "reserve", "Reserve places, and hold them meanwhile."),
    "release": Entry("capacity_reserve", "release", "Give reservations back."),
    "drain": Entry("capacity_say", "drain", "Let slots finish their work, and end them."),
    "undrain": Entry("capacity_say", "undrain", "End a drain or a quarantine."),
    "terminate": Entry("capacity_say", "terminate", "End slots' instances at once."),
    "quarantine": Entry("capacity_say", "quarantine", "Keep slots for a look, without work."),
    "prewarm": Entry("capacity_say", "prewarm", "Have slots ready for a while."),
    "pause": Entry("capacity_say", "pause", "Launch nothing more: of a pool, or at all."),
    "resume": Entry("capacity_say", "resume", "End a pause, and what failures hold back."),
    "check-config": Entry("capacity_check", "check_config", "Say what is wrong with a file."),
    "reconcile-now": Entry("capacity_say", "reconcile_now", "Look, plan and act at once."),
    "haproxy-config": Entry("wiring", "haproxy_config_command", "Print HAProxy's configuration."),
    "nix-machines": Entry("wiring", "nix_machines", "Print what a client of Nix needs."),
    "user-data": Entry("wiring", "user_data_command", "Print what new instances start with."),
    "simulate": Entry("simulate", "simulate", "Say what a trace would cost, and who would wait."),
}


@click.group(
    cls=LazyGroup,
    entries=_COMMANDS,
    epilog="It is found by --url, else GRANGE_CAPACITY_URL, else at the socket of an autoscaler on "
    "this machine, else where GRANGE_URL says that the farm is.",
)
def capacity() -> None:
    """Elastic capacity: slots, who has them, what they cost, and what is wrong."""
