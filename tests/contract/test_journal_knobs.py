"""What a journal keeps of operators' rulings and of what projects used."""

from dataclasses import replace

from grange.ports import Rulings
from grange.scheduler.effects import (
    JournalEffect,
    SaveAgentRule,
    SaveBuildFinished,
    SaveBuildPriority,
    SaveBuildReopened,
    SavePause,
    SaveUses,
)
from grange.scheduler.facts import NO_AGENT_RULE, AgentId, AgentRule, Cause, Outcome
from tests.contract.journal_kinds import JournalKind, add, build, drv

PAUSED = AgentRule(("kind=fast", "site=north"), True, "new disk; it's “slow”")


async def test_rulings_come_back(kind: JournalKind) -> None:
    effects: list[JournalEffect] = [
        SaveAgentRule(AgentId("a"), replace(PAUSED, is_paused=False)),
        SavePause(None, "noon", 5.0),
        SavePause("p", "", 6.0),
        SavePause("farm", "a project of that name", 7.0),
        SaveAgentRule(AgentId("a"), PAUSED),
    ]
    assert (await kind.journal.recover()).rulings == Rulings()
    await kind.journal.commit(effects)
    await kind.journal.commit(effects)  # twice is once
    recovered = await (await kind.reopen()).recover()
    assert recovered.rulings == Rulings(
        agents=((AgentId("a"), PAUSED),),
        farm_pause="noon",
        project_pauses=(("farm", "a project of that name"), ("p", "")),
    )
    assert recovered.clock_s == 7.0


async def test_what_was_ruled_can_be_taken_back(kind: JournalKind) -> None:
    await kind.journal.commit(
        [SavePause(None, "x", 1.0), SavePause("p", "y", 1.0), SaveAgentRule(AgentId("a"), PAUSED)]
    )
    back: list[JournalEffect] = [
        SavePause(None, None, 2.0),
        SavePause("p", None, 2.0),
        SavePause("never", None, 2.0),
        SaveAgentRule(AgentId("a"), NO_AGENT_RULE),
    ]
    await kind.journal.commit(back)
    rulings = (await (await kind.reopen()).recover()).rulings
    assert (rulings.farm_pause, rulings.project_pauses) == (None, ())
    assert all(rule == NO_AGENT_RULE for _, rule in rulings.agents)


async def test_the_last_uses_are_kept_and_no_others(kind: JournalKind) -> None:
    await kind.journal.commit([SaveUses((("p", 7.5), ("q", 1e9)), 10.0)])
    await kind.journal.commit([SaveUses((("p", 9.25),), 20.0)])
    recovered = await (await kind.reopen()).recover()
    rulings = recovered.rulings
    assert (rulings.uses, rulings.uses_at) == ((("p", 9.25),), 20.0)
    assert recovered.clock_s == 20.0  # else the next life could begin before what it recalls
    await kind.journal.commit([SaveUses((), 30.0)])
    assert (await kind.journal.recover()).rulings.uses == ()


async def test_priorities_and_times_of_builds_are_kept(kind: JournalKind) -> None:
    await add(kind.journal, drv("a"))
    deferred = replace(build(1, "a"), not_before=2e9, priority=3)
    (record,) = await kind.journal.add_builds([deferred])
    assert (record.priority, record.not_before) == (3, 2e9)
    await kind.journal.commit(
        [SaveBuildPriority(deferred.id, 1), SaveBuildPriority(deferred.id, -40)]
    )
    (found,) = (await (await kind.reopen()).recover()).builds
    assert (found.priority, found.not_before) == (-40, 2e9)


async def test_a_retry_may_wait(kind: JournalKind) -> None:
    await add(kind.journal, drv("a"))
    wanted = build(1, "a")
    await kind.journal.add_builds([wanted])
    cause = Cause(Outcome.CANCELLED, "by me")
    await kind.journal.commit([SaveBuildFinished(wanted.id, Outcome.CANCELLED, cause, 5.0)])
    await kind.journal.commit([SaveBuildReopened(wanted.id, 3e9)])
    found = await (await kind.reopen()).build(wanted.id)
    assert found is not None
    assert (found.finished, found.not_before) == (None, 3e9)
