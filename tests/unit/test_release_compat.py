"""An older release's agents and clients must be understood by this release's coordinator.

tests/unit/releases holds what each release spoke: field numbers and types of every message on the
wire, values of enums, methods, and the fields of every JSON shape. Things may be added to it, and
nothing may be changed or taken away.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from pydantic import BaseModel

from grange.client import models
from grange.client.models import StepState
from grange.wire.generated.nix.store.derivation.v1 import derivation_pb2
from grange.wire.generated.nix.store.v1 import store_pb2
from grange.wire.generated.runner.v1 import runner_pb2

FILES = (runner_pb2.DESCRIPTOR, store_pb2.DESCRIPTOR, derivation_pb2.DESCRIPTOR)
RELEASES = sorted((Path(__file__).parent / "releases").glob("*.json"))
STEP_STATES_0_1 = 11  # its clients refuse a state that they do not know


def _messages(found: Iterable[Descriptor]) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    for message in found:
        fields = {f.name: [f.number, str(f.type), bool(f.is_repeated)] for f in message.fields}
        yield message.full_name, fields
        yield from _messages(message.nested_types)


def lost(before: dict[str, Any], now: dict[str, Any], where: str) -> list[str]:
    """What `before` has and `now` has not, or has otherwise."""
    return [
        f"{where}.{name}: {value} became {now.get(name)}"
        for name, value in before.items()
        if now.get(name) != value
    ]


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
def test_the_wire_only_grows(release: Path) -> None:
    spoken = json.loads(release.read_text())
    now = dict(_messages(m for file in FILES for m in file.message_types_by_name.values()))
    enums = {
        enum.full_name: {value.name: value.number for value in enum.values}
        for file in FILES
        for enum in file.enum_types_by_name.values()
    }
    methods = {
        f"{service.full_name}/{method.name}"
        for file in FILES
        for service in file.services_by_name.values()
        for method in service.methods
    }
    changes = [
        *[c for name, old in spoken["messages"].items() for c in lost(old, now[name], name)],
        *[c for name, old in spoken["enums"].items() for c in lost(old, enums[name], name)],
        *sorted(set(spoken["methods"]) - methods),
    ]
    assert not changes


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
def test_the_api_only_grows(release: Path) -> None:
    shapes = json.loads(release.read_text())["shapes"]
    gone = []
    for name, fields in shapes.items():
        shape = getattr(models, name)
        assert issubclass(shape, BaseModel)
        gone += [f"{name}.{field}" for field in fields if field not in shape.model_fields]
    assert not gone


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
def test_what_an_older_client_sends_is_enough(release: Path) -> None:
    """A field that came later has a default."""
    shapes = json.loads(release.read_text())["shapes"]
    demanded = [
        f"{name}.{field}"
        for name, fields in shapes.items()
        for field, info in getattr(models, name).model_fields.items()
        if field not in fields and info.is_required()
    ]
    assert not demanded


def test_steps_have_no_state_that_older_clients_refuse() -> None:
    assert len(StepState) == STEP_STATES_0_1
