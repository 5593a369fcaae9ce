"""Whether a journal contradicts itself."""

from typing import Final

from grange.db.script import Script, ask

# What a query counts, in words for a person.
_COUNTED: Final = {
    "check_derivations_without_step": "derivations belong to steps that are not there",
    "check_derivations_without_queue": "derivations wait in queues that are not there",
    "check_derivations_without_text": "derivations have lost their text",
    "check_steps_without_derivation": "steps have no derivation to build",
    "check_outputs_without_step": "outputs belong to steps that are not there",
    "check_done_without_path": "outputs of steps that are done have no path info",
    "check_builds_without_derivation": "builds are of derivations that are not there",
    "check_builds_half_finished": "builds have an end or an outcome, and not both",
    "check_attempts_without_step": "attempts are of steps that are not there",
    "check_attempts_without_derivation": "attempts built derivations that are not there",
    "check_attempts_without_agent": "attempts ran on agents that are not there",
    "check_pins_without_build": "pins are of builds that are not there",
    "check_attempts_half_ended": "attempts have an end or an outcome, and not both",
    "check_passwords_without_account": "passwords belong to agents that have no account",
    "check_capacity_leases": "reservations are of slots that are not there",
    "check_capacity_ends": "reservations have ended and not when, or the other way round",
    "check_capacity_seats": "instances sit in a second slot too",
    "check_image_segments": "paths of image layers have lost their segments",
    "check_image_uses": "layers of images are not there",
    "check_image_documents": "images have lost their manifest or config",
    "check_image_orders": "images have a gap between their layers",
}


def check() -> Script[list[str]]:
    """What is wrong, for a person; empty where nothing is."""
    found = [f"the file is damaged: {row[0]}" for row in (yield from ask("check_file"))]
    found = [each for each in found if not each.endswith(" ok")]
    for query, words in _COUNTED.items():
        ((count,),) = yield from ask(query)
        if count:
            found.append(f"{count} {words}")
    return found
