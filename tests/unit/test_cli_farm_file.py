"""The coordinator's file: what it may say, and how it is told what it may not."""

from pathlib import Path

import pytest

from grange.cli.farm_file import FarmFile, read_farm_file
from grange.errors import OperatorError
from grange.scheduler.facts import Limits, Policy

GIVEN = Limits(silent_s=5, log_bytes=1000)


def read(folder: Path, text: str) -> FarmFile:
    path = folder / "farm.toml"
    path.write_text(text)
    return read_farm_file(path, GIVEN)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "") == FarmFile(GIVEN, {}, Policy(), is_fresh=False)


def test_a_project_starts_from_the_farms_limits(tmp_path: Path) -> None:
    text = """
        present_outputs = "delete"
        [limits]
        build_s = 60
        [projects.slow.limits]
        build_s = 0
        output_bytes = 7
        [retries]
        failures_max = 2
        backoff_s = 1
    """
    assert read(tmp_path, text) == FarmFile(
        Limits(silent_s=5, build_s=60, log_bytes=1000),
        {"slow": Limits(silent_s=5, build_s=0, log_bytes=1000, output_bytes=7)},
        Policy(failures_max=2, backoff_s=1.0),
        is_fresh=True,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limit = 1", "has no limit; what it may have: limits, projects"),
        ("[limits]\nbuild = 1", "has no build; what it may have: silent_s, build_s"),
        ("[limits]\nbuild_s = -1", "a whole number of at least 0"),
        ("[limits]\nbuild_s = 1.5", "a whole number of at least 0"),
        ("[limits]\nbuild_s = true", "a whole number of at least 0"),
        ("[retries]\nbackoff_s = nan", "a number of at least 0"),
        ("[retries]\nfailures_max = 0", "a whole number of at least 1"),
        ("[retries]\nlease_s = 1", "say it with --lease"),
        ("[projects.a]\nbuild_s = 1", "[projects.a] has no build_s"),
        ("[projects]\na = 1", "a table is wanted"),
        ("limits = 3", "a table is wanted"),
        ('present_outputs = "keep"', "write one of"),
        ("[limits", "is not TOML"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(OperatorError) as refused:
        read(tmp_path, text)
    assert said in str(refused.value)
    assert "farm.toml" in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"none\.toml cannot be read"):
        read_farm_file(tmp_path / "none.toml", GIVEN)
