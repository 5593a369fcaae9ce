"""Named queries are found, and each of them is one that the database understands."""

from pathlib import Path

import pytest

from grange.db.connect import MEMORY, connect
from grange.db.sql import QUERIES, load_queries, parse_queries

TEXT = """-- Things.

-- name: one
-- What it is for.
SELECT 1 -- as ever
  FROM t;

-- name: two
SELECT 2;
"""


def test_queries_are_found_by_name() -> None:
    assert dict(parse_queries(TEXT)) == {
        "one": "SELECT 1 -- as ever\n  FROM t;",
        "two": "SELECT 2;",
    }


def test_a_name_belongs_to_one_query(tmp_path: Path) -> None:
    for name in ("a.sql", "b.sql"):
        (tmp_path / name).write_text("-- name: same\nSELECT 1;\n")
    with pytest.raises(AssertionError, match="same"):
        load_queries(tmp_path)


# The checks read everything, and so do collections, which run by the hour or by the day.
_WHOLE = {
    *("ended_builds", "stored_paths", "stamp_paths", "collected_sources", "pins", "old_attempts"),
    *("image_roots", "image_blobs", "spent_image_layers", "spent_package_sets"),
    *("drop_spent_image_segments", "drop_spent_image_contents"),
    "paths_without_segments",  # and so does what makes layers in idle time
    *[name for name in QUERIES if name.startswith("check_")],
}


@pytest.mark.parametrize("name", [name for name in QUERIES if name not in _WHOLE])
def test_a_query_fits_the_tables(name: str) -> None:
    connection = connect(MEMORY)
    parameters = [None] * max(
        [number for number in range(20) if f"?{number}" in QUERIES[name]] + [0]
    )
    plan = connection.execute(f"EXPLAIN QUERY PLAN {QUERIES[name]}", parameters).fetchall()
    connection.close()
    scanned = {row[3] for row in plan if row[3].startswith("SCAN")}
    # Read whole may be small tables, arrays, and indexes that hold only what is wanted.
    allowed = (
        *("agents", "farm", "queues", "json_each", "CONSTANT ROW"),
        *("credentials", "agent_accounts"),
        *("agent_rules", "pauses", "uses"),
        *("capacity_slots", "capacity_pauses", "capacity_spending", "capacity_consoles"),
        *("hooks", "hook_deliveries", "d", "events USING COVERING INDEX"),
        "(subquery",  # the layers of one image
    )
    partial = (
        "steps USING INDEX steps_publishing",
        "a USING INDEX attempts_unended",
        "a USING INDEX attempts_lost",
        "b USING INDEX builds_unfinished",
        "s USING INDEX steps_publishing",
    )
    assert [each for each in scanned if not each[5:].startswith((*allowed, *partial))] == []
