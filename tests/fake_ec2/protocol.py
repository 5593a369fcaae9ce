"""Amazon's wire formats, read off the same models that the real client goes by: so requests are
understood, and answers said, as that client means and expects them."""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final
from xml.sax.saxutils import escape

import botocore.session
from botocore.model import ServiceModel

VERSIONS: Final = {"2016-11-15": "ec2", "2011-06-15": "sts"}


class AwsError(Exception):
    def __init__(self, code: str, message: str = "", status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status = code, message or f"said the fake: {code}", status


@cache
def model(service: str) -> ServiceModel:
    return botocore.session.get_session().get_service_model(service)


def read(service: str, action: str, form: Mapping[str, str]) -> dict[str, Any]:
    """A request in the EC2 or the query format, as the caller gave it to the client."""
    shape = model(service).operation_model(action).input_shape
    found = _read(shape, form, "")
    return found if isinstance(found, dict) else {}


def _read(shape: Any, form: Mapping[str, str], name: str) -> Any:
    if shape.type_name == "structure":
        found = {}
        for member, of in shape.members.items():
            part = _request_name(member, of)
            value = _read(of, form, f"{name}.{part}" if name else part)
            if value is not None:
                found[member] = value
        return found or None
    if shape.type_name == "list":
        items: list[Any] = []
        while (value := _read(shape.member, form, f"{name}.{len(items) + 1}")) is not None:
            items.append(value)
        return items or None
    said = form.get(name)
    if said is None:
        return None
    if shape.type_name == "boolean":
        return said == "true"
    if shape.type_name in ("integer", "long"):
        return int(said)
    return float(said) if shape.type_name in ("float", "double") else said


def _request_name(member: str, shape: Any) -> str:
    said = shape.serialization
    if "queryName" in said:
        return str(said["queryName"])
    name = said.get("name", member)
    return str(name[0].upper() + name[1:])


def answer(service: str, action: str, said: Mapping[str, Any]) -> str:
    """What the client makes the same mapping of again."""
    shape = model(service).operation_model(action).output_shape
    inner = _members(shape, said) if shape is not None else ""
    if service == "sts":
        inner = f"<{action}Result>{inner}</{action}Result>"
    return f"<{action}Response><requestId>fake</requestId>{inner}</{action}Response>"


def _members(shape: Any, said: Mapping[str, Any]) -> str:
    unknown = set(said) - set(shape.members)
    assert not unknown, f"{shape.name} has no {unknown}"
    return "".join(
        _write(of, said[member], of.serialization.get("name", member))
        for member, of in shape.members.items()
        if said.get(member) is not None
    )


def _write(shape: Any, value: Any, name: str) -> str:
    if shape.type_name == "structure":
        return f"<{name}>{_members(shape, value)}</{name}>"
    if shape.type_name == "list":
        item = shape.member.serialization.get("name", "item")
        inner = "".join(_write(shape.member, each, item) for each in value)
        return f"<{name}>{inner}</{name}>"
    if isinstance(value, bool):
        return f"<{name}>{str(value).lower()}</{name}>"
    if isinstance(value, datetime):
        return f"<{name}>{value.strftime('%Y-%m-%dT%H:%M:%S.%fZ')}</{name}>"
    return f"<{name}>{escape(str(value))}</{name}>"


def refusal(service: str, error: AwsError) -> str:
    said = f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message></Error>"
    if service == "sqs":
        return json.dumps({"__type": error.code, "message": error.message})
    if service == "sts":
        return f"<ErrorResponse>{said}</ErrorResponse>"
    return f"<Response><Errors>{said}</Errors><RequestID>fake</RequestID></Response>"
