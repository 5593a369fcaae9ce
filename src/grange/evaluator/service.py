"""The evaluator as a whole: what it is told, and its parts together."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grange.client.closure import StorePlace
from grange.client.images import ImageClient
from grange.client.sources import LocalStore
from grange.evaluator.jobs import Jobs, TempRoots, clear
from grange.evaluator.worker import Worker

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluatorConfig:
    name: str  # for people, and for the farm to tell evaluators apart
    folder: Path  # what it keeps of package sources; its own, and made where it is missing
    place: StorePlace  # the store it evaluates into
    store: str = ""  # what Nix calls that store; "": this machine's
    systems: tuple[str, ...] = ()  # it evaluates for; none: all
    at_once: int = 1


async def run_evaluator(
    config: EvaluatorConfig,
    *,
    client: Callable[[], ImageClient],
    client_with: Callable[[str], ImageClient],
    open_store: Callable[[], LocalStore],
    open_roots: Callable[[], Awaitable[TempRoots]],
) -> None:
    """Evaluate for a farm until cancelled, whatever becomes of its coordinators meanwhile.

    `client` gives a client that shows who we are, `client_with` one that shows another header;
    each call has one of its own, in a thread. `open_store` and `open_roots` open the store of
    `config`: its sources, and a connection that keeps paths.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    clear(config.folder)
    jobs = Jobs(
        config.folder,
        config.place,
        store=config.store,
        client_with=client_with,
        open_store=open_store,
        open_roots=open_roots,
    )
    log.info("evaluates packages of images, as %s", config.name)
    worker = Worker(
        client, jobs.run, name=config.name, systems=config.systems, at_once=config.at_once
    )
    await worker.run()
