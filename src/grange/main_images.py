"""Builds the adapters of container images and hands them to whoever makes and serves them, for
`grange.main`."""

import asyncio
import logging
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
import httpx

from grange.agent.daemons import Store
from grange.cli.image_tables import ImageFile
from grange.client.app_transport import AppTransport
from grange.client.credentials import bearer, token_in
from grange.coordinator.farm import Farm
from grange.coordinator.images import FarmBuilds, evaluation_tokens, evaluator_check
from grange.coordinator.own_tokens import ADMIN_FILE
from grange.errors import GrangeError, OperatorError, OutsideError
from grange.evaluator import FEATURE
from grange.images.answers import checking
from grange.images.collect import Collector
from grange.images.evaluations import Evaluations
from grange.images.explain import Explainer
from grange.images.filler import Filler, Policy
from grange.images.layers import Layers
from grange.images.maker import FarmMaker
from grange.images.metrics import ImageMetrics
from grange.images.mirror import Mirror
from grange.images.remote import RemoteMaker
from grange.images.service import Images
from grange.images.settings import ImageSettings
from grange.images.sources import Sources
from grange.main_evaluator import evaluate_for
from grange.oci.segments import GZIP, ZSTD
from grange.ports import Catalog, Clock, ImageRequest, Made, Maker, Objects, Pending
from grange.registry.app import RegistryOptions
from grange.registry.metrics import RegistryMetrics
from grange.store.path import StorePath
from grange.web.images import ImageParts
from grange.web.registry import RegistryParts, may_pull

log = logging.getLogger(__name__)

AGAIN_S: Final = 10.0  # after a failure in what makes images
NIX: Final = "nix-instantiate"


def _is_evaluated_here(wanted: bool | None) -> bool:
    """`wanted` is what the file says. Raises OperatorError for what cannot be: jobs would be taken
    from agents that can do them."""
    has_nix = shutil.which(NIX) is not None
    if wanted and not has_nix:
        raise OperatorError(
            f"here in [images.evaluation] is true, and there is no {NIX} on the PATH of grange "
            "serve: install Nix, or leave here out and have an agent offer grange-eval"
        )
    return has_nix if wanted is None else wanted


class FarmImages:
    """A farm's images: served by every coordinator, made by the one that leads."""

    def __init__(
        self,
        farm: Farm,
        file: ImageFile,
        *,
        clock: Clock,
        catalog: Catalog,
        http: aiohttp.ClientSession,
        state: Path,
        may_all_read: bool,
    ) -> None:
        """`state` is the farm's directory, which has its own tokens."""
        self._farm = farm
        self._file = file
        self._agent_tag = file.agent_tag
        self._token_file = state / ADMIN_FILE
        self._folder = state.absolute() / "images"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        store_dir, journal = farm.settings.store_dir, farm.journal
        metrics = ImageMetrics(farm.metrics.registry)

        self._noting: set[asyncio.Task[None]] = set()

        def layers_of(objects: Objects, at_once: int = os.cpu_count() or 1) -> Layers:
            return Layers(
                catalog=catalog,
                objects=objects,
                narinfos=journal.narinfos,
                store_dir=store_dir,
                at_once=at_once,
                spool_folder=self._folder,
                metrics=metrics,
                on_lost=self._note_lost,
            )

        self._layers = layers_of(farm.objects)
        self._filler = Filler(
            catalog=catalog,
            objects=farm.objects,
            make_layers=lambda objects: layers_of(objects, 1),
            narinfos=journal.narinfos,
            codecs=(GZIP, ZSTD) if file.settings.is_zstd_allowed else (GZIP,),
            is_busy=self._is_busy,
            metrics=metrics,
            policy=Policy(file.precompute),
        )
        self._mirror = Mirror(
            journal=journal,
            objects=farm.objects,
            publisher=farm.publisher,
            holds=farm.holds,
            http=http,
            keys=farm.settings.keys,
            store_dir=store_dir,
            forget=farm.cache.forget,
            on_verified=self._filler.verified if self._filler.wants_diff_ids else None,
        )
        project = file.settings.project
        builds = FarmBuilds(farm, project)
        evaluations = Evaluations(evaluation_tokens(farm, project), checking(store_dir))
        self._sources = Sources(
            file.settings,
            catalog=catalog,
            builds=builds,
            evaluations=evaluations,
            clock=clock,
            store_dir=store_dir,
            metrics=metrics,
        )
        self._maker = FarmMaker(
            catalog=catalog,
            builds=builds,
            layers=self._layers,
            mirror=self._mirror,
            sources=self._sources,
            clock=clock,
            store_dir=store_dir,
            metrics=metrics,
        )
        self._collector = Collector(
            catalog=catalog,
            objects=farm.objects,
            clock=clock,
            narinfos=journal.narinfos,
            stored_paths=self._stored_paths,
            store_dir=store_dir,
            unused_s=file.unused_s,
        )
        is_far = farm.settings.cache_url.startswith("https://")  # else no proxy stands between
        self._remote = httpx.AsyncClient(trust_env=is_far)
        maker = _LeadersMaker(farm, self._maker, self._remote, self._token, self._settings)
        self._images = Images(
            file.settings, catalog=catalog, maker=maker, layers=self._layers, clock=clock
        )
        explainer = Explainer(self._sources, catalog=catalog, builds=builds, store_dir=store_dir)
        self.parts = ImageParts(
            self._source_names,
            catalog,
            maker,
            explainer,
            evaluations,
            self._collector,
            evaluator_check(farm, FEATURE, lambda: self._agent_tag),
        )
        is_open = file.may_all_pull or may_all_read
        self.registry = RegistryParts(
            self._images,
            RegistryOptions(
                may_pull(is_open=is_open),
                RegistryMetrics(farm.metrics.registry),
                is_open,
                file.wait_s,
            ),
            self._settings,
        )
        farm.retention.kept_roots = catalog.kept_roots
        farm.on_published = self._filler.published
        if self._filler.wants_diff_ids:
            farm.uploads.want_diff_ids(self._filler.verified)
        farm.while_leading += [
            partial(_kept_up, "what makes images", self._maker.run),
            partial(_kept_up, "what makes layers ahead of need", self._filler.run),
            partial(_kept_up, "the collection of images", self._collector.run),
        ]

    def evaluate(self, app: object, nix_config: str) -> None:
        """Evaluate packages here while this process leads, if the file says so or nothing of it and
        Nix is here. `app` is the farm's own application; `nix_config` is for Nix, beyond what this
        machine says. Raises OperatorError where the file says so in vain."""
        if _is_evaluated_here(self._file.evaluates_here):
            evaluate = partial(self._evaluate, app, nix_config)
            self._farm.while_leading.append(partial(_kept_up, "the evaluator here", evaluate))
        else:
            log.info("packages of images are evaluated by agents with the feature grange-eval")

    async def _evaluate(self, app: object, nix_config: str) -> None:
        store = "" if self._file.store is None else str(self._file.store)
        await evaluate_for(
            self._farm.settings.cache_url,
            self._token(),
            name=f"coordinator on {socket.gethostname()}",
            folder=self._folder / "evaluator",
            store=Store(store, self._farm.settings.store_dir, nix_config),
            transport=AppTransport(app, asyncio.get_running_loop()),
        )

    def change(self, file: ImageFile) -> None:
        """Go by what this says of sources, evaluation and layers from now on."""
        self._sources.settings = file.settings
        self._images.settings = file.settings
        self._agent_tag = file.agent_tag

    def _note_lost(self, path: StorePath) -> None:
        """A standby leaves it to the leader, which hears of it once it is asked for the blob."""
        if self._farm.is_leading:
            task = asyncio.create_task(_noted(self._maker, path))
            self._noting.add(task)
            task.add_done_callback(self._noting.discard)

    async def close(self) -> None:
        for task in self._noting:
            task.cancel()
        await asyncio.gather(*self._noting, return_exceptions=True)
        await self._layers.close()
        await self._remote.aclose()

    def _settings(self) -> ImageSettings:
        return self._images.settings

    def _source_names(self) -> Collection[str]:
        return self._images.settings.sources.keys()

    def _token(self) -> str:
        return bearer(token_in(self._token_file))

    async def _stored_paths(self) -> list[StorePath]:
        return [each.path for each in await self._farm.retained.stored_paths()]

    def _is_busy(self) -> bool:
        """Whether somebody waits for what this machine does."""
        under_way = self._maker.under_way or self._mirror.under_way
        is_loaded = os.getloadavg()[0] > (os.cpu_count() or 1)
        return bool(under_way or self._farm.deliveries.pending or is_loaded)


async def _noted(maker: FarmMaker, path: StorePath) -> None:
    try:
        await maker.note_lost(path)
    except (GrangeError, OSError) as error:
        log.warning("%s is lost, and its images stay as they are: %s", path, error)


async def _kept_up(what: str, run: Callable[[], Awaitable[None]]) -> None:
    """Until cancelled: `run`. A defect in what makes images ends no build: it begins anew."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("%s failed, and begins anew in %g s", what, AGAIN_S)
        await asyncio.sleep(AGAIN_S)


class _LeadersMaker:
    """Implements `grange.ports.Maker` in every coordinator: here while it leads, else there."""

    def __init__(
        self,
        farm: Farm,
        here: FarmMaker,
        http: httpx.AsyncClient,
        token: Callable[[], str],
        settings: Callable[[], ImageSettings],
    ) -> None:
        self._farm = farm
        self._here = here
        self._http = http
        self._token = token
        self._settings = settings

    async def make(self, request: ImageRequest, wait_s: float) -> Made | Pending:
        return await self._who_leads().make(request, wait_s)

    async def note_used(self, digests: Collection[str]) -> None:
        await self._who_leads().note_used(digests)

    def _who_leads(self) -> Maker:
        if self._farm.is_leading:
            return self._here
        leader = self._farm.leadership.leader()
        if leader is None or leader.url == self._farm.settings.cache_url:
            raise OutsideError("no coordinator leads the farm just now; try again in a moment")
        return RemoteMaker(
            self._http, leader.url, authorization=self._token, settings=self._settings
        )
