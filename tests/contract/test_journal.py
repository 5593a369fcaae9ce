"""What every journal promises. Nothing here knows of a database."""

import asyncio

import pytest

from grange.errors import JournalRefusedError, PeerError
from grange.ports import (
    Journal,
    KnownDerivation,
    NewDerivation,
    PublishedOutput,
    Recovered,
    Unpublished,
)
from grange.scheduler.effects import (
    JournalEffect,
    SaveAgent,
    SaveAttempt,
    SaveAttemptEnded,
    SaveBuildFinished,
    SaveBuildReopened,
    SaveFailureForgotten,
    SavePaths,
    SaveStepDone,
    SaveStepFailed,
    SaveStepTroubled,
)
from grange.scheduler.facts import AttemptId, Cause, Outcome, QueueKey, StepId, Usage
from tests.contract.journal_kinds import (
    BIG,
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

FAILED = Cause(Outcome.BUILD_FAILED, "exit code 1", None, AttemptId(1))


async def names(journal: Journal, *roots: str) -> list[str]:
    """What is to build for `roots`, in the order of the walk."""
    nodes = await journal.unfinished_graph([path(f"{root}.drv") for root in roots])
    return [node.drv_path.name.removesuffix(".drv") for node in nodes]


CHAIN = (drv("a"), drv("b", "a"), drv("c", "b", "a"))


# Derivations and steps


async def test_a_derivation_is_found_as_it_was_given(kind: JournalKind) -> None:
    queue = QueueKey("aarch64-linux", ("big-parallel", "kvm"), ("t",))
    given = drv("b", "a", makes=("b", "b-dev"), queue=queue)
    _, step = await add(kind.journal, drv("a"), given)
    journal = await kind.reopen()
    record = (await journal.steps([step, StepId(99)]))[step]
    assert (record.step, record.drv_path, record.outputs) == (step, given.path, given.outputs)
    assert (record.inputs, record.basic) == (given.direct_inputs, given.basic)
    assert (record.name, record.system, record.is_done) == ("b", "aarch64-linux", False)
    assert await journal.aterm(given.path) == given.aterm
    assert await journal.step_with_output(path("b-dev")) == step
    known = await journal.derivation_inputs([given.path, path("unknown.drv")])
    assert known == {given.path: KnownDerivation(given.outputs, given.modulo)}
    node = (await journal.unfinished_graph([given.path]))[-1]
    assert node.spec.queue == queue
    assert node.outputs == (path("b"), path("b-dev"))


async def test_unknown_things_are_not_found(journal: Journal) -> None:
    unknown = path("unknown.drv")
    assert await journal.steps([StepId(1)]) == {}
    assert await journal.step_of(unknown) is None
    assert await journal.step_with_output(unknown) is None
    assert await journal.aterm(unknown) is None
    assert await journal.narinfo(unknown.hash_part) is None
    assert await journal.known_derivations([unknown]) == set()
    assert await journal.valid_paths([unknown]) == set()
    assert await journal.runtime_closure([unknown]) == []
    assert await journal.build(build(1, "a").id) is None
    assert await journal.builds() == []
    assert await journal.build_closure(unknown, limit=9) == []
    assert await journal.attempts(StepId(1)) == []
    assert await journal.attempt(AttemptId(1)) is None
    assert await journal.supports(StepId(1)) == {}
    assert await journal.agents() == []
    assert await journal.recover() == Recovered((), (), (), AttemptId(1), 0.0)


async def test_derivations_are_added_once(journal: Journal) -> None:
    first = await add(journal, *CHAIN, CHAIN[0])
    assert await add(journal, *CHAIN) == first[:3]
    assert first[3] == first[0]
    assert await journal.known_derivations([CHAIN[0].path, path("z.drv")]) == {CHAIN[0].path}


async def test_a_derivation_without_its_input_is_refused_with_its_batch(journal: Journal) -> None:
    with pytest.raises(PeerError, match=r"b\.drv needs .*a\.drv"):
        await journal.add_derivations([drv("x"), drv("b", "a"), drv("a")])
    assert await journal.known_derivations([path("x.drv"), path("a.drv")]) == set()


async def test_outputs_torn_between_two_derivations_are_refused(journal: Journal) -> None:
    await add(journal, drv("a"))
    with pytest.raises(PeerError, match="outputs"):
        await journal.add_derivations([drv("other", makes=("a", "more"))])


async def test_derivations_with_the_same_outputs_share_a_step(journal: Journal) -> None:
    fetch, again = drv("fetch", makes=("source",)), drv("fetch-again", makes=("source",))
    first, second = await add(journal, fetch, again)
    assert first == second
    await add(journal, drv("user", "fetch-again"))
    assert await names(journal, "user") == ["fetch", "user"]
    assert (await journal.derivation_inputs([again.path]))[again.path].modulo == again.modulo


async def test_another_way_to_fetch_stands_in_for_one_that_failed(journal: Journal) -> None:
    tool, step = await add(journal, drv("tool"), drv("fetch", "tool", makes=("source",)))
    await journal.commit([SaveStepFailed(step, FAILED, 1.0), SaveStepTroubled(step, 2, 1)])
    assert await add(journal, drv("mirror", "tool", makes=("source",))) == [step]
    node = (await journal.unfinished_graph([path("fetch.drv")]))[-1]
    assert (node.drv_path, node.remembered) == (path("mirror.drv"), None)
    assert (node.spec.failures, node.spec.losses, node.spec.inputs) == (0, 0, (tool,))


async def test_a_stand_in_that_may_need_its_own_output_does_not_make_a_cycle(
    journal: Journal,
) -> None:
    step, curl = await add(journal, drv("bootstrap", makes=("source",)), drv("curl", "bootstrap"))
    await journal.commit([SaveStepFailed(step, FAILED, 1.0)])
    assert await add(journal, drv("by-curl", "curl", makes=("source",))) == [step]
    assert await names(journal, "by-curl", "curl") == ["bootstrap", "curl"]
    assert curl > step


# Walks


async def test_the_walk_gives_inputs_first_and_edges_between_steps(journal: Journal) -> None:
    a, b, c = await add(journal, *CHAIN)
    nodes = await journal.unfinished_graph([path("c.drv")])
    assert [(node.spec.id, node.spec.inputs) for node in nodes] == [(a, ()), (b, (a,)), (c, (a, b))]
    assert await names(journal, "b") == ["a", "b"]


async def test_a_done_step_is_left_out_with_what_only_it_needs(journal: Journal) -> None:
    _, b, c = await add(journal, *CHAIN[:2], drv("c", "b"))
    await journal.commit(completed(b, 1, "b"))
    nodes = await journal.unfinished_graph([path("c.drv")])
    assert [(node.spec.id, node.spec.inputs) for node in nodes] == [(c, ())]
    assert (await journal.steps([b]))[b].is_done


async def test_walking_from_an_unknown_root_is_the_askers_fault(journal: Journal) -> None:
    await add(journal, drv("a"))
    with pytest.raises(PeerError, match="unknown"):
        await journal.unfinished_graph([path("a.drv"), path("unknown.drv")])


async def test_a_long_chain_is_walked(journal: Journal) -> None:
    chain = [drv("n0"), *[drv(f"n{i}", f"n{i - 1}") for i in range(1, 2000)]]
    await journal.add_derivations(chain)
    assert await names(journal, "n1999") == [f"n{i}" for i in range(2000)]


async def test_durations_are_expected_by_name_and_learnt_once(kind: JournalKind) -> None:
    journal = kind.journal
    (first,) = await add(journal, drv("hello"))
    effects = completed(first, 1, "hello", build_s=80.0)
    await journal.commit(effects)
    await journal.commit([*effects, SaveStepDone(first, 500.0)])

    def newer(output: str) -> NewDerivation:
        given = drv(output)
        return NewDerivation(**{**{f: getattr(given, f) for f in given.__slots__}, "name": "hello"})

    await add(journal, newer("hello-2"), drv("stranger"))
    journal = await kind.reopen()
    nodes = await journal.unfinished_graph([path("hello-2.drv"), path("stranger.drv")])
    assert nodes[0].spec.expected_s == pytest.approx(80.0)
    assert 0 < nodes[1].spec.expected_s < 80.0


async def test_the_build_closure_shows_what_was_wanted(journal: Journal) -> None:
    _, _, b, c, root = await add(
        journal, drv("deep"), drv("upstream", "deep"), drv("b"), drv("c", "b", "upstream"),
        drv("root", "c", "upstream"),
    )  # fmt: skip
    await journal.add_paths([narinfo("upstream")], "https://cache.example.org")
    await journal.commit([*completed(b, 1, "b"), SaveStepFailed(c, FAILED, 3.0)])
    found = await journal.build_closure(path("root.drv"), limit=10)
    assert [(each.step, each.depth, each.is_done) for each in found] == [
        (root, 0, False), (c, 1, False), (b, 2, True),
    ]  # fmt: skip
    assert [each.cause for each in found] == [None, FAILED, None]
    assert found[2].attempt == await journal.attempt(AttemptId(1))
    assert await journal.build_closure(path("root.drv"), limit=2) == found[:2]


async def test_the_build_closure_leaves_out_what_a_finished_step_did_not_need(
    journal: Journal,
) -> None:
    """As after a path vanished upstream: its step is to build again, but nobody wants it."""
    _, b = await add(journal, drv("tool"), drv("b", "tool"))
    await journal.commit(completed(b, 1, "b"))
    found = await journal.build_closure(path("b.drv"), limit=10)
    assert [each.step for each in found] == [b]


async def test_the_build_closure_always_shows_its_root(journal: Journal) -> None:
    _, root = await add(journal, drv("tool"), drv("cached", "tool"))
    await journal.add_paths([narinfo("cached")], "https://cache.example.org")
    found = await journal.build_closure(path("cached.drv"), limit=10)
    assert [(each.step, each.is_done, each.attempt) for each in found] == [(root, True, None)]


# Paths


async def test_published_outputs_become_valid_when_their_step_is_done(kind: JournalKind) -> None:
    journal = kind.journal
    (step,) = await add(journal, drv("a", makes=("a", "a-dev")))
    saved = saved_paths(step, "a", "a-dev", support='{"is_failed": false}')
    await journal.commit([saved])
    journal = await kind.reopen()
    assert await journal.narinfo(path("a").hash_part) == narinfo("a")
    assert await journal.valid_paths([path("a")]) == set()
    assert (await journal.recover()).unpublished == (Unpublished(step, saved.infos),)
    assert await names(journal, "a") == ["a"]
    await journal.commit([SaveStepDone(step, None)])
    journal = await kind.reopen()
    assert await journal.valid_paths([path("a"), path("a-dev"), path("b")]) == {
        path("a"), path("a-dev"),
    }  # fmt: skip
    assert (await journal.recover()).unpublished == ()
    assert await names(journal, "a") == []
    assert [*await journal.supports(step)] == ["out", "out1"]


async def test_the_first_path_info_stays(journal: Journal) -> None:
    (step,) = await add(journal, drv("a"))
    first, second = narinfo("a", content=b"first"), narinfo("a", content=b"second")
    await journal.commit([SavePaths(step, AttemptId(1), (PublishedOutput("out", first, ""),))])
    await journal.commit([SavePaths(step, AttemptId(2), (PublishedOutput("out", second, ""),))])
    await journal.add_paths([second], "source")
    assert await journal.narinfo(path("a").hash_part) == first
    assert (await journal.recover()).unpublished[0].outputs[0].narinfo == first
    assert not (await journal.steps([step]))[step].is_done, "its narinfo may not be in place"


async def test_a_late_publication_does_not_undo_a_done_step(journal: Journal) -> None:
    (step,) = await add(journal, drv("a"))
    await journal.commit(completed(step, 1, "a"))
    await journal.commit([saved_paths(step, "a")])
    assert (await journal.recover()).unpublished == ()
    assert await journal.valid_paths([path("a")]) == {path("a")}


async def test_a_step_is_done_once_all_its_outputs_came_from_elsewhere(journal: Journal) -> None:
    (step,) = await add(journal, drv("a", makes=("a", "a-dev")))
    await journal.add_paths([narinfo("a")], "https://cache.example.org")
    assert not (await journal.steps([step]))[step].is_done
    await journal.add_paths([narinfo("a-dev")], "https://cache.example.org")
    assert (await journal.steps([step]))[step].is_done
    assert await journal.valid_paths([path("a-dev")]) == {path("a-dev")}


async def test_a_derivation_whose_outputs_are_there_makes_a_done_step(journal: Journal) -> None:
    await journal.add_paths([narinfo("a")], "source")
    step, other = await add(journal, drv("a"), drv("b", "a"))
    records = await journal.steps([step, other])
    assert records[step].is_done
    assert not records[other].is_done
    assert await names(journal, "b") == ["b"]


async def test_a_path_is_valid_only_under_its_own_name(journal: Journal) -> None:
    await journal.add_paths([narinfo("a")], "source")
    alias = type(path("a"))(path("a") + "lias")
    assert await journal.valid_paths([alias, path("a")]) == {path("a")}
    assert await journal.runtime_closure([alias]) == []


async def test_a_runtime_closure_has_references_first(journal: Journal) -> None:
    infos = [narinfo("c", "b", "a", "c"), narinfo("b", "a"), narinfo("a"), narinfo("d", "gone")]
    await journal.add_paths(infos, "source")
    for _ in range(2):  # from the database, then from memory
        assert await journal.runtime_closure([path("c")]) == [path("a"), path("b"), path("c")]
        assert await journal.runtime_closure([path("d"), path("gone")]) == [path("d")]
    await journal.add_paths([narinfo("gone")], "source")
    assert await journal.runtime_closure([path("d")]) == [path("gone"), path("d")]


# Builds


async def test_a_build_is_remembered_until_it_is_finished(kind: JournalKind) -> None:
    (step,) = await add(kind.journal, drv("a"))
    later, earlier = build(1, "a", now=20.0), build(2, "a", now=10.0)
    records = await kind.journal.add_builds([later, earlier])
    assert records[0].root == step
    assert (records[0].tags, records[0].priority) == (later.tags, later.priority)
    assert (records[0].created, records[0].finished, records[0].outcome) == (20.0, None, None)
    journal = await kind.reopen()
    recovered = await journal.recover()
    assert recovered.builds == (records[1], records[0])
    assert recovered.clock_s == 20.0
    cause = Cause(Outcome.BUILD_FAILED, "no", step, AttemptId(7))
    await journal.commit([SaveBuildFinished(later.id, Outcome.DEPENDENCY_FAILED, cause, 30.0)])
    journal = await kind.reopen()
    finished = await journal.build(later.id)
    assert finished is not None
    assert (finished.outcome, finished.cause) == (Outcome.DEPENDENCY_FAILED, cause)
    assert finished.finished == 30.0
    assert [each.id for each in (await journal.recover()).builds] == [earlier.id]
    await journal.commit([SaveBuildReopened(later.id)])
    assert await journal.build(later.id) == records[0]


async def test_a_build_is_added_once(journal: Journal) -> None:
    await add(journal, drv("a"))
    first = await journal.add_builds([build(1, "a", now=1.0)])
    assert await journal.add_builds([build(1, "a", now=2.0)]) == first
    await journal.commit([SaveBuildFinished(first[0].id, Outcome.CACHED, None, 3.0)])
    (again,) = await journal.add_builds([build(1, "a")])
    assert (again.outcome, again.cause) == (Outcome.CACHED, None)


async def test_builds_that_cannot_be_are_refused_together(journal: Journal) -> None:
    await add(journal, drv("a"), drv("b"))
    await journal.add_builds([build(1, "a")])
    with pytest.raises(PeerError, match="choose a new id"):
        await journal.add_builds([build(2, "a"), build(1, "b")])
    with pytest.raises(PeerError, match=r"unknown\.drv is not known"):
        await journal.add_builds([build(2, "a"), build(3, "unknown")])
    assert [each.id for each in await journal.builds()] == [build(1, "a").id]


async def test_builds_are_listed_newest_first(journal: Journal) -> None:
    await add(journal, drv("a"))
    await journal.add_builds([build(n, "a", now=float(n)) for n in (2, 4, 1, 3)])
    await journal.commit([SaveBuildFinished(build(4, "a").id, Outcome.CANCELLED, None, 9.0)])
    assert [each.created for each in await journal.builds(limit=3)] == [4.0, 3.0, 2.0]
    assert [each.created for each in await journal.builds(before=3.0)] == [2.0, 1.0]
    unfinished = await journal.builds(unfinished_only=True, limit=2)
    assert [each.created for each in unfinished] == [3.0, 2.0]
    wanted = [build(n, "a").id for n in (3, 9, 1)]
    assert [each.created for each in await journal.builds_of(wanted)] == [3.0, 1.0]


# Attempts, agents, failures


async def test_attempts_under_way_are_recovered_with_their_agents(kind: JournalKind) -> None:
    a, b, _ = await add(kind.journal, *CHAIN)
    effects: list[JournalEffect] = [
        SaveAgent(agent("ci-1"), 1.0),
        SaveAgent(agent("ci-2"), 2.0),
        SaveAgent(agent("idle"), 3.0),
        SaveAttempt(AttemptId(5), a, agent("ci-1").id, 4.0),
        SaveAttempt(AttemptId(6), a, agent("ci-2").id, 5.0),
        SaveAttempt(AttemptId(9), b, agent("ci-2").id, 6.0),
        SaveAgent(agent("ci-2", session="s2"), 7.0),
    ]
    await kind.journal.commit(effects)
    await kind.journal.commit(effects)
    journal = await kind.reopen()
    recovered = await journal.recover()
    assert [(each.spec, each.attempts) for each in recovered.agents] == [
        (agent("ci-1"), ((5, a),)),
        (agent("ci-2", session="s2"), ((6, a), (9, b))),
    ]
    assert (recovered.next_attempt, recovered.clock_s) == (10, 7.0)
    assert (agent("idle"), 3.0) in await journal.agents()
    usage = Usage(1.0, 2.0, 3.0, 4.0, 5.0, 6, 7, 1 << 50)
    ended = SaveAttemptEnded(AttemptId(9), b, Outcome.AGENT_LOST, "gone", usage, 8.0)
    await journal.commit([ended])
    journal = await kind.reopen()
    recovered = await journal.recover()
    assert [each.attempts for each in recovered.agents] == [((5, a),), ((6, a),)]
    assert (recovered.next_attempt, recovered.clock_s) == (10, 8.0)
    record = await journal.attempt(AttemptId(9))
    assert record is not None
    assert (record.step, record.drv_path, record.agent_name) == (b, path("b.drv"), "ci-2")
    assert (record.started, record.ended, record.usage) == (6.0, 8.0, usage)
    assert (record.outcome, record.message) == (Outcome.AGENT_LOST, "gone")
    assert [each.id for each in await journal.attempts(a)] == [5, 6]


async def test_an_attempt_keeps_the_derivation_it_built(journal: Journal) -> None:
    (step,) = await add(journal, drv("fetch", makes=("source",)))
    tried = SaveAttempt(AttemptId(1), step, agent().id, 2.0)
    await journal.commit([SaveAgent(agent(), 1.0), tried, SaveStepFailed(step, FAILED, 3.0)])
    await add(journal, drv("mirror", makes=("source",)))
    await journal.commit([tried, SaveAttempt(AttemptId(2), step, agent().id, 4.0)])
    assert [each.drv_path for each in await journal.attempts(step)] == [
        path("fetch.drv"), path("mirror.drv"),
    ]  # fmt: skip


async def test_failures_are_remembered_until_forgotten(kind: JournalKind) -> None:
    (step,) = await add(kind.journal, drv("a"))
    effects: list[JournalEffect] = [
        SaveStepTroubled(step, 2, 1),
        SaveFailureForgotten(step),
        SaveStepTroubled(step, 1, 3),
        SaveStepFailed(step, FAILED, 4.0),
    ]
    await kind.journal.commit(effects)
    await kind.journal.commit(effects)
    journal = await kind.reopen()
    (node,) = await journal.unfinished_graph([path("a.drv")])
    assert (node.spec.failures, node.spec.losses, node.remembered) == (1, 3, FAILED)
    assert (await journal.recover()).clock_s == 4.0
    await journal.commit([SaveFailureForgotten(step)])
    (node,) = await journal.unfinished_graph([path("a.drv")])
    assert (node.spec.failures, node.spec.losses, node.remembered) == (0, 0, None)


# Commits


async def test_applying_a_commit_again_changes_nothing(kind: JournalKind) -> None:
    journal = kind.journal
    a, b, c = await add(journal, *CHAIN)
    (record,) = await journal.add_builds([build(1, "c")])
    effects = [
        *completed(a, 1, "a"),
        SaveAttempt(AttemptId(2), b, agent().id, 5.0),
        saved_paths(b, "b"),
        SaveStepFailed(c, FAILED, 6.0),
        SaveBuildFinished(record.id, Outcome.BUILD_FAILED, FAILED, 7.0),
    ]
    await journal.commit(effects)

    async def picture() -> object:
        nodes = await journal.unfinished_graph([path("c.drv")])
        attempts = [await journal.attempts(step) for step in (a, b, c)]
        return await journal.recover(), nodes, attempts, await journal.build(record.id)

    before = await picture()
    await journal.commit(effects)
    assert await picture() == before
    journal = await kind.reopen()
    assert await picture() == before


@pytest.mark.parametrize(
    "bad",
    [
        SaveAttempt(AttemptId(2), StepId(99), agent().id, 1.0),
        SaveAttempt(AttemptId(2), StepId(1), agent("stranger").id, 1.0),
        SaveAttemptEnded(AttemptId(99), StepId(1), Outcome.CANCELLED, "", Usage(), 1.0),
        SaveStepDone(StepId(99), 1.0),
        saved_paths(StepId(99), "x"),
        SaveStepFailed(StepId(99), FAILED, 1.0),
        SaveStepTroubled(StepId(99), 1, 1),
        SaveFailureForgotten(StepId(99)),
        SaveBuildFinished(build(99, "a").id, Outcome.CACHED, None, 1.0),
        SaveBuildReopened(build(99, "a").id),
    ],
    ids=lambda effect: type(effect).__name__,
)
async def test_a_commit_about_the_unknown_is_a_bug_and_applies_nothing(
    journal: Journal, bad: JournalEffect
) -> None:
    (step,) = await add(journal, drv("a"))
    with pytest.raises(AssertionError, match="does not know"):
        await journal.commit([*completed(step, 1, "a"), bad])
    assert await journal.recover() == Recovered((), (), (), AttemptId(1), 0.0)
    assert await journal.valid_paths([path("a")]) == set()


async def test_an_empty_commit_is_no_trouble(journal: Journal) -> None:
    await journal.commit([])
    assert (await journal.recover()).clock_s == 0.0


async def test_many_commit_at_once_and_only_the_bad_ones_fail(journal: Journal) -> None:
    steps = await add(journal, *[drv(f"n{i}") for i in range(100)])
    commits = [journal.commit(completed(step, i, f"n{i}")) for i, step in enumerate(steps, 1)]
    bad = journal.commit([SaveStepDone(StepId(999), None)])
    wrong = journal.add_builds([build(1, "unknown")])
    results = await asyncio.gather(*commits[:50], bad, wrong, *commits[50:], return_exceptions=True)
    failures = [type(each) for each in results if each is not None]
    assert failures == [AssertionError, PeerError]
    assert all(record.is_done for record in (await journal.steps(steps)).values())


async def test_a_full_disk_refuses_all_and_then_takes_it(kind: JournalKind) -> None:
    journal = kind.journal
    a, b, _ = await add(journal, *CHAIN)
    await kind.fill_disk()
    effects = [*completed(a, 1, "a"), SaveStepFailed(b, Cause(Outcome.LOG_LIMIT, BIG), 4.0)]
    with pytest.raises(JournalRefusedError, match="make room"):
        await journal.commit(effects)
    assert await journal.recover() == Recovered((), (), (), AttemptId(1), 0.0)
    assert await names(journal, "c") == ["a", "b", "c"]
    await kind.make_room()
    await journal.commit(effects)
    journal = await kind.reopen()
    assert await names(journal, "c") == ["b", "c"]


# What upstream caches said


async def test_upstream_answers_hold_until_they_expire(kind: JournalKind) -> None:
    url, other = "https://cache.example.org", "https://other.example.org"
    part, missing = path("a").hash_part, path("b").hash_part
    await kind.journal.save_upstream_answers(url, {part: "StorePath: a", missing: ""}, 100.0)
    journal = await kind.reopen()
    assert await journal.upstream_answer(url, part, 99.0) == "StorePath: a"
    assert await journal.upstream_answer(url, missing, 99.0) == ""
    assert await journal.upstream_answer(url, part, 100.0) is None
    assert await journal.upstream_answer(other, part, 99.0) is None
    await journal.save_upstream_answers(url, {missing: "StorePath: b"}, 200.0)
    assert await journal.upstream_answer(url, missing, 150.0) == "StorePath: b"


async def test_expired_upstream_answers_do_not_pile_up_over_fresh_ones(journal: Journal) -> None:
    url, part = "https://cache.example.org", path("a").hash_part
    await add(journal, drv("a"))
    await journal.save_upstream_answers(url, {part: "old"}, 10.0)
    await journal.add_builds([build(1, "a", now=50.0)])
    await journal.save_upstream_answers(url, {path("b").hash_part: "new"}, 100.0)
    assert await journal.upstream_answer(url, part, 5.0) is None
    assert await journal.upstream_answer(url, path("b").hash_part, 50.0) == "new"
