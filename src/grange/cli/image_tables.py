"""The tables of container images: [images], [images.sources.NAME] and [images.evaluation]."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from grange.cli.tables import Table, Text
from grange.client.image_models import NIXPKGS_ARCHIVE, SourceSpec
from grange.client.models import Tag
from grange.errors import OperatorError
from grange.images.settings import ImageSettings, PackageSource
from grange.oci.names import parse_sources
from grange.oci.plan import BUDGET, BUDGET_MAX, BUDGET_MIN

SOURCES_MAX: Final = 100
OVERLAYS_MAX: Final = 50
OVERLAY_BYTES_MAX: Final = 1 << 20  # all of them go with each job
CONFIG_BYTES_MAX: Final = 64 << 10  # as JSON
DEPTH_MAX: Final = 20  # of tables within tables
CHANNELS: Final = "https://channels.nixos.org/"
_LASTING: Final = (
    "project, wait_s, precompute, anonymous_pulls, keep_days, or of evaluation here or store, "
    "of [images]"
)
_INTEGERS: Final = range(-(1 << 63), 1 << 63)  # Nix has 64 bits
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s][^\s]*|file:///[^\s]*")
_CHANNEL: Final = re.compile(r"[a-z0-9][A-Za-z0-9._-]*")
_SCP: Final = re.compile(r"[^/\s:-][^/\s:]*@[^/\s:]+:[^\s]+")  # git@example.org:packages


class _Source(Table):
    path: Text | None = None
    git: Text | None = None
    channel: Text | None = None
    ref: Annotated[str, Field(pattern=r"^[^\s~^:?*\[\\-][^\s~^:?*\[\\]*$")] | None = None
    archive: Text | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    overlays: Annotated[list[Text], Field(max_length=OVERLAYS_MAX)] = Field(default_factory=list)

    @field_validator("config")
    @classmethod
    def _nix_has_it(cls, config: dict[str, Any]) -> dict[str, Any]:
        if said := _no_value(config, DEPTH_MAX):
            raise ValueError(said)
        if len(json.dumps(config)) > CONFIG_BYTES_MAX:
            raise ValueError(f"it has more than {CONFIG_BYTES_MAX >> 10} KiB; use an overlay")
        return config

    @field_validator("channel")
    @classmethod
    def _is_channel(cls, channel: str | None) -> str | None:
        if channel is None or _CHANNEL.fullmatch(channel) or re.match(r"https?://[^/]", channel):
            return channel
        raise ValueError(f"{channel!r} is neither a channel's name, as nixos-25.05, nor its URL")

    @field_validator("archive")
    @classmethod
    def _has_commits(cls, archive: str | None) -> str | None:
        if archive is None or re.match(r"https?://[^/]+.*\{commit\}", archive):
            return archive
        raise ValueError(f"{archive!r} is no URL, http:// or https://, with {{commit}} in it")

    @model_validator(mode="after")
    def _is_one_place(self) -> Self:
        said = [name for name in ("path", "git", "channel") if getattr(self, name) is not None]
        if len(said) != 1:
            found = " and ".join(said) or "none"
            raise ValueError(f"it takes exactly one of path, git and channel, and there is {found}")
        if self.ref is not None and self.git is None:
            raise ValueError(f"ref is a branch or tag of git, and this is a {said[0]}")
        if self.archive is not None and self.channel is None:
            raise ValueError(f"archive is where a channel's commits are, and this is {said[0]}")
        return self

    def spec(self, name: str, folder: Path) -> SourceSpec:
        """Relative paths are relative to `folder`. Raises OperatorError for an overlay that cannot
        be read."""
        kind: Literal["path", "git", "channel"]
        if self.path is not None:
            kind, location = "path", str((folder / self.path).absolute())
        elif self.git is not None:
            is_url = _URL.fullmatch(self.git) or _SCP.fullmatch(self.git)
            kind, location = "git", self.git if is_url else str((folder / self.git).absolute())
        else:
            assert self.channel is not None
            kind = "channel"
            location = self.channel if "://" in self.channel else CHANNELS + self.channel
        return SourceSpec(
            name=name,
            kind=kind,
            location=location,
            ref=self.ref or "",
            archive=self.archive or NIXPKGS_ARCHIVE,
            config=self.config,
            overlays=[_overlay(folder / each, name) for each in self.overlays],
        )


def _no_value(value: Any, depth: int) -> str:
    """What of a TOML value Nix has no value for; "" for nothing."""
    match value:
        case bool():
            return ""
        case int():
            return "" if value in _INTEGERS else f"{value} is no number of 64 bits"
        case float():
            return "" if math.isfinite(value) else f"Nix has no number {value}"
        case str():
            return "Nix has no text with a zero byte in it" if "\0" in value else ""
        case dict() | list() if not depth:
            return f"it is more than {DEPTH_MAX} tables deep"
        case dict():
            return _no_value([*value, *value.values()], depth)
        case list():
            return next(filter(None, (_no_value(each, depth - 1) for each in value)), "")
        case _:
            return f"{value} is a date or a time, which Nix does not have; write it as text"


def _overlay(path: Path, source: str) -> str:
    where = f"an overlay of images.sources.{source}, {path},"
    try:
        with path.open("rb") as file:
            text = file.read(OVERLAY_BYTES_MAX + 1)
    except OSError as error:
        raise OperatorError(f"{where} cannot be read: {error.strerror}") from error
    if len(text) > OVERLAY_BYTES_MAX:
        raise OperatorError(
            f"{where} has more than {OVERLAY_BYTES_MAX >> 20} MiB; let it be a file of a package "
            "source of its own"
        )
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise OperatorError(f"{where} is not UTF-8: {error}") from error


class _Evaluation(Table):
    here: bool | None = None
    agent_tag: Tag | None = None
    store: Text | None = None
    timeout_s: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    memory_bytes: Annotated[int, Field(ge=64 << 20, le=1 << 50)] = 4 << 30
    import_from_derivation: bool = False


class _Images(Table):
    project: Annotated[Text, Field(max_length=255)] = "images"
    layer_budget: Annotated[int, Field(ge=BUDGET_MIN, le=BUDGET_MAX)] = BUDGET
    fresh_s: Annotated[float, Field(ge=0, le=31_536_000)] = 21_600.0
    wait_s: Annotated[float, Field(ge=0, le=60)] = 30.0
    precompute: Literal["upload", "idle", "never"] = "idle"
    zstd: bool = False
    anonymous_pulls: bool = False
    keep_days: Annotated[float, Field(ge=0, le=36_500)] = 0.0
    sources: Annotated[dict[str, _Source], Field(min_length=1, max_length=SOURCES_MAX)]
    evaluation: _Evaluation = _Evaluation()

    @field_validator("sources")
    @classmethod
    def _can_stand_in_names(cls, sources: dict[str, _Source]) -> dict[str, _Source]:
        try:
            parse_sources(sources)
        except OperatorError as error:
            raise ValueError(str(error)) from error
        return sources


class ImageTables(Table):
    """What the tables say together. No [images]: the farm makes none."""

    images: _Images | None = None

    def image_file(self, folder: Path) -> "ImageFile | None":
        """Relative paths are relative to `folder`. Raises OperatorError."""
        said = self.images
        if said is None:
            return None
        rules = said.evaluation
        specs = [each.spec(name, folder) for name, each in said.sources.items()]
        return ImageFile(
            ImageSettings(
                {each.name: PackageSource(each, settings_digest(each)) for each in specs},
                project=said.project,
                layer_budget=said.layer_budget,
                fresh_s=said.fresh_s,
                is_zstd_allowed=said.zstd,
                evaluation_s=rules.timeout_s,
                evaluation_bytes=rules.memory_bytes,
                may_import=rules.import_from_derivation,
            ),
            wait_s=said.wait_s,
            precompute=said.precompute,
            may_all_pull=said.anonymous_pulls,
            unused_s=said.keep_days * 86_400 or None,
            evaluates_here=rules.here,
            agent_tag=rules.agent_tag or "",
            store=None if rules.store is None else (folder / rules.store).absolute(),
        )


@dataclass(frozen=True, slots=True)
class ImageFile:
    settings: ImageSettings
    wait_s: float = 30.0  # that a pull is held while its image is made
    precompute: Literal["upload", "idle", "never"] = "idle"  # layers of single paths
    may_all_pull: bool = False  # without a credential; else who may read may
    unused_s: float | None = None  # images nobody asked for in so long are forgotten
    evaluates_here: bool | None = None  # beside the coordinator; None: where Nix is on PATH
    agent_tag: str = ""  # of agents that may evaluate; "": it takes none
    store: Path | None = None  # a chroot store to evaluate into; None: this machine's

    def needs_start(self, old: "ImageFile") -> list[str]:
        """What is said otherwise than in `old` and takes a restart to hold."""
        is_same = replace(self, settings=old.settings, agent_tag=old.agent_tag) == old
        project = self.settings.project == old.settings.project
        return [] if is_same and project else [_LASTING]


def settings_digest(source: SourceSpec) -> str:
    """Of all in a source's table that decides what its packages are, beside its commit."""
    said: Mapping[str, object] = {"config": source.config, "overlays": source.overlays}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(text.encode()).hexdigest()
