"""Where a store is and how it is written, read from its URL.

`file:///DIR`, `s3://BUCKET`, `gs://BUCKET` or `az://CONTAINER`, with options behind a `?`, named
as Nix and Hydra name them. Credentials are never part of a URL: it is shown, logged and visible
among the machine's processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from grange.errors import OperatorError
from grange.ports import StoreOptions

EXPIRY_S_MIN: Final = 60  # as Hydra bounds it
EXPIRY_S_MAX: Final = 86_400
EXPIRY_S: Final = 3_600
SINGLE_PUT_BYTES: Final = 5 << 30  # what S3 takes in one request
PART_BYTES_MIN: Final = 5 << 20  # what S3 takes as a part that is not the last
PART_BYTES: Final = 8 << 20

COMPRESSIONS: Final = ("zstd", "xz", "none")
ENCODINGS: Final = ("none", "zstd", "xz", "gzip")
_SECRETS: Final = ("access", "secret-access", "token", "password", "session", "sas", "account-key")

_ANY: Final = frozenset(
    {
        *("compression", "compression-level", "parallel-compression"),
        *("write-nar-listing", "write-debug-info", "secret-key", "secret-keys"),
    }
)
_CLOUD: Final = _ANY | {
    *("narinfo-compression", "ls-compression", "log-compression", "buffer-size", "endpoint"),
}
_OPTIONS: Final = {
    "file": _ANY,
    "gs": _CLOUD,
    "az": _CLOUD | {"account"},
    "s3": _CLOUD | {"region", "scheme", "profile", "presigned-url-expiry", "single-put-limit"},
}


@dataclass(frozen=True, slots=True)
class StoreLocation:
    url: str  # as given
    kind: str  # "file", "s3", "gs" or "az"
    name: str  # of the bucket or container; an absolute path
    options: StoreOptions
    key_files: tuple[Path, ...] = ()  # that narinfos are to be signed with
    region: str = "us-east-1"
    endpoint: str = ""  # URL of a service that is not the cloud's own; "" for that
    profile: str = ""
    account: str = ""  # of Azure
    expiry: timedelta = timedelta(seconds=EXPIRY_S)  # of URLs for uploads
    single_put_bytes: int = SINGLE_PUT_BYTES  # anything larger goes through the coordinator
    part_bytes: int = PART_BYTES

    @property
    def shown(self) -> str:
        """Which store, for people."""
        return self.name if self.kind == "file" else f"{self.kind}://{self.name}"

    def check_there(self) -> None:
        """For who only reads. Raises OperatorError for a directory that is not there; of a bucket
        that shows with the first request."""
        if self.kind == "file" and not Path(self.name).is_dir():
            raise OperatorError(f"{self.name} is no directory that is there; see how it is spelt")

    @classmethod
    def of_directory(cls, path: Path) -> "StoreLocation":
        return cls(f"file://{path.absolute()}", "file", str(path.absolute()), StoreOptions())


def parse_location(url: str) -> StoreLocation:
    """Raises OperatorError for a URL that names no store, or an option that is not known."""
    parts = urlsplit(url)
    kind = parts.scheme
    if kind not in _OPTIONS:
        raise OperatorError(
            f"--store {_safe(url)!r}: write file:///DIR, s3://BUCKET, gs://BUCKET or az://CONTAINER"
        )
    if "@" in parts.netloc:
        raise OperatorError(
            f"--store {_safe(url)}: it holds credentials; give them in the environment, by a "
            "profile or by the machine's role, for a URL is shown to everyone"
        )
    said = _Said(url, kind, parts.query)
    if kind == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise OperatorError(f"--store {url!r}: write file:/// and an absolute path")
        name = parts.path
    else:
        name = parts.netloc
        if not name or parts.path not in ("", "/") or parts.fragment:
            raise OperatorError(
                f"--store {_safe(url)!r}: write {kind}://, the name of a bucket and options; Nix "
                "reads a cache at the top of its bucket only"
            )
    return StoreLocation(
        url,
        kind,
        name,
        _options(said),
        said.files("secret-key") + said.files("secret-keys"),
        said.text("region", "us-east-1"),
        _endpoint(said),
        said.text("profile"),
        said.text("account"),
        timedelta(
            seconds=said.integer("presigned-url-expiry", EXPIRY_S, EXPIRY_S_MIN, EXPIRY_S_MAX)
        ),
        said.integer("single-put-limit", SINGLE_PUT_BYTES, 0, SINGLE_PUT_BYTES),
        said.integer("buffer-size", PART_BYTES, PART_BYTES_MIN, 1 << 30),
    )


def _options(said: "_Said") -> StoreOptions:
    compression = said.choice("compression", "zstd", COMPRESSIONS)
    low, high = {"zstd": (1, 19), "xz": (0, 9), "none": (0, 0)}[compression]
    level = said.integer("compression-level", -1, -1, high)
    if -1 < level < low:
        raise said.wrong("compression-level", f"{compression} has {low} to {high}")
    encodings = []
    for what in ("narinfo", "ls", "log"):
        encoding = said.choice(f"{what}-compression", "none", ENCODINGS)
        encodings.append("" if encoding == "none" else encoding)
    return StoreOptions(
        compression,
        None if level == -1 else level,
        said.boolean("parallel-compression", default=True),
        said.boolean("write-nar-listing", default=False),
        said.boolean("write-debug-info", default=False),
        *encodings,
    )


def _endpoint(said: "_Said") -> str:
    endpoint = said.text("endpoint").rstrip("/")
    if "@" in endpoint:
        raise OperatorError(
            f"--store {said.shown}: its endpoint holds credentials; give them in the environment"
        )
    scheme = said.choice("scheme", "https", ("http", "https"))
    if endpoint and "://" not in endpoint:
        endpoint = f"{scheme}://{endpoint}"
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise said.wrong("endpoint", "it must be a host, or an http:// or https:// URL")
    return endpoint


class _Said:
    """The options of a URL, each of them known."""

    def __init__(self, url: str, kind: str, query: str) -> None:
        self.shown = _safe(url)
        pairs = parse_qsl(query, keep_blank_values=True)
        self._values: Mapping[str, str] = dict(pairs)
        if len(self._values) != len(pairs):
            raise OperatorError(f"--store {self.shown}: it says an option twice")
        unknown = sorted(self._values.keys() - _OPTIONS[kind])
        if secret := [name for name in unknown if any(word in name for word in _SECRETS)]:
            raise OperatorError(
                f"--store {self.shown}: {', '.join(secret)} would show a credential to everyone; "
                "give it in the environment, by a profile or by the machine's role"
            )
        if unknown:
            raise OperatorError(
                f"--store {self.shown}: {', '.join(unknown)} is not known; {kind}:// takes "
                + ", ".join(sorted(_OPTIONS[kind]))
            )

    def wrong(self, name: str, what: str) -> OperatorError:
        return OperatorError(f"--store {self.shown}: {name} is {self._values[name]!r}: {what}")

    def text(self, name: str, default: str = "") -> str:
        return self._values.get(name, default)

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if value not in choices:
            raise self.wrong(name, f"Grange writes {', '.join(choices)}")
        return value

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self.text(name, "true" if default else "false")
        if value not in ("true", "false", "1", "0"):
            raise self.wrong(name, "write true or false")
        return value in ("true", "1")

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.text(name, str(default))
        if not value.removeprefix("-").isdecimal() or not low <= int(value) <= high:
            raise self.wrong(name, f"write a number from {max(low, 0)} to {high}")
        return int(value)

    def files(self, name: str) -> tuple[Path, ...]:
        return tuple(Path(each) for each in self.text(name).split(",") if each)


def _safe(url: str) -> str:
    """`url` without what could be a secret: its user part, and the values of its options."""
    parts = urlsplit(url)
    names = "&".join(f"{name}=…" for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" + (
        f"?{names}" if names else ""
    )
