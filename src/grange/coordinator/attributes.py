"""What a derivation says for itself in its attributes, plain or structured (`__json`)."""

import json
from typing import Final

from grange.errors import PeerError
from grange.scheduler.facts import Limits
from grange.store.derivation import Derivation

LIMIT_MAX: Final = 2**53 - 1  # the wire's fields are wider, JSON's numbers are not

_LIMITS: Final = {
    "maxSilentTime": "silent_s",
    "buildTimeout": "build_s",
    "maxLogSize": "log_bytes",
    "maxOutputSize": "output_bytes",
}


def required_features(drv: Derivation) -> tuple[str, ...]:
    """What `requiredSystemFeatures` says; sorted."""
    if "__json" not in drv.env:
        return tuple(sorted(set(drv.env.get("requiredSystemFeatures", "").split())))
    features = _structured(drv).get("requiredSystemFeatures", [])
    if isinstance(features, list) and all(isinstance(feature, str) for feature in features):
        return tuple(sorted(set(features)))
    raise PeerError(f"derivation {drv.name!r}: requiredSystemFeatures is no list of strings")


def own_limits(drv: Derivation) -> Limits:
    """The limits that the derivation sets itself: seconds and bytes, zero or empty for none.

    Raises PeerError for one that is no such number.
    """
    said = _structured(drv) if "__json" in drv.env else drv.env
    found = {
        field: _number(drv.name, attribute, said[attribute])
        for attribute, field in _LIMITS.items()
        if attribute in said
    }
    return Limits(**found)


def _structured(drv: Derivation) -> dict[str, object]:
    try:
        said = json.loads(drv.env["__json"])
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        return said
    raise PeerError(f"derivation {drv.name!r}: its structured attributes are no JSON object")


def _number(drv_name: str, attribute: str, value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 17:
        value = int(value)
    if value == "" or value is None:
        return 0  # `null` becomes an empty string in a plain attribute
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LIMIT_MAX:
        return value
    raise PeerError(
        f"derivation {drv_name!r}: {attribute} is {str(value)[:100]!r}, where a whole number of "
        f"{'seconds' if _LIMITS[attribute].endswith('_s') else 'bytes'} is wanted; 0 is no limit"
    )
