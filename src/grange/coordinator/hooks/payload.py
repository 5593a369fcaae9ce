"""What a hook is told: an event as JSON, for others to read."""

import json
from collections.abc import Mapping
from typing import Any

from grange.client.words import explain, words_of
from grange.ports import FarmEvent
from grange.scheduler.facts import Cause, Outcome
from grange.store.path import StoreDir, StorePath


def payload(event: FarmEvent, store_dir: StoreDir) -> dict[str, Any]:
    """The event with absolute store paths, and its outcome in words."""
    body = dict(event.body)
    for name in ("build", "step"):
        if name in body:
            body[name] = _placed(body[name], store_dir)
    if "cause" in body:
        body["cause"] = _cause(body["cause"], store_dir)
    if "missing" in body:
        body["missing"] = [store_dir.show(StorePath(path)) for path in body["missing"]]
        body["rebuilt"] = [_placed(step, store_dir) for step in body["rebuilt"]]
    if "outcome" in body and "cause" not in body:
        body["words"] = words_of(Outcome(body["outcome"])).happened
    return {
        "id": event.id,
        "event": event.kind.value,
        "time": event.at,
        "project": event.project,
        **body,
    }


def encode(event: FarmEvent, store_dir: StoreDir) -> bytes:
    return json.dumps(payload(event, store_dir), separators=(",", ":")).encode()


def _placed(facts: Mapping[str, Any], store_dir: StoreDir) -> dict[str, Any]:
    placed = dict(facts)
    if "drv_path" in placed:
        placed["drv_path"] = store_dir.show(StorePath(placed["drv_path"]))
    if "outputs" in placed:
        outputs = placed["outputs"].items()
        placed["outputs"] = {name: store_dir.show(StorePath(path)) for name, path in outputs}
    return placed


def _cause(facts: Mapping[str, Any], store_dir: StoreDir) -> dict[str, Any]:
    outcome = Outcome(facts["outcome"])
    words = words_of(outcome)
    told = dict(facts)
    if "step" in told:
        told["step"] = _placed(told["step"], store_dir)
    told["words"] = explain(Cause(outcome, facts["message"], limit=facts.get("limit")))
    told["fault"] = words.fault
    told["advice"] = words.advice
    return told
