"""Builds an evaluator, beside a coordinator or an agent, for `main`."""

import ssl
from pathlib import Path

import httpx

from grange.agent.daemons import Store
from grange.agent.service import AgentConfig
from grange.client.closure import StorePlace
from grange.client.images import ImageClient
from grange.daemon.local import LocalStore
from grange.evaluator.service import EvaluatorConfig, run_evaluator
from grange.wire.credentials import AgentCredentials


async def evaluate_for(
    url: str,
    authorization: str,
    *,
    name: str,
    folder: Path,
    store: Store,
    systems: tuple[str, ...] = (),
    at_once: int = 1,
    tls: ssl.SSLContext | None = None,
    transport: httpx.BaseTransport | None = None,
) -> None:
    """Evaluate packages for the farm at `url`, as who shows `authorization`, until cancelled.

    `folder`, an absolute path, is for what it keeps of package sources, and `store` for what it
    evaluates. `tls` and `transport` are as of `grange.client.connection.Connection`.
    """

    assert folder.is_absolute()

    def client_with(header: str) -> ImageClient:
        return ImageClient(url, authorization=header, tls=tls, transport=transport)

    await run_evaluator(
        EvaluatorConfig(
            name=name,
            folder=folder,
            place=StorePlace(store.store_dir, str(store.folder)),
            store="" if store.uri == "daemon" else store.uri,
            systems=systems,
            at_once=at_once,
        ),
        client=lambda: client_with(authorization),
        client_with=client_with,
        open_store=lambda: LocalStore(None, store.store_dir, connect=store.connect),
        open_roots=store.connect,
    )


async def evaluate_beside(config: AgentConfig, url: str, credentials: AgentCredentials) -> None:
    """Evaluate packages for the farm of an agent, into the agent's store."""
    tls = None
    if config.tls.ca is not None:
        tls = ssl.create_default_context(cadata=config.tls.ca.decode("ascii", "replace"))
    await evaluate_for(
        url,
        credentials.authorization,
        name=config.name,
        folder=config.state_dir / "evaluator",
        store=Store(config.store, config.store_dir, config.nix_config),
        tls=tls,
    )
