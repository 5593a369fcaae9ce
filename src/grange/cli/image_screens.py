"""What people see of images: how making one goes, and what it is made of."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from grange.cli.text import clean, console, count, duration, size
from grange.client.image_models import ExplainAnswer, GcAnswer, ImageView, LayerView, MakeAnswer
from grange.store.path import HASH_PART_CHARS

FRAMES_PER_S: Final = 8
BUILDS_SHOWN: Final = 3
PATHS_SHOWN: Final = 6  # of a layer that is explained; most have one
UNKNOWN_SHOWN: Final = 20
NAME_CHARS: Final = 32  # of a path, where what follows is to stand in a column
DIGEST_CHARS: Final = 19  # "sha256:" and twelve, as other tools show them


# --- Making one -------------------------------------------------------------------------------


@contextmanager
def making(screen: Console, *, is_wanted: bool) -> Iterator[Callable[[MakeAnswer], None]]:
    """Told of each answer until the image is there. Without a terminal nothing is shown."""
    if not is_wanted or not screen.is_terminal:
        yield lambda _answer: None
        return
    picture = _Making()
    with Live(picture, console=screen, refresh_per_second=FRAMES_PER_S, transient=True):
        yield picture.tell


class _Making:
    def __init__(self) -> None:
        self._answer: MakeAnswer | None = None
        self._began_s = time.monotonic()
        self._spinner = Spinner("dots")

    def tell(self, answer: MakeAnswer) -> None:
        self._answer = answer

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        words = clean(self._answer.words) if self._answer else ""
        took = duration(time.monotonic() - self._began_s)
        self._spinner.update(text=Text.assemble(words or "asking the farm", (f"  {took}", "dim")))
        lines: list[Spinner | Text] = [self._spinner]
        builds = self._answer.builds if self._answer else []
        lines += [Text(f"  grange show {each}", "dim") for each in builds[:BUILDS_SHOWN]]
        if len(builds) > BUILDS_SHOWN:
            lines.append(Text(f"  and {count(len(builds) - BUILDS_SHOWN, 'more build')}", "dim"))
        yield Group(*lines)


@contextmanager
def fetching(
    screen: Console, layers: int, blob_bytes: int, *, is_wanted: bool
) -> Iterator[Callable[[int], None]]:
    """Told how many more bytes have come."""
    if not is_wanted or not screen.is_terminal:
        yield lambda _more: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task(f"fetching {count(layers, 'layer')}", total=blob_bytes)
        yield lambda more: progress.advance(task, more)


# --- What one is made of ----------------------------------------------------------------------


def show_explained(answer: ExplainAnswer) -> None:
    """All that is known, layers with their reasons, lowest first."""
    screen = console()
    screen.print(_head(answer))
    if answer.packages:
        screen.print()
    for attribute, outputs in answer.packages.items():
        shown = ", ".join(_name(clean(path)) for path in outputs)
        screen.print(Text.assemble("  ", (clean(attribute), "bold"), f"  {shown}"), soft_wrap=True)
    for text in _troubles(answer):
        screen.print(Text(text, "yellow"), soft_wrap=True)
    if answer.layers:
        screen.print()
    names = max((len(_what(layer)) for layer in answer.layers), default=0)
    for number, layer in enumerate(answer.layers, 1):
        screen.print(_layer_line(number, layer, min(names, NAME_CHARS)), soft_wrap=True)
        inside = layer.paths if len(layer.paths) > 1 and not layer.is_root else []
        for path in inside[:PATHS_SHOWN]:
            screen.print(Text(f"                {_name(clean(path))}", "dim"), soft_wrap=True)
        if len(inside) > PATHS_SHOWN:
            more = f"                and {len(inside) - PATHS_SHOWN} more (--json lists all)"
            screen.print(Text(more, "dim"))
    if answer.layers:
        screen.print(Text(_sum(answer.layers), "bold"), soft_wrap=True)


def show_layers(answer: ExplainAnswer) -> None:
    """A table of the layers, lowest first."""
    screen = console()
    screen.print(_head(answer))
    for text in _troubles(answer):
        screen.print(Text(text, "yellow"), soft_wrap=True)
    if not answer.layers:
        return
    wide = min(max(len(_what(layer)) for layer in answer.layers), NAME_CHARS)
    _line(
        f"    {'blob':>10}  {'unpacked':>10}  {'what':{wide}}  {'known':{DIGEST_CHARS}}  why",
        "bold",
    )
    for number, layer in enumerate(answer.layers, 1):
        known = _known(layer)
        known.pad_right(DIGEST_CHARS - len(known))
        _line(
            Text.assemble(
                (f"{number:3} ", "dim"),
                f"{size(layer.blob_bytes) if layer.digest else '':>10}  ",
                f"{'' if layer.is_root else size(layer.nar_bytes):>10}  ",
                f"{_what(layer)[:wide]:{wide}}  ",
                known,
                (f"  {clean(layer.why)}", "dim"),
            )
        )
    screen.print(_sum(answer.layers), soft_wrap=True)


def _line(text: str | Text, style: str = "") -> None:
    """Cut at the edge of a terminal, so that columns stay columns."""
    screen = console()
    is_cut = screen.is_terminal
    screen.print(text, style=style, no_wrap=True, overflow="ellipsis", soft_wrap=not is_cut)


def _head(answer: ExplainAnswer) -> Text:
    commit = f" {answer.commit[:12]}" if answer.commit else ", whose tag was never looked up"
    made = f"made: {answer.digest}" if answer.is_made else "not made yet"
    if not answer.is_as_made:
        made += "\nit stays what it is, with other layers than these of today's settings"
    return Text.assemble(
        (f"{clean(answer.name)}:{clean(answer.tag)}", "bold"),
        f"  {answer.system}  {clean(answer.source)}{commit}\n",
        (made, "green" if answer.is_made else "dim"),
    )


def _troubles(answer: ExplainAnswer) -> list[str]:
    """What keeps layers from being planned, and what will be done about it."""
    told = []
    if answer.unknown:
        told.append(
            f"not evaluated yet: {_some(answer.unknown)}; that is done when the image is made"
        )
    if answer.missing:
        names = [_name(each) for each in answer.missing]
        told.append(f"in no cache yet: {_some(names)}; built, or fetched, when the image is made")
    return told


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(clean(name) for name in names[:UNKNOWN_SHOWN])
    more = len(names) - UNKNOWN_SHOWN
    return shown + (f" and {more} more" if more > 0 else "")


def _layer_line(number: int, layer: LayerView, name_chars: int) -> Text:
    return Text.assemble(
        (f"{number:3} ", "dim"),
        (f"{'' if layer.is_root else size(layer.nar_bytes):>10}  ", "bold"),
        f"{_what(layer):{name_chars}}  ",
        _known(layer),
        (f"  {clean(layer.why)}", "dim"),
    )


def _what(layer: LayerView) -> str:
    if layer.is_root:
        return "links"
    return (
        _name(clean(layer.paths[0])) if len(layer.paths) == 1 else count(len(layer.paths), "path")
    )


def _known(layer: LayerView) -> Text:
    if layer.is_known:
        return Text(layer.digest[:DIGEST_CHARS] or "known", "green")
    if layer.known_paths:
        return Text(f"{layer.known_paths} of {len(layer.paths)} paths", "yellow")
    return Text("to be made", "yellow")


def _sum(layers: Sequence[LayerView]) -> str:
    paths = sum(len(layer.paths) for layer in layers if not layer.is_root)
    known = [layer for layer in layers if layer.is_known]
    to_make = sum(layer.nar_bytes for layer in layers if not layer.is_known and not layer.is_root)
    text = (
        f"{count(len(layers), 'layer')} of {count(paths, 'path')}, "
        f"{size(sum(layer.nar_bytes for layer in layers if not layer.is_root))} unpacked; "
    )
    if len(known) == len(layers):
        return f"{text}all are known, {size(sum(layer.blob_bytes for layer in layers))} to pull"
    verb = "is" if len(known) == 1 else "are"
    return f"{text}{len(known)} {verb} known, {size(to_make)} are to be made into layers"


def _name(path: str) -> str:
    """Without the hash, of a base name of a store path or of a whole one."""
    return path.rpartition("/")[2][HASH_PART_CHARS + 1 :]


# --- Images and what they leave ---------------------------------------------------------------


def show_images(images: Sequence[ImageView]) -> None:
    if not images:
        console().print("No image was made yet: docker pull, or grange image build NAME.")
        return
    table = _table()
    table.add_column("image", overflow="fold")
    for column in ("commit", "for", "form"):
        table.add_column(column, no_wrap=True)
    for column in ("size", "unused"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("digest", no_wrap=True)
    now = time.time()
    for each in images:
        table.add_row(
            Text.assemble(clean(each.name), (_start(each), "dim")),
            each.commit[:8],
            each.system.removesuffix("-linux"),
            f"{each.family} {each.compression}",
            size(each.blob_bytes),
            _age(now - each.used),
            each.digest[:DIGEST_CHARS].removeprefix("sha256:"),
        )
    console().print(table)


def _start(view: ImageView) -> str:
    """How it starts, where it was asked for so: two images of one name differ in that."""
    words = " ".join([*view.entrypoint, *view.command])
    user = f"as {view.user}" if view.user else ""
    return f" ({clean(', '.join(filter(None, (words, user))))})" if words or user else ""


def _table() -> Table:
    """One that a terminal of 80 columns holds."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def _age(seconds: float) -> str:
    """To the hour, as it is known."""
    hours = int(max(seconds, 0) // 3600)
    return f"{hours // 24}d" if hours >= 48 else f"{hours}h"


def show_collected(answer: GcAnswer, *, is_dry: bool) -> None:
    verb = "would go" if is_dry else "deleted"
    screen = console()
    for digest in answer.images:
        screen.print(f"{digest}  {'would be' if is_dry else 'is'} forgotten", soft_wrap=True)
    screen.print(
        f"{count(len(answer.images), 'image')}, {count(answer.blobs, 'blob')} of "
        f"{size(answer.blob_bytes)}: {verb}"
    )
    screen.print(
        f"{count(answer.kept_blobs, 'blob')} of {size(answer.kept_blob_bytes)}: kept, as images "
        "may need them, or as they are less than a day old",
        soft_wrap=True,
    )
    if answer.irreproducible:
        screen.print(
            f"{count(answer.irreproducible, 'blob')} of these kept because this release would make "
            "other bytes: until their images go",
            soft_wrap=True,
        )
