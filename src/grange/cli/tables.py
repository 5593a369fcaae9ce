"""TOML files that people write: read, checked against models, and faulted with the place named."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grange.errors import OperatorError

_COUNT_MAX: Final = (1 << 63) - 1  # what a database holds
Count = Annotated[int, Field(ge=0, le=_COUNT_MAX)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class Table(BaseModel):
    """A table of the file: nothing but its fields, and no text where a number is wanted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def toml(path: Path) -> dict[str, Any]:
    """What a file says. Raises OperatorError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path} is not TOML: {error}") from error


def faults(
    path: Path,
    error: ValidationError,
    root: type[BaseModel],
    elsewhere: Mapping[str, str] | None = None,
) -> OperatorError:
    """All that is wrong with the file, each with its place. `root` is the model of all of it;
    `elsewhere` tells of keys that people look for here and do not find."""
    lines = [f"{path}:"]
    for each in error.errors(include_url=False):
        where = ".".join(map(str, each["loc"]))
        what = f"is {each['input']!r}: {each['msg'].lower()}"
        if each["type"] == "extra_forbidden":
            what = f"is not known; {', '.join(_keys_beside(root, each['loc']))} are"
        if each["type"] == "missing":
            what = "is missing"
        if each["type"] == "value_error":
            what = f"is wrong: {each['ctx']['error']}"
        what = (elsewhere or {}).get(where, what)
        lines.append(f"{where} {what}" if where else f"it {what}")
    return OperatorError("\n  ".join(lines))


def _keys_beside(root: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys that the table may have whose key `place` is."""
    kind: Any = root
    for part in place[:-1]:
        is_table = isinstance(kind, type) and issubclass(kind, BaseModel)
        kind = kind.model_fields[part].annotation if is_table else get_args(kind)[-1]
        while get_origin(kind) in (UnionType, Union, Annotated):  # a table that may be left out
            kind = next(each for each in get_args(kind) if each is not NoneType)
    assert issubclass(kind, BaseModel)
    return list(kind.model_fields)
