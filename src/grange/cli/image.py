"""`grange image`: images made, put into files, looked into and collected."""

import asyncio
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import click

from grange.cli import options
from grange.cli.app import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REQUEST, complain
from grange.cli.capacity_options import span
from grange.cli.image_archive import Form, Target, write_archive
from grange.cli.image_screens import (
    fetching,
    making,
    show_collected,
    show_explained,
    show_images,
    show_layers,
)
from grange.cli.text import clean, console, print_json
from grange.client.credentials import authorization_for
from grange.client.image_models import (
    ExplainAnswer,
    GcRequest,
    MakeAnswer,
    MakeRequest,
)
from grange.client.image_pull import ImagePuller, PulledImage
from grange.client.images import ImageClient
from grange.errors import OutsideError, PeerError

WATCHED_S: Final = 1.0  # between two looks where somebody watches
UNWATCHED_S: Final = 30.0
SOON_S: Final = 0.2  # for the second look: much is over by then
RECONNECT_S: Final = 120.0  # a farm that restarts is back in seconds
RETRY_S: Final = 1.0
USUAL_TAG: Final = "latest"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a person names an image by."""

    name: str
    tag: str = USUAL_TAG
    digest: str = ""

    @classmethod
    def parse(cls, text: str, url: str) -> "Reference":
        """Read ``NAME``, ``NAME:TAG`` or ``NAME@DIGEST``; the farm's own host may stand before."""
        for prefix in ("docker://", f"{urlsplit(url).netloc}/"):
            text = text.removeprefix(prefix)
        rest, at, digest = text.partition("@")
        name, colon, tag = rest.partition(":")
        if (at and not digest) or (colon and not tag):
            raise PeerError(f"{text!r} is no image; write NAME, NAME:TAG or NAME@sha256:…")
        return cls(name, tag or USUAL_TAG, digest)


def _words(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> list[str]:
    try:
        return shlex.split(text or "")
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no command line: {error}") from None


def _target(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> Target | None:
    return None if text is None else Target.parse(text)


_NAME: Final = click.argument("name", metavar="NAME[:TAG]")
_SYSTEM: Final = click.option(
    "--system",
    type=click.Choice(["x86_64-linux", "aarch64-linux"]),
    default=None,
    help="For which machines [default: x86_64-linux, or as NAME says].",
)


@click.group()
def image() -> None:
    """Container images of packages, which any client pulls from the farm: docs/operating/images.md.

    NAME is packages with slashes between, as in shell/git/htop; `shell` adds a shell.
    """


@image.command()
@_NAME
@click.option(
    "-o",
    "--output",
    callback=_target,
    metavar="oci-archive:FILE|docker-archive:FILE",
    help="Put the image into a file, for docker load, podman load or skopeo.",
)
@_SYSTEM
@click.option("--entrypoint", callback=_words, metavar="COMMAND", help="What a container runs.")
@click.option("--cmd", "command", callback=_words, metavar="COMMAND", help="Arguments for that.")
@click.option("--user", default="", metavar="USER[:GROUP]", help="As whom [default: root].")
@click.option("--zstd", "is_zstd", is_flag=True, help="Layers in zstd, for clients that read it.")
@click.option("--no-progress", is_flag=True, help="Say nothing before the end.")
@options.JSON
@options.URL
@click.pass_context
def build(
    ctx: click.Context,
    *,
    name: str,
    output: Target | None,
    system: str | None,
    entrypoint: list[str],
    command: list[str],
    user: str,
    is_zstd: bool,
    no_progress: bool,
    as_json: bool,
    url: str,
) -> None:
    """Have an image made, of packages that the farm has or builds.

    Prints what to pull, and the manifest's digest. Exits with 0 if it is there, 1 if a build
    failed, 2 if the request was wrong, 3 if the farm is at fault. Ctrl-C leaves the farm at it.
    """
    is_docker = output is not None and output.form is Form.DOCKER
    if is_docker and is_zstd:
        raise click.UsageError("a docker-archive holds layers unpacked: leave --zstd out")
    is_wanted = not no_progress and not as_json
    with ImageClient(url) as client:
        asked = _asked(Reference.parse(name, client.url))
        wanted = MakeRequest(
            name=asked.name,
            tag=asked.tag,
            system=_system(system),
            family="docker" if is_docker else "oci",
            compression="zstd" if is_zstd else "gzip",
            entrypoint=entrypoint,
            command=command,
            user=user,
        )
        answer = _make(ctx, client, wanted, is_wanted=is_wanted)
        host = urlsplit(client.url).netloc
        reference = f"{host}/{answer.name}:{asked.tag}"
        if output is not None:
            asyncio.run(_save(client.url, answer, reference, output, is_wanted=is_wanted))
    plain = not (entrypoint or command or user)
    pinned = f"{host}/{answer.name}@{answer.digest}"
    if as_json:
        print_json(
            {
                "name": answer.name,
                "tag": asked.tag,
                "commit": answer.commit,
                "digest": answer.digest,
                "reference": reference if plain else pinned,
                "file": None if output is None else str(output.path),
            }
        )
    elif output is not None:
        click.echo(f"{output.path}  {reference}  {answer.digest}")
    else:
        click.echo(f"{reference if plain else pinned}\n{answer.digest}")


def _asked(reference: Reference) -> Reference:
    if reference.digest:
        raise PeerError(f"an image is made by name and tag, and {reference.digest} is a digest")
    return reference


def _system(text: str | None) -> Any:
    return text or ""


def _make(
    ctx: click.Context, client: ImageClient, wanted: MakeRequest, *, is_wanted: bool
) -> MakeAnswer:
    """The answer once the image is there; leaves with an exit code where it is not to be."""
    screen = console(stderr=True)
    is_watched = is_wanted and screen.is_terminal
    try:
        with making(screen, is_wanted=is_wanted) as tell:
            answer = made(client, wanted, tell, WATCHED_S if is_watched else UNWATCHED_S)
    except KeyboardInterrupt:
        screen.print("The farm goes on with it; the same command waits for it again.")
        ctx.exit(EXIT_INTERRUPTED)
    if answer.state == "refused":
        complain(clean(answer.words))
        # Whatever names a build is about one that failed.
        ctx.exit(EXIT_FAILED if "build" in (answer.detail or {}) else EXIT_REQUEST)
    if answer.state == "failed":
        raise OutsideError(answer.words)
    return answer


def made(
    client: ImageClient,
    wanted: MakeRequest,
    tell: Callable[[MakeAnswer], None],
    look_s: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> MakeAnswer:
    """The answer when it is no more that it is being made; `tell` hears each until then, after
    `look_s` at most where nothing changes.

    Asks again where the farm goes away and comes back. OutsideError after two minutes without it.
    """
    waited_s, wait_s = 0.0, 0.0  # the first answer is wanted at once, to be shown
    while True:
        try:
            answer = client.make_image(wanted.model_copy(update={"wait_s": wait_s}))
        except OutsideError:
            # One that was never there is not waited for.
            if wait_s == 0.0 or waited_s >= RECONNECT_S:
                raise
            sleep(RETRY_S)
            waited_s += RETRY_S
            continue
        if answer.state != "pending":
            return answer
        tell(answer)
        waited_s, wait_s = 0.0, min(look_s, max(SOON_S, 2 * wait_s))


def _puller(url: str, name: str) -> ImagePuller:
    return ImagePuller(url, name, authorization_for(url))


async def _save(
    url: str, answer: MakeAnswer, reference: str, target: Target, *, is_wanted: bool
) -> None:
    async with _puller(url, answer.name) as puller:
        pulled = await puller.image(answer.digest)
        layers = len({layer.digest for layer in pulled.layers})
        screen = console(stderr=True)
        with fetching(screen, layers, pulled.blob_bytes, is_wanted=is_wanted) as tell:
            await write_archive(puller, pulled, reference, target, tell)


@image.command()
@click.argument("name", metavar="NAME[:TAG|@DIGEST]")
@_SYSTEM
@options.JSON
@options.URL
def inspect(*, name: str, system: str | None, as_json: bool, url: str) -> None:  # noqa: ARG001
    """Show the manifest and the config of an image that was made."""
    with ImageClient(url) as client:
        asked = Reference.parse(name, client.url)
        digest, shown = asked.digest, asked.name
        if not digest:
            answer = client.explain_image(_wanted(asked, system))
            if not answer.is_made:
                raise PeerError(
                    f"{answer.name}:{asked.tag} was not made yet; have it made with: "
                    f"grange image build {answer.name}:{asked.tag}"
                )
            digest, shown = answer.digest, answer.name
        pulled = asyncio.run(_pulled(client.url, shown, digest))
    found = {
        "digest": digest,
        "manifest": json.loads(pulled.manifest),
        "config": json.loads(pulled.config),
    }
    print_json(found)  # whoever asks for it knows how these are written


async def _pulled(url: str, name: str, digest: str) -> PulledImage:
    async with _puller(url, name) as puller:
        return await puller.image(digest)


def _wanted(asked: Reference, system: str | None) -> MakeRequest:
    return MakeRequest(name=asked.name, tag=asked.tag, system=_system(system))


def _explained(url: str, name: str, system: str | None) -> ExplainAnswer:
    with ImageClient(url) as client:
        return client.explain_image(_wanted(_asked(Reference.parse(name, client.url)), system))


@image.command()
@_NAME
@_SYSTEM
@options.JSON
@options.URL
def layers(*, name: str, system: str | None, as_json: bool, url: str) -> None:
    """List the layers an image has, or would have, the lowest first."""
    answer = _explained(url, name, system)
    if as_json:
        print_json(answer.layers)
    else:
        show_layers(answer)


@image.command(short_help="Say what an image is made of, and why.")
@_NAME
@_SYSTEM
@options.JSON
@options.URL
def explain(*, name: str, system: str | None, as_json: bool, url: str) -> None:
    """Say what an image is made of, why its layers are as they are, and what is not known yet.

    Nothing is evaluated, built or fetched for that.
    """
    answer = _explained(url, name, system)
    if as_json:
        print_json(answer)
    else:
        show_explained(answer)


@image.command("list")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1_000))
@options.JSON
@options.URL
def list_images(*, limit: int, as_json: bool, url: str) -> None:
    """List images that were made, the latest first."""
    with ImageClient(url) as client:
        answer = client.images(limit=limit)
    if as_json:
        print_json(answer)
    else:
        show_images(answer)


@image.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option(
    "--unused-for",
    "unused_s",
    callback=span,
    metavar="SPAN",
    help="Images that nobody asked for in so long go as well: 90s, 15m, 2h or 30d.",
)
@click.option(
    "--deep",
    "is_deep",
    is_flag=True,
    help="Blobs of images that stay go too: they are made again, the same, when asked for.",
)
@options.JSON
@options.URL
def gc(*, dry_run: bool, unused_s: float | None, is_deep: bool, as_json: bool, url: str) -> None:
    """Delete blobs that no image has.

    Safe while the farm works: whatever is younger than a day stays, for an image that is being made
    may be about to have it.
    """
    wanted = GcRequest(is_dry=dry_run, unused_s=unused_s, is_deep=is_deep)
    with ImageClient(url) as client:
        answer = client.collect_images(wanted)
    if as_json:
        print_json(answer)
    else:
        show_collected(answer, is_dry=dry_run)
