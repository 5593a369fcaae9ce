"""Looks into the derivation of a build, on the master or through its worker."""

import os
from typing import Any, Final, cast

from buildbot.process.buildstep import BuildStep
from buildbot.process.remotecommand import RemoteShellCommand
from twisted.internet.error import ConnectionLost

from grange.buildbot.policy import Settings
from grange.buildbot.unbuilt import (
    Ask,
    ask_of,
    features_of,
    fetch_command,
    plan_command,
    read_drv,
    read_fetched,
    read_plan,
)
from grange.errors import PeerError
from grange.store.derivation import DERIVATION_BYTES_MAX
from grange.store.path import StoreDir, StorePath

PLAN_S: Final = 600  # substituters are asked about every input that is not there
ANSWER_LINES_MAX: Final = 200_000  # of 76 characters, from a worker
READ_MAX: Final = 2_000  # files that a master reads itself, which takes it a second at most
READ_BYTES_MAX: Final = 64 << 20  # of them together


async def look(step: BuildStep, settings: Settings) -> Ask | str | None:
    """What a reservation for the build of `step` must ask for; None: nothing is to be built; a
    text: why it cannot be said."""
    store_dir = StoreDir(settings.store_dir)
    said = step.getProperty("system")
    system = said if isinstance(said, str) else None
    try:
        top = store_dir.parse(str(step.getProperty("drv_path")))
    except PeerError:
        ask = ask_of([system], (), settings.features, "the build has no property drv_path")
        return ask or "it has neither of the properties system and drv_path"
    plan, trouble = await _plan(step, top, store_dir)
    if plan == ():
        return None
    found = f"{len(plan or ())} derivations are to be built"
    texts = _on_master(plan or (top,), settings.store_dir)
    if texts is None and plan is not None:
        texts, trouble = await _by_worker(step, top, plan, store_dir)
    if plan is None or texts is None:
        found = f"features of inputs are not known: {trouble}"
    try:
        features = features_of(texts or {}, store_dir)
        own = read_drv(texts[top], top, store_dir).system if texts and top in texts else None
    except PeerError as error:
        features, own, found = (), None, f"features are not known: {error}"
    ask = ask_of([own, system], features, settings.features, found)
    return ask or f"{top} names no system that builders have"


async def _plan(
    step: BuildStep, top: StorePath, store_dir: StoreDir
) -> tuple[tuple[StorePath, ...] | None, str]:
    """What is to be built, or why that is not known."""
    command = await _run(step, plan_command(store_dir.show(top)))
    if command.rc != 0:
        last = (command.stderr.strip().splitlines() or ["it says nothing"])[-1]
        return None, f"nix-store on the worker failed ({last[:300]})"
    plan = read_plan(command.stderr, store_dir)
    return plan, "" if plan is not None else "nix-store on the worker says what is not understood"


async def _by_worker(
    step: BuildStep, top: StorePath, plan: tuple[StorePath, ...], store_dir: StoreDir
) -> tuple[dict[StorePath, bytes] | None, str]:
    names = "".join(f"{store_dir.show(path)}\n" for path in plan)
    command = await _run(step, fetch_command(store_dir.show(top)), names)
    texts = read_fetched(command.stdout, store_dir) if command.rc == 0 else None
    return texts, "" if texts is not None else "the worker could not read them"


async def _run(step: BuildStep, argv: list[str], stdin: str | None = None) -> RemoteShellCommand:
    """Without a log: what it prints is for us."""
    assert step.build is not None, "it runs"
    command = RemoteShellCommand(
        cast(Any, step.build.workdir),
        argv,
        env=await step.build.render(step.build.env),
        collectStdout=True,
        collectStderr=True,
        timeout=PLAN_S,
        max_lines=ANSWER_LINES_MAX,
        logEnviron=False,
        initialStdin=stdin,
    )
    try:
        await step.runCommand(command)
    except ConnectionLost:
        raise  # the build is over, for this worker
    except Exception as failed:  # whatever a worker, or the way to it, makes of it
        command.rc, command.stderr = -1, str(failed)
    return command


def _on_master(paths: tuple[StorePath, ...], root: str) -> dict[StorePath, bytes] | None:
    """Their texts, where the master has all of them."""
    if len(paths) > READ_MAX:
        return None
    found: dict[StorePath, bytes] = {}
    left = READ_BYTES_MAX
    for path in paths:
        text = drv_on_master(path, root)
        if text is None or len(text) > left:
            return None
        left -= len(text)
        found[path] = text
    return found


def drv_on_master(path: StorePath, root: str) -> bytes | None:
    """None where the master's store does not have it, or has something else there."""
    try:
        with open(os.path.join(root, path), "rb") as file:
            return file.read(DERIVATION_BYTES_MAX + 1)
    except OSError:
        return None
