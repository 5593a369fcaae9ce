"""The SQL of the journal, by name, from the files in `queries/`.

A query begins with a line ``-- name: its_name`` and ends where the next one begins. Parameters are
numbered, ``?1`` and up, so that a dialect which writes them otherwise can be translated to.
"""

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT: Final = re.compile(r"^--.*\n?", re.MULTILINE)


def parse_queries(text: str) -> Iterable[tuple[str, str]]:
    """The names and statements in one file; what stands before the first name is a comment."""
    parts = _NAME.split(text)[1:]
    for name, statement in zip(parts[::2], parts[1::2], strict=True):
        yield name, _COMMENT.sub("", statement).strip()


def load_queries(folder: Traversable) -> Mapping[str, str]:
    """All queries of the ``.sql`` files in `folder`; a name must be there only once."""
    queries: dict[str, str] = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        for name, statement in parse_queries(file.read_text("utf-8")):
            assert name not in queries, f"two queries are called {name}"
            queries[name] = statement
    return queries


QUERIES: Final = load_queries(files("grange.db") / "queries")
