"""A watch as a stream of lines: how everything stands, then what changes, until all has ended."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from pydantic import BaseModel

from grange.client.models import WatchBeat, WatchBuild, WatchLog, WatchStart, WatchStep
from grange.coordinator.farm import Farm
from grange.coordinator.watch import Watch
from grange.ports import BuildRecord
from grange.scheduler.facts import StepId, check_of
from grange.web.views import Views

BEAT_S: Final = 10.0  # between lines, so that a client can tell a quiet farm from a dead one
GATHER_S: Final = 0.05  # news that comes this close together goes out together


def _line(event: BaseModel) -> bytes:
    return event.model_dump_json().encode() + b"\n"


async def watch(
    farm: Farm, views: Views, records: Sequence[BuildRecord], *, logs: bool
) -> AsyncIterator[bytes]:
    """Lines of WatchEvents about these builds."""
    roots = list(dict.fromkeys(r.drv_path for r in records if not _has_succeeded(r)))
    nodes = {node.spec.id: node for node in await farm.journal.unfinished_graph(roots)}
    checks = {check_of(r.root): r.root for r in records if r.is_check and r.finished is None}
    opened = Watch([*nodes, *checks], [record.id for record in records], logs=logs)
    farm.watches.open(opened)
    try:
        steps = {id_: views.node(node) for id_, node in nodes.items()}
        roots_now = await farm.journal.steps(list(checks.values()))
        steps |= {id_: views.check(id_, roots_now[root]) for id_, root in checks.items()}
        fresh = await farm.journal.builds_of([record.id for record in records])
        yield _line(WatchStart(builds=await views.builds(fresh), steps=list(steps.values())))
        unfinished = {record.id for record in fresh if record.finished is None}
        while unfinished:
            try:
                async with asyncio.timeout(BEAT_S):
                    await opened.has_news.wait()
            except TimeoutError:
                yield _line(WatchBeat())
                continue
            await asyncio.sleep(GATHER_S)
            step_news, build_news, log_news = opened.take()
            lines = [
                _line(WatchLog(step=step, attempt=attempt, text=data.decode("utf-8", "replace")))
                for step, attempt, data in log_news
            ]
            lines += [
                _line(WatchStep(step=views.news(steps[StepId(news.step)], news)))
                for news in step_news
            ]
            ended = await farm.journal.builds_of([news.build for news in build_news])
            lines += [_line(WatchBuild(build=build)) for build in await views.builds(ended)]
            unfinished -= {record.id for record in ended if record.finished is not None}
            yield b"".join(lines)
    finally:
        farm.watches.close(opened)


def _has_succeeded(record: BuildRecord) -> bool:
    return record.outcome is not None and record.outcome.is_success
