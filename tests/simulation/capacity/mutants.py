"""Bugs planted in the core of capacity: each must be caught, or the oracles are too weak."""

from grange.capacity import (
    adoption,
    budget,
    claims,
    draining,
    launching,
    look,
    orders,
    packing,
    plan,
    recall,
)
from grange.capacity.memory import Memory
from tests.simulation.mutants import Mutant

MUTANTS = (
    Mutant(
        "a new token for each call",
        launching,
        "resume",
        "seat.retry_at, seat.asked_at",
        "memory.amend(seat, token=seat.slot.token[::-1]); seat.retry_at, seat.asked_at",
    ),
    Mutant("tokens without a generation", launching, "token_of", "{seat.slot.generation}", ""),
    Mutant(
        "unknown outcomes thought failures",
        launching,
        "_refused",
        'doubt(memory, seat, f"{failure}: {event.message}")',
        'vacate(memory, seat, "no")',
    ),
    Mutant("unknown launches never asked again", launching, "resume", "memory.act(", "id("),
    Mutant(
        "dead replays believed", launching, "_launched", "InstanceState.TERMINATED", "'terminated?'"
    ),
    Mutant("no back-off", launching, "_back_off", "off.until = ", "_ = "),
    Mutant("on demand is but a wish", packing.Places, "take", "if kind.is_on_demand", "if False"),
    Mutant("leases beyond capacity", packing.Places, "put", "- seat.busy", ""),
    Mutant("leases on any slot", packing.Places, "put", "seat.is_usable", "seat.slot.instance"),
    Mutant(
        "leases never expire",
        claims,
        "expire",
        'end(memory, held, ReservationState.EXPIRED, "its lease was not renewed")',
    ),
    Mutant("renewals do nothing", claims, "renew", "held.lease_until = ", "_ = "),
    Mutant(
        "releases do nothing",
        claims,
        "release",
        'end(memory, held, ReservationState.RELEASED, "")',
    ),
    Mutant(
        "the lost are not told",
        claims,
        "lose",
        "end(memory, memory.held[id_], ReservationState.LOST, reason)",
    ),
    Mutant("places are never freed", claims, "end", "seat.used -= places"),
    Mutant("old addresses stay in service", look, "_keep_out", "memory.act(", "id("),
    Mutant(
        "at once in service", look, "_serve_server", "ServerMode.DRAIN, s", "ServerMode.READY, s"
    ),
    Mutant("whoever passes the checks", look, "_is_still_at", "seen == seat.slot.address", "True"),
    Mutant(
        "restarts are not healed",
        look,
        "_serve_server",
        "server.mode is ServerMode.MAINTENANCE or not is_ours",
        "False",
    ),
    Mutant("drained by leases alone", look, "_quiet", "if seat.is_empty", "if not seat.leases"),
    Mutant(
        "reloads hide nothing", look, "_quiet", "memory.now < seat.blurred_until", "False", seed=69
    ),
    Mutant("orphans are left alone", adoption, "_reap", "memory.act(do.T", "id(do.T"),
    Mutant("terminated but once", look, "_see_off", "memory.act(do.T", "id(do.T"),
    Mutant(
        "one list without it and it is gone",
        look,
        "_is_alive",
        "seat.missing < MISSING_LOOKS or",
        "not",
    ),
    Mutant("no term to boot", look, "watch", "in_state_s >= terms.boot_s", "False"),
    Mutant("cooled for ever", look, "watch", "memory.now >= seat.cool_until", "False"),
    Mutant(
        "nothing found by its tag",
        adoption,
        "_claimed",
        "not is_asked and not is_forgotten",
        "True",
    ),
    Mutant(
        "starting slots do not count",
        plan,
        "_grow",
        "supply.free + len(supply.coming) * capacity",
        "0",
    ),
    Mutant(
        "launched beside what drains",
        plan,
        "_grow",
        "supply.idle_drained and max(n, n_least) > 0",
        "0",
    ),
    Mutant("idle for ever", plan, "_is_idle", "memory.now >= due", "False"),
    Mutant("min is forgotten", plan, "_shrink", "left < pool.pool.min", "False"),
    Mutant("budgets are ignored", budget, "objection", "rate > hourly + 1e-9", "False"),
    Mutant("unknown demand is none", plan, "plan", "memory.needs is not None", "True"),
    Mutant("killed when drained", draining, "drain", "until = memory.now + term_s", "until = 0.0"),
    Mutant("nothing is recalled", recall, "recall", "_seat(memory, slot)"),
    Mutant("intents are forgotten", recall, "_seat", "seat.retry_at = memory.now"),
    Mutant("quarantine ignored", packing.Places, "put", "seat.is_usable", "seat.is_serving"),
    Mutant(
        "warned, and nothing done",
        orders,
        "notice",
        '{text}, says {said.source}", left_s',
        '{text}", 9e9',
    ),
    Mutant("acts before saves", Memory, "take", "[*saves, *self._acts", "[*self._acts, *saves"),
)
