"""What Prometheus reads. Counters count since this process began."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from grange.scheduler.core import Scheduler
from grange.scheduler.effects import SaveAttemptEnded, SaveBuildFinished
from grange.scheduler.state import State

PROJECTS_MAX: Final = 1_000  # told of: names are the submitters' own


class Metrics:
    def __init__(self) -> None:
        self._registry = self.registry = CollectorRegistry()  # others may add to it
        self._builds = Counter(
            "grange_builds_finished", "Builds by outcome", ["outcome"], registry=self._registry
        )
        self._attempts = Counter(
            "grange_attempts_ended", "Attempts by outcome", ["outcome"], registry=self._registry
        )
        self._durations = Histogram(
            "grange_build_seconds",
            "How long a build held its place",
            registry=self._registry,
            buckets=(0.01, 0.1, 1, 10, 60, 300, 1800, 7200, 36000),
        )
        self._steps = Gauge(
            "grange_steps", "Unfinished steps by state", ["state"], registry=self._registry
        )
        self._queued = Gauge(
            "grange_steps_ready",
            "Steps waiting for an agent, by what they ask of it",
            ["system", "features"],
            registry=self._registry,
        )
        self._places = Gauge(
            "grange_places", "Places of connected agents", ["state"], registry=self._registry
        )
        self._agents = Gauge("grange_agents_connected", "Agents", registry=self._registry)
        self._unfinished = Gauge("grange_builds_unfinished", "Builds", registry=self._registry)
        self._uploads = Gauge(
            "grange_uploads_pending", "Outputs built and not stored", registry=self._registry
        )

        self._project_running = self._of_projects("running", "Attempts under way")
        self._project_queued = self._of_projects("queued", "Unfinished builds")
        self._project_use = self._of_projects(
            "agent_seconds", "What it used of late, as agent-seconds that fade"
        )
        self._project_paused = self._of_projects("paused", "1 where it is paused")
        self._is_leader = Gauge(
            "grange_is_leader",
            "1 where this coordinator decides, 0 where it stands by",
            registry=self._registry,
        )

    def _of_projects(self, name: str, what: str) -> Gauge:
        return Gauge(f"grange_project_{name}", what, ["project"], registry=self._registry)

    def count(self, effect: SaveAttemptEnded | SaveBuildFinished) -> None:
        if isinstance(effect, SaveBuildFinished):
            self._builds.labels(effect.outcome.value).inc()
            return
        self._attempts.labels(effect.outcome.value).inc()
        if effect.usage.build_s is not None:
            self._durations.observe(effect.usage.build_s)

    def render(self, core: Scheduler, uploads_pending: int, *, is_leader: bool) -> bytes:
        """Prometheus' text format."""
        states = dict.fromkeys(State, 0)
        queued: dict[tuple[str, str], int] = {}
        for step in core.steps.values():
            states[step.state] += 1
            if step.state is State.READY:
                key = step.queue.system, ",".join(step.queue.features)
                queued[key] = queued.get(key, 0) + 1
        for state, number in states.items():
            if state < State.DONE:
                self._steps.labels(state.name.lower()).set(number)
        self._queued.clear()
        for (system, features), number in queued.items():
            self._queued.labels(system, features).set(number)
        connected = [agent for agent in core.agents.values() if agent.is_connected]
        places = sum(agent.spec.max_jobs for agent in connected)
        used = sum(min(agent.occupied, agent.spec.max_jobs) for agent in connected)
        self._agents.set(len(connected))
        self._places.labels("used").set(used)
        self._places.labels("free").set(places - used)
        self._unfinished.set(len(core.builds))
        self._uploads.set(uploads_pending)
        self._show_projects(core)
        self._is_leader.set(is_leader)
        return generate_latest(self._registry)

    def _show_projects(self, core: Scheduler) -> None:
        """Those with any work of late; the busiest, where there are very many."""
        found = [(*core.use(account), account) for account in list(core.accounts.values())]
        found.sort(key=lambda each: (-each[0], each[2].project))
        for gauge in (
            self._project_running,
            self._project_queued,
            self._project_use,
            self._project_paused,
        ):
            gauge.clear()
        for past_s, _, account in found[:PROJECTS_MAX]:
            self._project_running.labels(account.project).set(account.running)
            self._project_queued.labels(account.project).set(account.queued)
            self._project_use.labels(account.project).set(past_s)
            self._project_paused.labels(account.project).set(account.pause is not None)
