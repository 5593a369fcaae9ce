"""Events for hooks, written in the transaction that makes them true.

What a hook has to know of a build, a step or an agent is read in that transaction too: it stays
as it was, whatever becomes of them until the hook is told.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grange.db.rows import Row, read_agent, read_outputs
from grange.db.script import Script, ask, change
from grange.ports import FarmEvent, NewBuild
from grange.scheduler.effects import SaveFarmEvent
from grange.scheduler.facts import BuildId, Cause, EventKind, checked, is_check

Facts = dict[str, Any]


class _Known:
    """What the journal knows of all that a batch of events names."""

    def __init__(self, builds: Iterable[Row], steps: Iterable[Row], agents: Iterable[Row]) -> None:
        self.builds: Mapping[str, Facts] = {row[0]: _build(row) for row in builds}
        self.steps: Mapping[int, Facts] = {row[0]: _step(row) for row in steps}
        self.agents: Mapping[str, Facts] = {id_: _agent(spec) for id_, spec in agents}

    def row(self, event: SaveFarmEvent) -> Row:
        build = self.builds.get(event.build or "")
        body: Facts = {}
        if build is not None:
            body["build"] = build
        if event.step is not None:
            step = self.steps.get(checked(event.step), {})
            body["step"] = {**step, "is_check": is_check(event.step)}
        if event.agent is not None:
            body["agent"] = self.agents.get(event.agent, {"id": event.agent})
        if event.attempt is not None:
            body["attempt"] = event.attempt
        if event.outcome is not None:
            body["outcome"] = event.outcome.value
        if event.cause is not None:
            body["cause"] = self._cause(event.cause)
        if event.message:
            body["message"] = event.message
        if event.kind is EventKind.INPUTS_MISSING:
            body["missing"] = list(event.missing)
            rebuilt = [self.steps.get(step, {"id": step}) for step in event.rebuilt]
            body["rebuilt"] = rebuilt
        # A step may count for another project than the build it is told with.
        project = event.project if build is None else build["project"]
        lane = event.build or event.agent or f"step {event.step}"
        return event.kind.value, event.now, str(lane), project, json.dumps(body)

    def _cause(self, cause: Cause) -> Facts:
        facts: Facts = {"outcome": cause.outcome.value, "message": cause.message}
        if cause.step is not None:
            facts["step"] = self.steps.get(checked(cause.step), {"id": checked(cause.step)})
        if cause.attempt is not None:
            facts["attempt"] = cause.attempt
        if cause.limit is not None:
            facts["limit"] = cause.limit
        return facts


def write_events(events: Sequence[SaveFarmEvent]) -> Script[None]:
    """Give them their ids, in order."""
    if not events:
        return
    builds = {str(event.build) for event in events if event.build is not None}
    agents = {str(event.agent) for event in events if event.agent is not None}
    named = [event.step for event in events if event.step is not None]
    named += [e.cause.step for e in events if e.cause is not None and e.cause.step is not None]
    named += [step for event in events for step in event.rebuilt]
    known = _Known(
        (yield from ask("event_builds", sorted(builds))) if builds else [],
        (yield from ask("event_steps", sorted({checked(each) for each in named}))) if named else [],
        (yield from ask("event_agents", sorted(agents))) if agents else [],
    )
    ((last,),) = yield from ask("last_event")
    rows = [(last + nth, *known.row(event)) for nth, event in enumerate(events, 1)]
    yield from change("add_event", rows)
    yield from ask("set_last_event", last + len(rows))


def write_submitted(builds: Sequence[NewBuild], known: Iterable[BuildId]) -> Script[None]:
    """Tell of those of `builds` that are not `known`, each once."""
    new = {build.id: build for build in builds}
    for id_ in known:
        new.pop(id_, None)
    yield from write_events(
        [
            SaveFarmEvent(EventKind.BUILD_SUBMITTED, build.now, build.id, build.project)
            for build in new.values()
        ]
    )


def read_event(row: Row) -> FarmEvent:
    id_, kind, at, lane, project, body = row
    return FarmEvent(id_, EventKind(kind), at, lane, project, json.loads(body))


def _build(row: Row) -> Facts:
    id_, drv_path, outputs, project, priority, tags, submitted_by, created, is_check_ = row
    return {
        "id": id_,
        "drv_path": drv_path,
        "outputs": dict(read_outputs(outputs)),
        "project": project,
        "priority": priority,
        "tags": json.loads(tags),
        "submitted_by": submitted_by,
        "created": created,
        "is_check": bool(is_check_),
    }


def _step(row: Row) -> Facts:
    id_, drv_path, name, system, outputs = row
    return {
        "id": id_,
        "drv_path": drv_path,
        "name": name,
        "system": system,
        "outputs": dict(read_outputs(outputs)),
    }


def _agent(text: str) -> Facts:
    spec = read_agent(text)
    return {
        "id": spec.id,
        "name": spec.name,
        "systems": list(spec.systems),
        "features": list(spec.features),
        "tags": list(spec.tags),
    }
