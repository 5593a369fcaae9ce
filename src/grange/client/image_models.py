"""The shapes of /api/v1/images and /api/v1/evaluations; as in `grange.client.models`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

NAME_MAX = 2048
TAG_MAX = 128
WORDS_MAX = 256
NIXPKGS_ARCHIVE = "https://github.com/NixOS/nixpkgs/archive/{commit}.tar.gz"

Word = Annotated[str, Field(max_length=4096)]


class MakeRequest(BaseModel):
    """An image that is to be there."""

    name: Annotated[str, Field(max_length=NAME_MAX)]
    tag: Annotated[str, Field(max_length=TAG_MAX)] = "latest"
    system: Literal["", "x86_64-linux", "aarch64-linux"] = ""  # "": as its name says
    family: Literal["oci", "docker"] = "oci"
    compression: Literal["gzip", "zstd"] = "gzip"
    entrypoint: Annotated[list[Word], Field(max_length=WORDS_MAX)] = []
    command: Annotated[list[Word], Field(max_length=WORDS_MAX)] = []
    user: Annotated[str, Field(max_length=100)] = ""
    wait_s: Annotated[float, Field(ge=0, le=60)] = 30


class MakeAnswer(BaseModel):
    """It is there, is being made, cannot be made as it was asked for (then `code` says why), or
    failed by nobody's wish: asked for again later, it may be made."""

    state: Literal["ready", "pending", "refused", "failed"]
    name: str = ""  # in its one form, unless it is refused
    digest: str = ""  # of its manifest, where it is ready
    commit: str = ""  # what its tag stands for
    words: str = ""  # what is done just now, or why it is not there
    builds: list[str] = []
    retry_after_s: int = 0
    code: str = ""  # of the OCI distribution specification
    detail: dict[str, Any] | None = None


class UsedRequest(BaseModel):
    """Manifests that were served by others than the coordinator."""

    digests: Annotated[list[str], Field(max_length=10_000)]


class ImageView(BaseModel):
    """An image that is served."""

    name: str
    source: str
    commit: str
    system: str
    family: str
    compression: str
    entrypoint: list[str] = []  # where its name or a query says how to start, as are these
    command: list[str] = []
    user: str = ""
    digest: str  # of its manifest
    layers: int
    blob_bytes: int  # of all layers
    created: float
    used: float


class LayerView(BaseModel):
    """A layer that an image has, or would have."""

    paths: list[str]  # base names; of the root layer the packages that it links to
    nar_bytes: int
    is_root: bool = False
    is_known: bool  # neither bytes are read nor made for it
    known_paths: int  # whose segments are there
    digest: str = ""  # where it is known
    diff_id: str = ""
    blob_bytes: int = 0
    why: str  # why these paths are together, and lie where they do


class ExplainAnswer(BaseModel):
    """What an image is made of, as far as that is known without building or evaluating."""

    name: str  # in its one form
    tag: str
    source: str
    system: str
    commit: str = ""  # "": the tag was never looked up
    packages: dict[str, list[str]] = {}  # outputs by attribute, of those that were evaluated
    unknown: list[str] = []  # attributes that were not
    missing: list[str] = []  # outputs, or paths of their closure, that are not in the cache
    layers: list[LayerView] = []  # lowest first; none while something is unknown or missing
    is_made: bool = False  # its manifest is there
    is_as_made: bool = True  # `layers` are what that has; else they are what would be made today
    digest: str = ""


class GcRequest(BaseModel):
    is_dry: bool = False
    unused_s: Annotated[float, Field(ge=0)] | None = None  # images not asked for in so long go too
    is_deep: bool = False  # segments of kept images go as well, where they can be made again


class GcAnswer(BaseModel):
    images: list[str]  # manifests' digests, that are forgotten
    blobs: int  # objects deleted
    blob_bytes: int
    kept_blobs: int
    kept_blob_bytes: int
    irreproducible: int  # objects kept because this release's codec would make other bytes


class SourceSettings(BaseModel):
    """A package source, as whoever looks up images needs it."""

    name: str
    settings: str  # digest of its config and overlays: see `grange.ports.PackageSet`


class RegistrySettings(BaseModel):
    """What a registry beside the coordinator goes by."""

    sources: list[SourceSettings]  # the first is the one that names without one mean
    fresh_s: float  # for so long a tag means what it meant
    wait_s: float  # that a pull is held while its image is made
    is_zstd_allowed: bool


# --- Evaluations: taken by whoever has Nix --------------------------------------------------------


class SourceSpec(BaseModel):
    """A package source; what an evaluator needs of the farm's file."""

    name: str
    kind: Literal["path", "git", "channel"]
    location: str  # a path on the evaluator's machine, a URL of a repository, a channel's URL
    ref: str = ""  # of a repository: the branch or tag that `latest` means; "": its default
    archive: str = NIXPKGS_ARCHIVE  # of a channel: where commits are that it has left behind
    config: dict[str, Any] = {}  # of the package set
    overlays: list[str] = []  # Nix expressions, each a whole file


class EvaluationJob(BaseModel):
    """Look up a tag, then evaluate packages as of its commit."""

    id: str
    source: SourceSpec
    tag: str
    commit: str = ""  # known already: the tag is not looked up
    system: str
    packages: list[str]  # as `ImageName.packages`
    has_shell: bool = False
    is_image: bool = True  # with what every image has
    timeout_s: float
    memory_bytes: int
    token: str  # may submit derivations and their sources until the time is over
    may_import: bool = False  # import-from-derivation, which builds on the evaluator's machine

    @property
    def is_lookup(self) -> bool:
        """Only what its tag stands for is asked."""
        return not (self.packages or self.has_shell or self.is_image)


class EvaluatedView(BaseModel):
    attribute: list[str]
    drv_path: str = ""  # absolute; "" for what cannot be had
    outputs: dict[str, str] = {}  # absolute, by name, of those to install
    program: str = ""
    lack: str = ""  # `grange.ports.Lack`
    message: str = ""


class NamesView(BaseModel):
    way: list[str]
    names: list[str]


Failure = Literal["unknown tag", "source", "timeout", "too much", "evaluator"]
"""What ended a whole job: whose fault it is."""


class EvaluationResult(BaseModel):
    """What came of a job; the derivations were sent to the farm before."""

    commit: str = ""
    names: list[NamesView] = []
    packages: list[EvaluatedView] = []
    failure: Literal["", Failure] = ""
    message: str = ""  # of a failure, for whoever wanted the image


class TakeRequest(BaseModel):
    """An evaluator asks for work."""

    evaluator: Annotated[str, Field(max_length=255)]
    systems: list[str] = []  # none: all
    wait_s: Annotated[float, Field(ge=0, le=60)] = 30
