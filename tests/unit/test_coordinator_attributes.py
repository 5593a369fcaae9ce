"""What derivations say for themselves, plain and structured."""

import json

import pytest

from grange.coordinator.attributes import own_limits, required_features
from grange.errors import PeerError
from grange.scheduler.facts import Limits
from grange.store.derivation import Derivation


def drv(env: dict[str, str]) -> Derivation:
    return Derivation("d", {}, {}, (), "x86_64-linux", "/bin/sh", (), env)


def test_plain_attributes() -> None:
    env = {"buildTimeout": "60", "maxSilentTime": "5", "maxLogSize": "100", "maxOutputSize": "9"}
    assert own_limits(drv(env)) == Limits(silent_s=5, build_s=60, log_bytes=100, output_bytes=9)


def test_structured_attributes_hide_plain_ones() -> None:
    env = {"__json": json.dumps({"buildTimeout": 60}), "maxSilentTime": "5"}
    assert own_limits(drv(env)) == Limits(build_s=60)


@pytest.mark.parametrize("env", [{}, {"buildTimeout": ""}, {"buildTimeout": "0"}])
def test_no_limit(env: dict[str, str]) -> None:
    assert own_limits(drv(env)) == Limits()


@pytest.mark.parametrize(
    "env",
    [
        {"buildTimeout": "-1"},
        {"buildTimeout": "1h"},
        {"buildTimeout": "9" * 5000},
        {"buildTimeout": "\u0661"},
        {"__json": '{"buildTimeout": true}'},
        {"__json": '{"buildTimeout": 1.5}'},
        {"__json": '{"buildTimeout": [1]}'},
    ],
)
def test_what_is_no_number_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(PeerError, match="buildTimeout is"):
        own_limits(drv(env))


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000])
def test_structured_attributes_must_be_an_object(text: str) -> None:
    with pytest.raises(PeerError, match="no JSON object"):
        own_limits(drv({"__json": text}))


def test_features() -> None:
    assert required_features(drv({"requiredSystemFeatures": "kvm  big kvm"})) == ("big", "kvm")
    structured = {"__json": '{"requiredSystemFeatures": ["kvm"]}'}
    assert required_features(drv(structured)) == ("kvm",)
    with pytest.raises(PeerError, match="no list of strings"):
        required_features(drv({"__json": '{"requiredSystemFeatures": "kvm"}'}))
