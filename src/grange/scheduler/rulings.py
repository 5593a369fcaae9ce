"""What operators rule: pauses, projects' shares and quotas, priorities, and tags of agents."""

from dataclasses import replace

from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler import roster, urgency
from grange.scheduler.facts import NO_AGENT_RULE
from grange.scheduler.memory import Memory


def prioritise(memory: Memory, event: on.BuildPrioritised) -> None:
    """Raise or lower a build. One that has ended is left as it was."""
    build = memory.builds.get(event.build)
    if build is None:
        return
    build.priority = event.priority
    memory.out.append(do.SaveBuildPriority(event.build, event.priority))
    urgency.rank_builds(memory, (build,))


def rule_agent(memory: Memory, event: on.AgentRuled) -> None:
    old = memory.agent_rules.get(event.agent, NO_AGENT_RULE)
    rule = old
    if event.tags is not None:
        rule = replace(rule, tags=tuple(sorted(set(event.tags))))
    if event.is_paused is not None:
        reason = event.reason if event.is_paused else ""
        rule = replace(rule, is_paused=event.is_paused, reason=reason)
    if rule == old:
        return
    memory.agent_rules[event.agent] = rule
    if rule == NO_AGENT_RULE:
        del memory.agent_rules[event.agent]
    memory.out.append(do.SaveAgentRule(event.agent, rule))
    agent = memory.agents.get(event.agent)
    if agent is not None:
        roster.heed(memory, agent, agent.said)


def rule_projects(memory: Memory, event: on.ProjectsChanged) -> None:
    memory.accounts.rule(event.rules)
    urgency.rank_builds(memory, list(memory.builds.values()))


def pause_project(memory: Memory, event: on.ProjectPaused) -> None:
    """What others want, too, goes on; so does what is begun."""
    account = memory.accounts[event.project]
    pause = event.reason if event.is_paused else None
    if pause == account.pause:
        return
    account.pause = pause
    memory.out.append(do.SavePause(event.project, pause, memory.now))
    builds = [build for build in memory.builds.values() if build.project == event.project]
    urgency.rank_builds(memory, builds)


def pause_farm(memory: Memory, event: on.FarmPaused) -> None:
    pause = event.reason if event.is_paused else None
    if pause != memory.pause:
        memory.pause = pause
        memory.out.append(do.SavePause(None, pause, memory.now))
