"""Packages of a set, by a Nix that ends as it is told: what it is asked, and who is blamed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grange.client.image_models import EvaluatedView, EvaluationJob, SourceSpec
from grange.evaluator.failure import JobError
from grange.evaluator.nix import Cut, Ended, Limits, Nix
from grange.evaluator.packages import BLAMED_MAX, PackageEvaluator
from grange.oci.names import EVERY_IMAGE, NAMES_MAX, SHELL_PACKAGES, folded, spelled
from grange.store.path import NIX_STORE

HASH = "0123456789abcdfghijklmnpqrsvwxyz"
OUT_OF_MEMORY = Ended(1, b"", "error: out of memory")
ENDLESS = Ended(-9, b"", "", Cut.TIME)
LOUD = Ended(-9, b"", "", Cut.OUTPUT)


def error(text: str) -> Ended:
    return Ended(1, b"", f"error: {text}\n")


def package(name: str, **more: Any) -> dict[str, Any]:
    """What packages.nix says of one that can be had."""
    return {
        "drv_path": f"/nix/store/{HASH}-{name}.drv",
        "outputs": {"out": f"/nix/store/{HASH}-{name}"},
        "program": name,
    } | more


Way = tuple[str, ...]
Says = dict[str, Any] | Ended


@dataclass(frozen=True)
class FakeNix(Nix):
    """Answers for a set of attributes, or ends as one of them makes it end.

    An attribute that says it failed ends an evaluation that is to blame it, with its message.
    """

    attributes: dict[Way, Says] = field(default_factory=dict)
    sets: dict[Way, list[str]] = field(default_factory=dict)
    ended: Ended | None = None  # however it is asked
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def run(
        self,
        command: Sequence[str],
        limits: Limits,
        *,
        settings: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        job = _job_in(command)
        self.asked.append(job)
        if self.ended is not None:
            return self.ended
        spellings = {way: folded(names) for way, names in self.sets.items()}
        as_is = [spelled(each, spellings) for each in job["packages"]]
        outer = {way[:count] for way in as_is for count in range(len(way))}
        for way in sorted(outer):
            if isinstance(says := self.attributes.get(way), Ended):
                return says
        names = [{"way": way, "names": self.sets.get(way, [])} for way in sorted({(), *outer})]
        answers = []
        for way in sorted({*as_is, *map(tuple, job["attributes"])}) if job["evaluate"] else []:
            says = self.attributes.get(way, {"lack": "missing", "message": ""})
            if isinstance(says, Ended):
                return says
            if job["blame"] and says.get("lack") == "failed":
                return error(says["thrown"])
            told = {key: value for key, value in says.items() if key != "thrown"}
            answers.append({"attribute": way, **told})
        return Ended(0, json.dumps({"names": names, "packages": answers}).encode(), "")


def _job_in(command: Sequence[str]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(Path(command[command.index("--argstr") + 2]).read_text())
    return told


def nix_with(**attributes: Says) -> FakeNix:
    """Every image's packages, a shell's, and these at the top of the set."""
    always: dict[Way, Says] = {(name,): package(name) for name in (*EVERY_IMAGE, *SHELL_PACKAGES)}
    ours: dict[Way, Says] = {(name,): says for name, says in attributes.items()}
    names = [way[0] for way in (*always, *ours)]
    return FakeNix(Path("/nowhere"), attributes={**always, **ours}, sets={(): sorted(names)})


def job(packages: Sequence[str], **more: Any) -> EvaluationJob:
    fields: dict[str, Any] = {
        "id": "1",
        "source": SourceSpec(name="set", kind="path", location="/set", config={"a": 1}),
        "tag": "latest",
        "system": "x86_64-linux",
        "packages": packages,
        "timeout_s": 60,
        "memory_bytes": 1 << 30,
        "token": "",
    }
    return EvaluationJob(**fields | more)


async def evaluate(nix: FakeNix, wanted: EvaluationJob) -> dict[str, EvaluatedView]:
    """Its answers, by attribute."""
    with TemporaryDirectory() as folder:
        evaluator = PackageEvaluator(
            nix,
            wanted,
            Path("/set"),
            Path(folder),
            limits=Limits(monotonic() + 60, 1 << 30),
            store_dir=NIX_STORE,
        )
        names, packages = await evaluator.evaluate()
    assert [] in [each.way for each in names]
    return {".".join(each.attribute): each for each in packages}


async def failure(nix: FakeNix, wanted: EvaluationJob) -> tuple[str, str]:
    with pytest.raises(JobError) as raised:
        await evaluate(nix, wanted)
    return raised.value.failure, str(raised.value)


# --- When nothing is wrong ----------------------------------------------------------------------


async def test_one_process_tells_all() -> None:
    nix = nix_with(hello=package("hello"), Fox=package("fox"), _7z=package("7z"))
    answers = await evaluate(nix, job(["7z", "fox", "hello"], has_shell=True))
    assert sorted(answers) == sorted([*EVERY_IMAGE, *SHELL_PACKAGES, "Fox", "_7z", "hello"])
    assert answers["Fox"].drv_path == f"/nix/store/{HASH}-fox.drv"
    assert len(nix.asked) == 1


async def test_only_what_is_asked_for_is_told() -> None:
    nix = nix_with(hello=package("hello"))
    assert [*await evaluate(nix, job(["hello"], is_image=False))] == ["hello"]
    assert [*await evaluate(nix, job([], has_shell=True, is_image=False))] == [*SHELL_PACKAGES]
    assert sorted(await evaluate(nix, job(["cacert"], is_image=False))) == ["cacert"]


async def test_everything_goes_to_nix_as_data() -> None:
    nix = nix_with(hello=package("hello"))
    wanted = job(["hello"]).model_copy(update={"system": '"; abort "'})
    await evaluate(nix, wanted)
    [asked] = nix.asked
    assert asked["system"] == '"; abort "'
    assert asked["config"] == {"a": 1}


async def test_why_a_package_cannot_be_had_is_said_in_words() -> None:
    nix = nix_with(
        paid={"lack": "unfree", "message": "Unfree RAR"},
        bad={"lack": "insecure", "message": "CVE-1"},
        gone={"lack": "failed", "message": "", "thrown": "it was removed"},
        other={"lack": "unsupported", "message": ""},
    )
    answers = await evaluate(nix, job(["paid", "bad", "gone", "other", "none"], is_image=False))
    said = {name: (each.lack, each.message) for name, each in answers.items()}
    assert said == {
        "paid": ("unfree", "its license is not free: Unfree RAR"),
        "bad": ("insecure", "it is known to be insecure: CVE-1"),
        "gone": ("failed", "it was removed"),
        "other": ("unsupported", "it is not for x86_64-linux"),
        "none": ("missing", "the package set has no such attribute"),
    }
    assert len(nix.asked) == 2  # the second time to hear what was caught


async def test_many_failures_do_not_take_a_process_each() -> None:
    thrown = {f"p{at}": {"lack": "failed", "message": "", "thrown": "no"} for at in range(60)}
    nix = nix_with(**thrown)
    answers = await evaluate(nix, job([*thrown], is_image=False))
    assert all(each.message for each in answers.values())
    assert len(nix.asked) == 1 + BLAMED_MAX


@pytest.mark.parametrize(
    "odd",
    [
        package("a", drv_path="not a path"),
        package("a", drv_path=f"/nix/store/{HASH}-a"),
        package("a", drv_path=f"/gnu/store/{HASH}-a.drv"),
        package("a", outputs={"out": f"/nix/store/{HASH}-b"}),
        package("a", outputs={"bin": f"/nix/store/{HASH}-a"}),
        package("a", outputs={"out": "/etc/passwd"}),
    ],
)
async def test_what_cannot_be_a_derivations_is_no_package(odd: dict[str, Any]) -> None:
    answers = await evaluate(nix_with(a=odd, b=package("b")), job(["a", "b"]))
    assert answers["a"].lack == "failed"
    assert not answers["a"].drv_path
    assert answers["b"].drv_path


async def test_what_nix_spells_otherwise_is_asked_for_by_its_spelling() -> None:
    nix = nix_with(hello=package("hello"))
    nix.sets[()].append("Hello")  # as if Nix had missed that `hello` is there
    nix.sets[()].remove("hello")
    nix.attributes["Hello",] = package("hello")

    async def others(*asked: Any, **more: Any) -> Ended:
        ended = await FakeNix.run(nix, *asked, **more)
        if len(nix.asked) > 1:
            return ended
        answer = json.loads(ended.stdout)
        for each in answer["packages"]:
            if each["attribute"] == ["Hello"]:
                each["attribute"] = ["hello"]
        return Ended(0, json.dumps(answer).encode(), "")

    object.__setattr__(nix, "run", others)
    assert sorted(await evaluate(nix, job(["hello"], is_image=False))) == ["Hello"]
    assert len(nix.asked) == 2


# --- Who spoils an evaluation -----------------------------------------------------------------


@settings(max_examples=40)
@given(st.sets(st.integers(0, 29)), st.integers(1, 30))
async def test_whoever_spoils_it_is_blamed_and_nobody_else(bad: set[int], count: int) -> None:
    says: dict[str, Says] = {f"p{at}": package(f"p{at}") for at in range(count)}
    spoilers = {f"p{at}" for at in bad if at < count}
    nix = nix_with(**says | {name: error(f"{name} aborts") for name in spoilers})
    answers = await evaluate(nix, job([*says]))
    for name in says:
        if name in spoilers:
            assert (answers[name].lack, answers[name].message) == ("failed", f"{name} aborts")
        else:
            assert answers[name].drv_path
    # Twice the depth of halving for each, and the set alone.
    assert len(nix.asked) <= 2 + len(spoilers) * 2 * 6


async def test_one_of_what_every_image_has_can_be_to_blame() -> None:
    nix = nix_with(hello=package("hello"), nano=error("no editor"))
    answers = await evaluate(nix, job(["hello"], has_shell=True))
    assert answers["nano"].message == "no editor"
    assert answers["hello"].drv_path


async def test_a_spoiler_in_another_set_is_told_as_it_is_spelled() -> None:
    nix = nix_with(Set={"lack": "no package", "message": "a set"})
    nix.sets["Set",] = ["Bad", "good"]
    nix.attributes["Set", "Bad"] = error("abort")
    nix.attributes["Set", "good"] = package("good")
    answers = await evaluate(nix, job(["set.bad", "set.good"], is_image=False))
    assert {name: each.lack for name, each in answers.items()} == {
        "Set.Bad": "failed",
        "Set.good": "",
    }
    alone = await evaluate(nix, job(["set.bad"], is_image=False))
    assert alone["Set.Bad"].message == "abort"


async def test_a_set_that_spoils_it_whatever_is_asked_of_it_is_blamed_for_each() -> None:
    nix = nix_with(bad=error("infinite recursion encountered"), hello=package("hello"))
    answers = await evaluate(nix, job(["bad.a", "bad.b", "hello"], is_image=False))
    assert {name: each.message for name, each in answers.items() if each.lack} == {
        "bad.a": "infinite recursion encountered",
        "bad.b": "infinite recursion encountered",
    }


async def test_the_set_itself_is_blamed_at_once() -> None:
    nix = nix_with()
    object.__setattr__(nix, "ended", error("undefined variable 'lib'"))
    assert await failure(nix, job([f"p{at}" for at in range(50)])) == (
        "source",
        "the set ends with an error: undefined variable 'lib'",
    )
    assert len(nix.asked) == 2


@pytest.mark.parametrize(
    ("ended", "kind", "words"),
    [
        (OUT_OF_MEMORY, "too much", "1024 MiB of memory"),
        (LOUD, "too much", "see what it traces"),
        (
            ENDLESS,
            "timeout",
            "to evaluate 'hello', 'hungry', 'cacert', 'iana-etc' takes longer than",
        ),
    ],
)
async def test_what_is_too_much_is_said_with_who_it_is(ended: Ended, kind: str, words: str) -> None:
    nix = nix_with(hello=package("hello"), hungry=ended)
    found, said = await failure(nix, job(["hello", "hungry"]))
    assert found == kind
    assert words in said
    if kind == "too much":
        assert "'hungry'" in said


async def test_a_set_with_more_names_than_are_taken_is_refused_and_not_read() -> None:
    nix = nix_with(hello=package("hello"))
    nix.sets[()] = ["hello", *(f"n{number}" for number in range(NAMES_MAX))]
    kind, words = await failure(nix, job(["hello"]))
    assert (kind, f"more than {NAMES_MAX} names" in words) == ("too much", True)
    assert len(nix.asked) == 1


async def test_packages_that_are_too_much_together_are_evaluated_apart() -> None:
    nix = nix_with(**{f"p{at}": package(f"p{at}") for at in range(4)})

    async def small(*asked: Any, **more: Any) -> Ended:
        ended = await FakeNix.run(nix, *asked, **more)
        many = len(nix.asked[-1]["packages"]) + len(nix.asked[-1]["attributes"]) > 2
        return OUT_OF_MEMORY if many else ended

    object.__setattr__(nix, "run", small)
    assert len(await evaluate(nix, job([f"p{at}" for at in range(4)]))) == 6


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (Ended(127, b"", "error: there is no nix-instantiate"), "no nix-instantiate"),
        (Ended(0, b"<html>", ""), "no answer"),
        (error("cannot connect to daemon at '/nix/var': Connection refused"), "does not work"),
        (error("writing to file: No space left on device"), "does not work"),
    ],
)
async def test_a_machine_that_cannot_evaluate_is_not_the_sets_fault(
    ended: Ended, words: str
) -> None:
    nix = nix_with()
    object.__setattr__(nix, "ended", ended)
    found, said = await failure(nix, job(["hello"]))
    assert found == "evaluator"
    assert words in said


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("unable to download 'https://a.b/c': Couldn't resolve host name (6)", "source"),
        ("unable to download 'https://a.b/c': HTTP error 503", "source"),
        ("unable to download 'https://a.b/c': HTTP error 404", ""),
        ("writing to file: No space left on device", "evaluator"),
        ("no such thing", ""),
    ],
)
@pytest.mark.parametrize("is_caught", [False, True])
async def test_what_may_be_otherwise_tomorrow_is_not_said_of_a_package(
    said: str, kind: str, is_caught: bool
) -> None:
    bad = {"lack": "failed", "message": "", "thrown": said} if is_caught else error(said)
    nix = nix_with(hello=package("hello"), fetching=bad)
    wanted = job(["hello", "fetching"])
    if kind:
        found, words = await failure(nix, wanted)
        assert (found, said in words) == (kind, True)
    else:
        assert (await evaluate(nix, wanted))["fetching"].message == said
