"""How the farm and its agents are doing."""

import time

from fastapi import APIRouter

from grange import __version__
from grange.client.models import AgentView, Status
from grange.coordinator.farm import Farm
from grange.identity import Role
from grange.web.rights import needs
from grange.web.views import Views, step_state


def farm_calls(api: APIRouter, farm: Farm, views: Views) -> None:
    counted: tuple[float, dict[str, int]] = (0.0, {})

    @api.get("/status", dependencies=[needs(Role.READ)])
    async def status() -> Status:
        """How the farm is doing. Steps are counted at most once a second."""
        nonlocal counted
        core = views.core
        if time.monotonic() - counted[0] > 1 or len(core.steps) < 10_000:
            counts: dict[str, int] = {}
            for step in core.steps.values():
                phase = step.attempts[-1].phase if step.attempts else None
                state = step_state(step.state, phase).value
                counts[state] = counts.get(state, 0) + 1
            counted = time.monotonic(), counts
        connected = [agent for agent in core.agents.values() if agent.is_connected]
        leader = farm.leadership.leader()
        trouble = [*farm.trouble(), *farm.hooks.trouble()]
        if leader is None:
            trouble.append("no coordinator leads; one takes over as soon as the lease has ended")
        trouble += [
            f"{a.spec.name}: {said}" for a in connected if (said := a.refusal or a.aside_reason)
        ]
        if core.pause is not None:
            reason = f" ({core.pause})" if core.pause else ""
            trouble.append(f"the farm is paused{reason}; `grange resume` lets it go on")
        if core.steps and not core.agents:
            trouble.append("steps wait, and no agent is connected")
        return Status(
            version=__version__,
            store_dir=farm.settings.store_dir.root,
            public_keys=farm.public_keys,
            cache_url=farm.settings.cache_url,
            started=farm.started,
            role="leader" if farm.is_leading else "standby",
            leader=leader.url if leader is not None else "",
            epoch=leader.epoch if leader is not None else 0,
            builds_unfinished=len(core.builds),
            steps=counted[1],
            agents_connected=len(connected),
            places=sum(agent.spec.max_jobs for agent in connected),
            places_used=sum(min(a.occupied, a.spec.max_jobs) for a in connected),
            uploads_pending=farm.deliveries.pending,
            journal=farm.loop.trouble or "ok",
            trouble=trouble,
        )

    @api.get("/agents", dependencies=[needs(Role.READ)])
    async def agents() -> list[AgentView]:
        """The agents that are here, or were until their lease ends."""
        return [views.agent(agent) for agent in views.core.agents.values()]
