"""What differs between two results of one build."""

import os
import subprocess
from pathlib import Path

import pytest

from grange.agent.compare import LINES_MAX, differences


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    pair = tmp_path / "out", tmp_path / "out.check"
    for root in pair:
        (root / "bin").mkdir(parents=True)
        (root / "bin/tool").write_text("#!")
        (root / "link").symlink_to("bin/tool")
    return pair


def lines(trees: tuple[Path, Path]) -> list[str]:
    return differences(str(trees[0]), str(trees[1]))


def test_what_is_the_same_has_no_differences(trees: tuple[Path, Path]) -> None:
    os.utime(trees[1] / "bin/tool", (1, 1))  # no NAR holds times
    assert lines(trees) == []


def test_each_kind_of_difference_is_named(trees: tuple[Path, Path]) -> None:
    first, second = trees
    (first / "bin/tool").chmod(0o755)
    (second / "link").unlink()
    (second / "link").symlink_to("elsewhere")
    (first / "date").write_text("Monday")
    (second / "date").write_text("Friday")
    (first / "old").mkdir()
    (second / "new").write_text("")
    (first / "what").mkdir()
    (second / "what").write_text("")
    found = lines(trees)
    assert [line.split(": ")[0] for line in found] == [
        "bin/tool",
        "date",
        "link",
        "new",
        "old",
        "what",
    ]
    assert found[0].endswith("executable only in the first")
    assert "content differs: 6 bytes sha256:" in found[1]
    assert found[1].count("sha256:") == 2
    assert "'bin/tool' in the first, 'elsewhere' in the second" in found[2]
    assert found[3].endswith("only in the second")
    assert found[4].endswith("only in the first")
    assert found[5].endswith("a directory in the first, a file in the second")


def test_a_single_file_and_one_longer_than_a_chunk(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(bytes(3 << 20))
    second.write_bytes(bytes(3 << 20))
    assert differences(str(first), str(second)) == []
    second.write_bytes(bytes((3 << 20) - 1) + b"x")
    (line,) = differences(str(first), str(second))
    assert line.startswith("the output itself: content differs")


def test_no_more_lines_than_a_person_reads(trees: tuple[Path, Path]) -> None:
    for number in range(LINES_MAX + 5):
        (trees[0] / f"f{number}").write_text("")
    found = lines(trees)
    assert len(found) == LINES_MAX + 1
    assert "left out" in found[-1]


def test_a_tree_deeper_than_the_stack(tmp_path: Path) -> None:
    for root, text in (("a", "1"), ("b", "2")):
        os.mkdir(tmp_path / root)
        place = os.open(tmp_path / root, os.O_RDONLY)
        for _ in range(1200):  # as deep as one path can name
            os.mkdir("d", dir_fd=place)
            inner = os.open("d", os.O_RDONLY, dir_fd=place)
            os.close(place)
            place = inner
        with open(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=place), "w") as file:
            file.write(text)
        os.close(place)
    try:
        (line,) = differences(str(tmp_path / "a"), str(tmp_path / "b"))
        assert "content differs" in line
    finally:  # pytest's own way to remove it is recursive
        subprocess.run(["rm", "-rf", tmp_path / "a", tmp_path / "b"], check=True)


def test_any_name(trees: tuple[Path, Path]) -> None:
    (trees[0] / "a\nb").write_text("")
    (line,) = lines(trees)
    assert "\n" not in line
