"""What evaluators say is read as far as its shape goes, and no further."""

from typing import Any

import pytest

from grange.client.image_models import EvaluatedView, EvaluationJob, EvaluationResult, NamesView
from grange.errors import PeerError
from grange.images.answers import asked_for, checking, read
from grange.oci.names import Attribute, folded
from grange.oci.refusal import MESSAGE_CHARS_MAX
from grange.ports import Lack, NoPackage, Package
from grange.store.path import NIX_STORE
from tests.images_fakes import path_of
from tests.images_place import COMMIT, drv_of, image_place

HELLO = EvaluatedView(
    attribute=["hello"],
    drv_path=NIX_STORE.show(drv_of("hello")),
    outputs={"out": NIX_STORE.show(path_of("hello")), "man": NIX_STORE.show(path_of("hello-man"))},
    program="hello",
)


async def a_job(**changes: Any) -> EvaluationJob:
    async with image_place() as place:
        await place.maker.make(place.request("hello"), 60.0)
        [job] = place.evaluator.jobs
    return job.model_copy(update={"is_image": False, **changes})


def an_answer(*packages: EvaluatedView, **changes: Any) -> EvaluationResult:
    names = NamesView(way=[], names=["hello", "", "HUnit", "x" * 300, "a\0"])
    result = EvaluationResult(commit=COMMIT, names=[names], packages=[*packages])
    return result.model_copy(update=changes)


async def test_an_answer_is_read_into_facts() -> None:
    answer = read(await a_job(), an_answer(HELLO), NIX_STORE)
    assert answer.commit == COMMIT
    assert answer.names == {(): ("hello", "HUnit")}
    outputs = (("man", path_of("hello-man")), ("out", path_of("hello")))
    assert answer.packages == (Package(("hello",), drv_of("hello"), outputs, "hello"),)


async def test_why_there_is_no_package_is_read_without_what_terminals_obey() -> None:
    view = EvaluatedView(attribute=["hello"], lack="broken", message="\x1b[31m" + "x" * 9000)
    [answer] = read(await a_job(), an_answer(view), NIX_STORE).packages
    assert isinstance(answer, NoPackage)
    assert answer.lack is Lack.BROKEN
    assert answer.message.startswith(" [31mxxx")
    assert len(answer.message) == MESSAGE_CHARS_MAX


async def test_a_program_that_is_none_is_left_out() -> None:
    view = HELLO.model_copy(update={"program": "../../bin/sh"})
    [answer] = read(await a_job(), an_answer(view), NIX_STORE).packages
    assert isinstance(answer, Package)
    assert answer.program == ""


async def test_a_look_up_has_a_commit_and_no_more() -> None:
    job = await a_job(packages=[])
    assert job.is_lookup
    assert read(job, an_answer(HELLO), NIX_STORE).packages == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"commit": "main"}, "it was to be about"),
        ({"commit": "d" * 40}, f"it was to be about {COMMIT}"),
        ({"names": []}, "lacks the names"),
        ({"names": [NamesView(way=["x" * 300], names=[])]}, "no way to a set"),
        ({"names": [NamesView(way=[], names=[])] * 2000}, "2000 sets"),
        ({"names": [NamesView(way=[], names=["x"] * 200_001)]}, "more than 200000"),
        ({"packages": []}, "is not of hello"),
        ({"packages": [HELLO, HELLO]}, "asked for"),
        ({"packages": [HELLO, HELLO.model_copy(update={"attribute": ["x"]})]}, "is not of x"),
    ],
)
async def test_what_is_no_answer_to_the_job_is_refused(changes: Any, words: str) -> None:
    job = await a_job(commit=COMMIT)
    with pytest.raises(PeerError, match=words):
        read(job, an_answer(HELLO, **changes), NIX_STORE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drv_path": "/etc/passwd"}, "not a path directly in"),
        ({"drv_path": NIX_STORE.show(path_of("hello"))}, "is no derivation"),
        ({"outputs": {}}, "has 0 outputs"),
        ({"outputs": {str(n): "" for n in range(65)}}, "has 65 outputs"),
        ({"outputs": {"out": NIX_STORE.show(path_of("other"))}}, "cannot be the output 'out'"),
        ({"outputs": {"bin": NIX_STORE.show(path_of("hello"))}}, "cannot be the output 'bin'"),
        ({"outputs": {"../x": NIX_STORE.show(path_of("hello"))}}, "is no output"),
        ({"outputs": {"out": NIX_STORE.show(path_of("hello")) + "/bin"}}, "not a path directly"),
        ({"drv_path": "", "lack": "tired"}, "is no reason"),
    ],
)
async def test_what_is_no_package_is_refused(changes: Any, words: str) -> None:
    job = await a_job()
    wrong = an_answer(HELLO.model_copy(update=changes))
    with pytest.raises(PeerError, match=words):
        read(job, wrong, NIX_STORE)
    with pytest.raises(PeerError):
        checking(NIX_STORE)(job, wrong)
    checking(NIX_STORE)(job, wrong.model_copy(update={"failure": "source"}))


async def test_what_is_asked_for_is_what_a_job_names() -> None:
    names: dict[Attribute, dict[str, str]] = {(): folded(["HUnit", "cacert", "bashInteractive"])}
    job = await a_job(packages=["hunit", "cacert"])
    assert asked_for(job, names) == {("HUnit",), ("cacert",)}
    job = await a_job(packages=["hunit"], is_image=True)
    assert asked_for(job, names) == {("HUnit",), ("cacert",), ("iana-etc",)}
    job = await a_job(packages=[], has_shell=True)
    usual = {("bashInteractive",), ("coreutils",), ("moreutils",), ("nano",)}
    assert asked_for(job, names) == usual
