"""Which right is missing, by name: what AWS says of it is often an encoded message."""

import json
import re
from dataclasses import replace
from typing import Final

from grange.cloud.ec2.calls import Calls, RefusedError
from grange.cloud.ec2.failures import DENIED
from grange.errors import GrangeError, OperatorError, OutsideError

_PLAIN: Final = re.compile(
    r"User: (?P<who>\S+) is not authorized to perform: (?P<action>[\w-]+:\w+)"
    r"(?: on resource: (?P<resource>\S+))?"
)
_ENCODED: Final = re.compile(r"Encoded authorization failure message: (\S+)")
_REMEDY: Final = "docs/operating/ec2.md has the whole policy"


async def named(calls: Calls, error: RefusedError) -> RefusedError:
    """The same, with the missing right in its message where it was for want of one."""
    if error.refused.code not in DENIED:
        return error
    text = await missing(calls, error.action, error.refused.message)
    return RefusedError(error.action, replace(error.refused, message=text))


async def missing(calls: Calls, action: str, message: str) -> str:
    """In a sentence; `action` is what was called, which may need rights of other names."""
    encoded = _ENCODED.search(message)
    if encoded is not None:
        try:
            return await _decoded(calls, encoded.group(1))
        except (RefusedError, ValueError, KeyError, TypeError):
            pass  # said in its own words
    plain = _PLAIN.search(message)
    if plain is not None:
        return _sentence(plain["who"], plain["action"], plain["resource"] or "", "no policy allows")
    hint = "; allow sts:DecodeAuthorizationMessage to see which resource" if encoded else ""
    return _sentence("the farm", action, "", "no policy allows") + hint


async def _decoded(calls: Calls, encoded: str) -> str:
    answer = await calls.ask("sts", "decode_authorization_message", EncodedMessage=encoded)
    said = json.loads(answer["DecodedMessage"])
    context = said["context"]
    verb = "a policy denies" if said.get("explicitDeny") else "no policy allows"
    return _sentence(context["principal"]["arn"], context["action"], context["resource"], verb)


def _sentence(who: str, action: str, resource: str, verb: str) -> str:
    where = f" on {resource}" if resource else ""
    return f"{verb} {who} the action {action}{where}; {_REMEDY}"


async def raised(calls: Calls, what: str, error: RefusedError) -> GrangeError:
    """What a call other than a launch raises."""
    if error.refused.code in DENIED:
        text = await missing(calls, error.action, error.refused.message)
        return OperatorError(f"AWS does not let the farm {what}: {text}")
    if error.refused.is_ours:
        return OperatorError(
            f"AWS cannot be asked to {what}: {error.refused.text}; see [ec2] and the farm's "
            "AWS credentials"
        )
    return OutsideError(f"AWS could not {what}: {error.refused.text}")
