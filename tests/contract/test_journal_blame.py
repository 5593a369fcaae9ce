"""What a journal keeps so that nothing is lost and the right party is blamed."""

from dataclasses import replace

from grange.ports import Journal, Unpublished
from grange.scheduler.effects import (
    JournalEffect,
    SaveAgent,
    SaveAttempt,
    SaveAttemptEnded,
    SaveAttemptRevived,
    SaveBuildFinished,
    SaveFailureForgotten,
    SaveStepDone,
    SaveStepFailed,
    SaveStepTroubled,
)
from grange.scheduler.facts import (
    NO_LIMITS,
    AttemptId,
    Cause,
    Limits,
    Outcome,
    StepId,
    Usage,
    check_of,
)
from tests.contract.journal_kinds import (
    JournalKind,
    add,
    agent,
    build,
    completed,
    drv,
    narinfo,
    path,
    saved_paths,
)

LIMITS = Limits(silent_s=60, build_s=3600, log_bytes=1 << 20, output_bytes=1 << 40)
TOO_SLOW = Cause(Outcome.TIMED_OUT, "over an hour", None, AttemptId(1), 3600)


async def test_limits_and_tries_come_back_with_the_step(kind: JournalKind) -> None:
    _, step = await add(kind.journal, drv("a"), replace(drv("b", "a"), limits=LIMITS))
    await kind.journal.commit([SaveStepTroubled(step, 1, 2, 3), SaveStepFailed(step, TOO_SLOW, 4)])
    journal = await kind.reopen()
    plain, limited = await journal.unfinished_graph([path("b.drv")])
    assert (plain.spec.limits, plain.spec.tries) == (NO_LIMITS, 0)
    assert (limited.spec.limits, limited.spec.tries) == (LIMITS, 3)
    record = (await kind.journal.steps([step]))[step]
    assert (record.limits, record.features) == (LIMITS, limited.spec.queue.features)
    assert limited.remembered == TOO_SLOW
    (shown, _) = await journal.build_closure(path("b.drv"), limit=2)
    assert shown.cause == TOO_SLOW
    await journal.commit([SaveFailureForgotten(step)])
    _, forgotten = await journal.unfinished_graph([path("b.drv")])
    assert (forgotten.spec.tries, forgotten.remembered) == (0, None)


async def test_a_build_keeps_its_limits_and_what_it_overran(kind: JournalKind) -> None:
    await add(kind.journal, drv("a"))
    wanted = replace(build(1, "a"), limits=LIMITS, is_check=True)
    (record, plain) = await kind.journal.add_builds([wanted, build(2, "a")])
    assert (record.limits, record.is_check) == (LIMITS, True)
    assert (plain.limits, plain.is_check) == (NO_LIMITS, False)
    await kind.journal.commit([SaveBuildFinished(wanted.id, Outcome.TIMED_OUT, TOO_SLOW, 5.0)])
    journal = await kind.reopen()
    found = await journal.build(wanted.id)
    assert found is not None
    assert (found.cause, found.limits, found.is_check) == (TOO_SLOW, LIMITS, True)


async def test_of_a_check_only_its_attempts_are_kept(kind: JournalKind) -> None:
    (step,) = await add(kind.journal, drv("a"))
    check = check_of(step)
    await kind.journal.commit(completed(step, 1, "a"))
    await kind.journal.commit(
        [
            SaveAttempt(AttemptId(2), check, agent().id, 10.0),
            saved_paths(check, "other"),
            SaveStepDone(check, 900.0),
            SaveStepTroubled(check, 1, 1, 1),
            SaveStepFailed(check, TOO_SLOW, 11.0),
            SaveFailureForgotten(check),
        ]
    )
    journal = await kind.reopen()
    first, second = await journal.attempts(step)
    assert (first.is_check, second.is_check, second.step) == (False, True, step)
    assert await journal.attempt(AttemptId(2)) == second
    (awaited,) = (await journal.recover()).agents
    assert awaited.attempts == ((2, check),)
    assert await journal.narinfo(path("other").hash_part) is None
    assert (await journal.steps([step]))[step].is_done
    gone = SaveAttemptEnded(AttemptId(2), check, Outcome.NOT_DETERMINISTIC, "out", Usage(), 12.0)
    await journal.commit([gone])
    assert (await journal.recover()).agents == ()


def lost(attempt: int, step: StepId, now: float = 9.0) -> SaveAttemptEnded:
    usage = Usage(build_s=3.0)
    return SaveAttemptEnded(AttemptId(attempt), step, Outcome.AGENT_LOST, "gone", usage, now)


async def test_attempts_given_up_are_recovered_while_their_steps_want_them(
    kind: JournalKind,
) -> None:
    a, b = await add(kind.journal, drv("a"), drv("b"))
    id_ = agent().id
    effects: list[JournalEffect] = [SaveAgent(agent(), 1.0)]
    effects += [SaveAttempt(AttemptId(n), step, id_, 2.0) for n, step in enumerate((a, b, a), 1)]
    await kind.journal.commit([*effects, lost(1, a), lost(3, a), lost(2, b)])
    journal = await kind.reopen()
    assert (await journal.recover()).given_up == ((1, a, id_), (2, b, id_), (3, a, id_))
    await journal.commit([SaveStepDone(a, None)])
    assert (await journal.recover()).given_up == ((2, b, id_),)


async def test_a_revived_attempt_has_not_ended(kind: JournalKind) -> None:
    (step,) = await add(kind.journal, drv("a"))
    begun = SaveAttempt(AttemptId(1), step, agent().id, 2.0)
    await kind.journal.commit([SaveAgent(agent(), 1.0), begun])
    before = await kind.journal.attempt(AttemptId(1))
    await kind.journal.commit([lost(1, step)])
    await kind.journal.commit([SaveAttemptRevived(AttemptId(1))])
    journal = await kind.reopen()
    assert await journal.attempt(AttemptId(1)) == before
    recovered = await journal.recover()
    assert [each.attempts for each in recovered.agents] == [((1, step),)]
    assert recovered.given_up == ()


async def test_attempts_keep_the_limits_that_they_were_sent_with(kind: JournalKind) -> None:
    a, b = await add(kind.journal, drv("a"), drv("b"))
    id_ = agent().id
    begun: list[JournalEffect] = [
        SaveAgent(agent(), 1.0),
        SaveAttempt(AttemptId(1), a, id_, 2.0, LIMITS),
        SaveAttempt(AttemptId(2), b, id_, 2.0),
        SaveAttempt(AttemptId(3), a, id_, 2.0, LIMITS),
    ]
    await kind.journal.commit([*begun, lost(3, a)])
    journal = await kind.reopen()
    assert dict((await journal.recover()).limits) == {1: LIMITS, 2: NO_LIMITS, 3: LIMITS}
    await journal.commit([SaveStepDone(a, None)])
    await journal.commit([lost(2, b)])
    assert dict((await journal.recover()).limits) == {1: LIMITS, 2: NO_LIMITS}


async def test_of_a_step_that_is_publishing_is_known_whose_outputs_they_are(
    kind: JournalKind,
) -> None:
    (step,) = await add(kind.journal, drv("a"))
    begun = [SaveAttempt(AttemptId(n), step, agent().id, 2.0) for n in (1, 2)]
    saved = saved_paths(step, "a")
    await kind.journal.commit([SaveAgent(agent(), 1.0), *begun, saved])
    journal = await kind.reopen()
    past = await journal.recover()
    assert past.unpublished == (Unpublished(step, saved.infos, AttemptId(1)),)
    assert [each.attempts for each in past.agents] == [((2, step),)]
    won = SaveAttemptEnded(AttemptId(1), step, Outcome.SUCCEEDED, "", Usage(), 9.0)
    await journal.commit([SaveStepDone(step, None), won])
    assert (await journal.recover()).unpublished == ()


async def test_the_last_word_about_an_attempt_in_one_commit_holds(journal: Journal) -> None:
    (step,) = await add(journal, drv("a"))
    begun = SaveAttempt(AttemptId(1), step, agent().id, 2.0)
    revived = SaveAttemptRevived(AttemptId(1))
    await journal.commit([SaveAgent(agent(), 1.0), begun, lost(1, step), revived])
    record = await journal.attempt(AttemptId(1))
    assert record is not None
    assert record.ended is None
    await journal.commit([lost(1, step, 8.0), revived, lost(1, step, 9.0)])
    record = await journal.attempt(AttemptId(1))
    assert record is not None
    assert (record.ended, record.outcome) == (9.0, Outcome.AGENT_LOST)


async def test_a_forgotten_path_makes_its_step_wanted_again(kind: JournalKind) -> None:
    journal = kind.journal
    a, b = await add(journal, drv("a", makes=("a", "a-dev")), drv("b", "a"))
    await journal.commit(completed(a, 1, "a", "a-dev"))
    await journal.commit(completed(b, 2, "b"))
    await journal.add_paths([narinfo("source", "a")], "source")
    part = path("a").hash_part
    assert await journal.narinfo(part) == narinfo("a")
    assert await journal.runtime_closure([path("source")]) == [path("a"), path("source")]
    assert await journal.forget_paths([path("a")]) == ([a], [f"{part}.narinfo"])
    for is_new in (False, True):
        opened = await kind.reopen() if is_new else journal
        assert await opened.narinfo(part) is None
        assert await opened.narinfos([path("a"), path("a-dev")]) == {
            path("a-dev"): narinfo("a-dev")
        }
        assert await opened.runtime_closure([path("source")]) == [path("source")]
        assert await opened.valid_paths([path("a"), path("a-dev"), path("b")]) == {path("b")}
        nodes = await opened.unfinished_graph([path("a.drv"), path("b.drv")])
        assert [node.spec.id for node in nodes] == [a]
    await kind.journal.commit(completed(a, 3, "a", "a-dev"))
    assert await kind.journal.valid_paths([path("a"), path("a-dev")]) == {
        path("a"), path("a-dev"),
    }  # fmt: skip


async def test_paths_that_no_step_makes_are_forgotten_and_twice_is_once(journal: Journal) -> None:
    await journal.add_paths([narinfo("source")], "source")
    alias = type(path("source"))(path("source") + "-2")
    assert await journal.forget_paths([alias]) == ([], [])
    assert await journal.valid_paths([path("source")]) == {path("source")}
    key = f"{path('source').hash_part}.narinfo"
    for _ in range(2):
        assert await journal.forget_paths([path("source")]) == ([], [key])
    assert await journal.valid_paths([path("source")]) == set()
    assert await journal.forget_paths([]) == ([], [])
