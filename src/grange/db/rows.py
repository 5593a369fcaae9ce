"""Rows as the queries give and take them, and the records they stand for.

What goes into a row is made a plain `str` first: the sqlite3 module binds it several times faster
than a subclass.
"""

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple
from enum import IntEnum
from typing import Any

from grange.ports import AttemptRecord, BuildRecord
from grange.scheduler.facts import (
    NO_LIMITS,
    AgentSpec,
    Cause,
    Limits,
    Outcome,
    QueueKey,
    StepId,
    Thresholds,
    Usage,
)
from grange.store.content import ContentAddress
from grange.store.hash import Hash
from grange.store.narinfo import NarInfo, PathInfo
from grange.store.path import HASH_PART_CHARS, StorePath

Row = tuple[Any, ...]
NO_CAUSE: Row = (None, None, None, None, None)


class StepState(IntEnum):
    """As in `steps.state`; goes up, but for a step whose outputs were lost."""

    KNOWN = 0
    PUBLISHING = 1  # path infos are committed, narinfos perhaps not in place
    DONE = 2


def pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}i", *ids)


def unpack_ids(data: bytes) -> tuple[StepId, ...]:
    return struct.unpack(f"<{len(data) // 4}i", data)


def show_paths(paths: Iterable[StorePath]) -> str:
    return " ".join(paths)


def read_paths(text: str) -> tuple[StorePath, ...]:
    return tuple(map(StorePath, text.split()))


def show_outputs(outputs: Iterable[tuple[str, StorePath]]) -> str:
    return " ".join([f"{name} {path}" for name, path in outputs])


def read_outputs(text: str) -> tuple[tuple[str, StorePath], ...]:
    words = text.split()
    return tuple(zip(words[::2], map(StorePath, words[1::2]), strict=True))


def show_queue(queue: QueueKey) -> tuple[str, str, str]:
    return queue.system, json.dumps(queue.features), json.dumps(queue.tags)


def read_queue(system: str, features: str, tags: str) -> QueueKey:
    return QueueKey(system, tuple(json.loads(features)), tuple(json.loads(tags)))


def show_limits(limits: Limits) -> str:
    """Empty for none, because most have none and walks read many."""
    return "" if limits == NO_LIMITS else " ".join(map(str, astuple(limits)))


def read_limits(text: str) -> Limits:
    return Limits(*map(int, text.split())) if text else NO_LIMITS


def cause_row(cause: Cause | None) -> Row:
    if cause is None:
        return NO_CAUSE
    return cause.outcome.value, cause.message, cause.step, cause.attempt, cause.limit


def read_cause(row: Row) -> Cause | None:
    if row[0] is None:
        return None
    return Cause(Outcome(row[0]), *row[1:])


def usage_row(usage: Usage) -> Row:
    return (
        usage.fetch_s,
        usage.build_s,
        usage.upload_s,
        usage.cpu_user_s,
        usage.cpu_system_s,
        usage.memory_peak_bytes,
        usage.io_read_bytes,
        usage.io_write_bytes,
    )


def read_attempt(row: Row) -> AttemptRecord:
    id_, step, drv_path, agent, agent_name, started, ended, outcome, message = row[:9]
    return AttemptRecord(
        id_,
        step,
        StorePath(drv_path),
        agent,
        agent_name,
        started,
        ended,
        None if outcome is None else Outcome(outcome),
        message,
        Usage(*row[9:17]),
        bool(row[17]),
    )


def read_build(row: Row) -> BuildRecord:
    id_, drv_path, root, project, priority, tags, submitted_by, created, finished = row[:9]
    return BuildRecord(
        id_,
        StorePath(drv_path),
        root,
        project,
        priority,
        tuple(json.loads(tags)),
        submitted_by,
        created,
        finished,
        None if row[9] is None else Outcome(row[9]),
        read_cause(row[10:15]),
        read_limits(row[15]),
        bool(row[16]),
        row[17],
    )


def show_agent(spec: AgentSpec) -> str:
    return json.dumps(asdict(spec))


def read_agent(text: str) -> AgentSpec:
    facts = json.loads(text)
    thresholds = Thresholds(**facts.pop("thresholds"))
    lists = {key: tuple(value) for key, value in facts.items() if isinstance(value, list)}
    return AgentSpec(**{**facts, **lists, "thresholds": thresholds})


def path_row(narinfo: NarInfo, origin: str, step: int | None) -> Row:
    info = narinfo.info
    base, deriver, address = info.path, info.deriver, info.content_address
    return (
        base[:HASH_PART_CHARS],
        base[HASH_PART_CHARS + 1 :],
        origin,
        step,
        show_hash(info.nar_hash),
        info.nar_bytes,
        " ".join(info.references),
        None if deriver is None else str(deriver),
        None if address is None else address.show(),
        " ".join(info.signatures),
        narinfo.url,
        narinfo.compression,
        None if narinfo.file_hash is None else show_hash(narinfo.file_hash),
        narinfo.file_bytes,
    )


def mirrored_row(narinfo: NarInfo) -> Row:
    """As `set_mirrored` takes it."""
    row = path_row(narinfo, "", None)
    return row[0], row[4], *row[9:]


def read_narinfo(row: Row) -> NarInfo:
    hash_part, name, nar_hash, nar_bytes, references, deriver, address, signatures = row[:8]
    url, compression, file_hash, file_bytes = row[8:]
    return NarInfo(
        PathInfo(
            StorePath(f"{hash_part}-{name}"),
            read_hash(nar_hash),
            nar_bytes,
            read_paths(references),
            None if deriver is None else StorePath(deriver),
            None if address is None else ContentAddress.parse(address),
            tuple(signatures.split()),
        ),
        url,
        compression,
        None if file_hash is None else read_hash(file_hash),
        file_bytes,
    )


def show_hash(value: Hash) -> str:
    return f"{value.algorithm}:{value.digest.hex()}"


def read_hash(text: str) -> Hash:
    algorithm, _, digest = text.partition(":")
    return Hash(algorithm, bytes.fromhex(digest))
