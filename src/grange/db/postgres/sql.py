"""The journal's SQL as PostgreSQL takes it: its own where it has one, else SQLite's, translated."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from grange.db import sql

_ARRAY: Final = re.compile(r"IN \(SELECT value FROM json_each\(\?(\d+)\)\)")
_PARAMETER: Final = re.compile(r"\?(\d+)")


def translated(statement: str) -> str:
    return _PARAMETER.sub(r"$\1", _ARRAY.sub(r"= ANY (?\1)", statement))


def _queries() -> Mapping[str, str]:
    own = sql.load_queries(files("grange.db.postgres") / "queries")
    unknown = own.keys() - sql.QUERIES.keys()
    assert not unknown, f"no such queries on SQLite: {unknown}"
    return {name: translated(own.get(name, text)) for name, text in sql.QUERIES.items()}


QUERIES: Final = _queries()
