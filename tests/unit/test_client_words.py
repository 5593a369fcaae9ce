"""Every outcome has words, and they blame whom the classification blames."""

import pytest

from grange.client.words import BUILD, FARM, NOBODY, REQUEST, explain, said_of, words_of
from grange.scheduler.facts import Cause, Outcome


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_words_and_a_fault(outcome: Outcome) -> None:
    words = words_of(outcome)
    assert words.happened
    assert words.fault in (BUILD, REQUEST, FARM, NOBODY)
    if outcome.is_infrastructure or outcome is Outcome.AGENT_LOST:
        assert words.fault == FARM
    if outcome.is_remembered:
        assert words.fault in (BUILD, REQUEST)
    if words.fault != NOBODY and outcome is not Outcome.RETURNED:
        assert words.advice


def test_a_limit_is_named_in_its_unit() -> None:
    assert explain(Cause(Outcome.TIMED_OUT, "", limit=60)).endswith("60 s is its limit")
    assert explain(Cause(Outcome.LOG_LIMIT, "", limit=20000)).endswith("20,000 bytes is its limit")
    assert "limit" not in explain(Cause(Outcome.BUILD_FAILED, "", limit=60))
    assert "is its limit" not in explain(Cause(Outcome.TIMED_OUT, ""))


def test_a_newer_farms_outcome_is_shown_as_it_came() -> None:
    assert said_of("eaten by a bear").happened == "eaten by a bear"
    assert said_of(None).happened == ""
