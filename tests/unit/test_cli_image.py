"""`grange image` against a farm that is only its routes: what it asks, says and writes."""

import gzip
import io
import json
import re
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from grange.cli import image_screens
from grange.cli.app import Adapters, make_cli
from grange.cli.image import made
from grange.client import image_pull
from grange.client.image_models import (
    ExplainAnswer,
    GcAnswer,
    GcRequest,
    ImageView,
    LayerView,
    MakeAnswer,
    MakeRequest,
)
from grange.client.image_pull import Blob, ImagePuller
from grange.client.images import ImageClient
from grange.client.models import Problem
from grange.client.sources import LocalStore
from grange.errors import OutsideError
from grange.main import journal_tools
from grange.oci.descriptor import LayerDescriptor
from grange.oci.manifest import DOCKER_GZIP, OCI_GZIP, PLATFORMS, Image, Layer, Runtime, image
from tests.unit.fake_farm import running

COMMIT = "c0ffee" * 6 + "c0de"
PATH = "0" * 32 + "-hello-2.12"


def digest_of(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


def tar_of(name: str, content: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


# Two members of gzip, as layers of segments have; more than one piece of a transfer.
PLAIN = [tar_of("first", bytes(range(256)) * 2_000), tar_of("second", b"2")]
BLOBS = [gzip.compress(each[:300], 1, mtime=0) + gzip.compress(each[300:], 0) for each in PLAIN]
LAYERS = [
    Layer(LayerDescriptor(digest_of(plain), digest_of(blob), len(blob)), "a path")
    for plain, blob in zip(PLAIN, BLOBS, strict=True)
]


def image_of(layers: list[Layer], *, is_docker: bool = False) -> Image:
    variant = DOCKER_GZIP if is_docker else OCI_GZIP
    return image(variant, PLATFORMS["x86_64-linux"], Runtime(command=("hello",)), layers)


@dataclass
class Farm:
    """What it answers, and what it was asked. `url` is known once it runs."""

    url: str = ""
    answers: list[MakeAnswer | Problem] = field(default_factory=list)  # the last one stays
    explained: ExplainAnswer | None = None
    images: list[ImageView] = field(default_factory=list)
    image: Image = field(default_factory=lambda: image_of([*LAYERS, LAYERS[0]]))
    breaks: dict[str, list[int]] = field(default_factory=dict)  # after so many bytes, each once
    knows_ranges: bool = True
    lies: dict[str, bytes] = field(default_factory=dict)
    refusals: list[int] = field(default_factory=list)  # of blobs, by status, each once
    asked: list[MakeRequest] = field(default_factory=list)
    collected: list[GcRequest] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    async def make(self, request: Request) -> Response:
        self.asked.append(MakeRequest.model_validate_json(await request.body()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return _json(answer, 503 if isinstance(answer, Problem) else 200)

    async def explain(self, request: Request) -> Response:
        self.asked.append(MakeRequest.model_validate_json(await request.body()))
        assert self.explained is not None
        return _json(self.explained)

    async def list_images(self, _: Request) -> Response:
        return JSONResponse([each.model_dump() for each in self.images])

    async def collect(self, request: Request) -> Response:
        self.collected.append(GcRequest.model_validate_json(await request.body()))
        return _json(
            GcAnswer(
                images=["sha256:" + "1" * 64],
                blobs=2,
                blob_bytes=3 << 20,
                kept_blobs=4,
                kept_blob_bytes=5 << 20,
                irreproducible=1,
            )
        )

    async def manifest(self, request: Request) -> Response:
        assert request.path_params["digest"] == self.image.manifest.digest
        document = self.image.manifest
        return Response(document.body, media_type=document.media_type)

    async def blob(self, request: Request) -> Response:
        digest = request.path_params["digest"]
        if self.refusals:
            status = self.refusals.pop(0)
            body = {"errors": [{"code": "X", "message": "the disk is gone"}]}
            return JSONResponse(body, status, {"retry-after": "0"})
        blobs = {digest_of(each): each for each in BLOBS} | self.lies
        blobs[self.image.config.digest] = self.image.config.body
        data = blobs[digest]
        said = request.headers.get("range", "") if self.knows_ranges else ""
        start = int(re.fullmatch(r"bytes=(\d+)-", said)[1]) if said else 0  # type: ignore[index]
        self.ranges.append(request.headers.get("range", ""))
        end = self.breaks.get(digest, []).pop(0) if self.breaks.get(digest) else len(data)
        headers = {"content-length": str(len(data) - start)}
        return StreamingResponse(_pieces(data, start, end), 206 if said else 200, headers)

    def app(self) -> Starlette:
        api = [
            Route("/images/make", self.make, methods=["POST"]),
            Route("/images/explain", self.explain, methods=["POST"]),
            Route("/images", self.list_images),
            Route("/images/gc", self.collect, methods=["POST"]),
        ]
        return Starlette(
            routes=[
                Mount("/api/v1", routes=api),
                Route("/v2/{name:path}/manifests/{digest}", self.manifest),
                Route("/v2/{name:path}/blobs/{digest}", self.blob),
            ]
        )


async def _pieces(data: bytes, start: int, end: int) -> Any:
    for at in range(start, end, 10_000):
        yield data[at : min(end, at + 10_000)]


def _json(model: BaseModel, status: int = 200) -> Response:
    return Response(model.model_dump_json(), status, media_type="application/json")


def ready(farm: Farm) -> MakeAnswer:
    digest = farm.image.manifest.digest
    return MakeAnswer(state="ready", name="shell/hello", digest=digest, commit=COMMIT)


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    monkeypatch.setattr(image_pull, "PAUSE_S", 0.0)
    made = Farm()
    made.answers = [ready(made)]
    with running(made):
        yield made


def run(farm: Farm, *arguments: str) -> Result:
    def no_store(_: str | None) -> LocalStore:
        raise AssertionError("no store is needed")

    cli = make_cli(Adapters(lambda _: None, lambda _: None, no_store, journal_tools))
    command, *rest = arguments
    return CliRunner().invoke(cli, ["image", command, "--url", farm.url, *rest])


# --- Making one -------------------------------------------------------------------------------


def test_what_to_pull_is_said_once_it_is_there(farm: Farm) -> None:
    pending = MakeAnswer(state="pending", words="building hello", builds=["b"], retry_after_s=5)
    farm.answers = [pending, pending, ready(farm)]
    result = run(farm, "build", "hello/shell:v1", "--system", "x86_64-linux")
    assert result.exit_code == 0, result.output
    host = farm.url.removeprefix("http://")
    digest = farm.image.manifest.digest
    assert result.stdout == f"{host}/shell/hello:v1\n{digest}\n"
    assert result.stderr == "", "nobody watches"
    assert [each.tag for each in farm.asked] == ["v1"] * 3
    first, *others = farm.asked
    assert (first.name, first.system, first.family) == ("hello/shell", "x86_64-linux", "oci")
    assert (first.wait_s, [each.wait_s for each in others]) == (0, [0.2, 0.4])


def test_one_that_starts_in_a_way_of_its_own_has_no_tag(farm: Farm) -> None:
    arguments = ["--entrypoint", "sh -c 'exec hello'", "--cmd", "a b", "--user", "1:2", "--zstd"]
    result = run(farm, "build", "hello", *arguments, "--json")
    assert result.exit_code == 0, result.output
    host = farm.url.removeprefix("http://")
    digest = farm.image.manifest.digest
    assert json.loads(result.stdout) == {
        "name": "shell/hello",
        "tag": "latest",
        "commit": COMMIT,
        "digest": digest,
        "reference": f"{host}/shell/hello@{digest}",
        "file": None,
    }
    plain = run(farm, "build", "hello", *arguments)
    assert plain.stdout == f"{host}/shell/hello@{digest}\n{digest}\n"
    asked, _ = farm.asked
    assert asked.entrypoint == ["sh", "-c", "exec hello"]
    assert (asked.command, asked.user, asked.compression) == (["a", "b"], "1:2", "zstd")


def test_a_name_as_clients_write_it_is_understood(farm: Farm) -> None:
    host = farm.url.removeprefix("http://")
    assert run(farm, "build", f"docker://{host}/hello:v1").exit_code == 0
    assert (farm.asked[0].name, farm.asked[0].tag) == ("hello", "v1")


@pytest.mark.parametrize(
    ("detail", "code"),
    [({"build": "b", "log": "http://x"}, 1), ({"packages": ["helo"]}, 2), (None, 2)],
)
def test_what_is_refused_says_why(farm: Farm, detail: dict[str, Any] | None, code: int) -> None:
    words = "the package set has no 'helo' (did you mean hello?)\x1b[2J"
    farm.answers = [
        MakeAnswer(state="refused", words=words, code="MANIFEST_UNKNOWN", detail=detail)
    ]
    result = run(farm, "build", "helo")
    assert result.exit_code == code
    assert result.stderr == "grange: the package set has no 'helo' (did you mean hello?)\n"
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["hello:", "hello@", "hello@sha256:" + "1" * 64])
def test_what_names_no_image_to_make_is_refused_here(farm: Farm, name: str) -> None:
    result = run(farm, "build", name)
    assert result.exit_code == 2
    assert farm.asked == []


@pytest.mark.parametrize("output", ["x.tar", "oci-archive:", "dir:x", "oci-archive"])
def test_no_other_forms_are_written(farm: Farm, output: str) -> None:
    result = run(farm, "build", "hello", "-o", output)
    assert result.exit_code == 2
    assert "neither oci-archive:FILE nor docker-archive:FILE" in result.stderr


def test_a_farm_that_cannot_is_at_fault(farm: Farm) -> None:
    farm.answers = [Problem(error="no evaluator is here", fault="outside")]
    result = run(farm, "build", "hello")
    assert (result.exit_code, result.stderr) == (3, "grange: no evaluator is here\n")


def test_what_fails_on_the_way_is_told_and_not_asked_for_again(farm: Farm) -> None:
    words = "nothing evaluates packages here\x1b[2J"
    farm.answers = [
        MakeAnswer(state="pending", words="evaluating"),
        MakeAnswer(state="failed", words=words),
        ready(farm),
    ]
    result = run(farm, "build", "hello", "--no-progress")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "grange: nothing evaluates packages here\n"


def test_a_farm_that_restarts_is_waited_for_and_one_that_stays_away_is_not(farm: Farm) -> None:
    gone = Problem(error="starting", fault="outside")
    pending = MakeAnswer(state="pending", words="building")
    farm.answers = [pending, gone, gone, ready(farm)]
    heard: list[str] = []
    slept: list[float] = []
    with ImageClient(farm.url) as client:
        wanted = MakeRequest(name="hello")
        answer = made(client, wanted, lambda each: heard.append(each.words), 1, sleep=slept.append)
        assert (answer.state, heard, slept) == ("ready", ["building"], [1, 1])
        farm.answers = [pending, *[gone] * 100, pending, *[gone] * 100, ready(farm)]
        slept.clear()
        made(client, wanted, lambda _: None, 1, sleep=slept.append)
        assert sum(slept) == 200, "it came back in between"
        farm.answers = [pending, gone]
        slept.clear()
        with pytest.raises(OutsideError, match="starting"):
            made(client, wanted, lambda _: None, 1, sleep=slept.append)
        assert sum(slept) == 120
        slept.clear()
        with pytest.raises(OutsideError, match="starting"):
            made(client, wanted, lambda _: None, 1, sleep=slept.append)
        assert slept == [], "one that was never there is not waited for"


def test_somebody_at_a_terminal_sees_what_is_done(farm: Farm) -> None:
    drawn = io.StringIO()
    screen = Console(file=drawn, force_terminal=True, width=100)
    builds = [f"build-{number}" for number in range(5)]
    pending = MakeAnswer(
        state="pending", words="building git-2.45 and 3 more: 12 of 40 steps", builds=builds
    )
    with image_screens.making(screen, is_wanted=True) as tell:
        tell(pending)
    shown = drawn.getvalue()
    assert "building git-2.45 and 3 more: 12 of 40 steps" in shown
    assert "grange show build-2" in shown
    assert "build-3" not in shown
    assert "and 2 more builds" in shown
    with image_screens.fetching(screen, 3, 100, is_wanted=True) as more:
        more(60)
    assert "fetching 3 layers" in drawn.getvalue()


# --- Into files -------------------------------------------------------------------------------


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        assert all(member.isfile() and member.mtime == 0 for member in members)
        return {each.name: archive.extractfile(each).read() for each in members}  # type: ignore[union-attr]


def test_an_oci_archive_has_every_blob_once_and_skopeo_reads_it(farm: Farm, tmp_path: Path) -> None:
    path = tmp_path / "hello.tar"
    result = run(farm, "build", "shell/hello", "-o", f"oci-archive:{path}")
    assert result.exit_code == 0, result.output
    found = contents(path)
    index = json.loads(found["index.json"])
    [manifest] = index["manifests"]
    assert manifest["digest"] == farm.image.manifest.digest
    host = farm.url.removeprefix("http://")
    reference = f"{host}/shell/hello:latest"
    assert manifest["annotations"]["org.opencontainers.image.ref.name"] == reference
    assert result.stdout == f"{path}  {reference}  {manifest['digest']}\n"
    blobs = {name: data for name, data in found.items() if name.startswith("blobs/")}
    assert all(name == f"blobs/sha256/{digest_of(data)[7:]}" for name, data in blobs.items())
    assert len(blobs) == 4, "a manifest, a config and two layers, of which one lies twice in it"
    assert list(tmp_path.iterdir()) == [path]
    again = tmp_path / "again.tar"
    run(farm, "build", "shell/hello", "-o", f"oci-archive:{again}")
    assert again.read_bytes() == path.read_bytes()
    seen = subprocess.run(
        ["skopeo", "inspect", f"oci-archive:{path}"], capture_output=True, check=True
    )
    assert json.loads(seen.stdout)["Layers"] == [
        layer.descriptor.digest for layer in [*LAYERS, LAYERS[0]]
    ]


def test_a_docker_archive_has_layers_unpacked_and_skopeo_reads_it(
    farm: Farm, tmp_path: Path
) -> None:
    farm.image = image_of(LAYERS, is_docker=True)
    farm.answers = [ready(farm)]
    path = tmp_path / "hello.tar"
    result = run(farm, "build", "shell/hello:v1", "-o", f"docker-archive:{path}")
    assert result.exit_code == 0, result.output
    assert farm.asked[0].family == "docker"
    found = contents(path)
    [manifest] = json.loads(found["manifest.json"])
    host = farm.url.removeprefix("http://")
    assert manifest["RepoTags"] == [f"{host}/shell/hello:v1"]
    assert [found[name] for name in manifest["Layers"]] == PLAIN
    assert found[manifest["Config"]] == farm.image.config.body
    seen = subprocess.run(
        ["skopeo", "inspect", f"docker-archive:{path}"], capture_output=True, check=True
    )
    assert json.loads(seen.stdout)["Layers"] == [digest_of(each) for each in PLAIN]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_transfer_that_breaks_off_goes_on_where_it_was(
    farm: Farm, tmp_path: Path, *, knows_ranges: bool
) -> None:
    farm.knows_ranges = knows_ranges
    farm.breaks = {digest_of(BLOBS[0]): [30_000, 70_000, 70_000]}
    path = tmp_path / "hello.tar"
    result = run(farm, "build", "shell/hello", "-o", f"oci-archive:{path}")
    assert result.exit_code == 0, result.output
    assert {"bytes=30000-", "bytes=70000-"} <= {*farm.ranges}
    assert contents(path)[f"blobs/sha256/{digest_of(BLOBS[0])[7:]}"] == BLOBS[0]


def test_a_farm_that_cannot_just_now_is_asked_again(farm: Farm, tmp_path: Path) -> None:
    farm.refusals = [503, 429, 503]
    path = tmp_path / "hello.tar"
    result = run(farm, "build", "shell/hello", "-o", f"oci-archive:{path}")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"refusals": [503] * 9}, 3, "the disk is gone"),
        ({"refusals": [403]}, 2, "the disk is gone"),
        ({"lies": {digest_of(BLOBS[0]): BLOBS[0][:-1] + b"x"}}, 3, "is something else"),
        ({"lies": {digest_of(BLOBS[0]): BLOBS[0] + b"x"}}, 3, "is something else"),
        ({"breaks": {digest_of(BLOBS[0]): [10_000] * 9}}, 3, "broke off sha256:"),
    ],
)
def test_nothing_is_left_of_an_image_that_did_not_come(
    farm: Farm, tmp_path: Path, change: dict[str, Any], code: int, words: str
) -> None:
    for name, value in change.items():
        setattr(farm, name, value)
    path = tmp_path / "hello.tar"
    path.write_text("the one before")
    result = run(farm, "build", "shell/hello", "-o", f"oci-archive:{path}")
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "the one before"


async def test_no_more_is_taken_than_a_blob_has() -> None:
    async def without_end() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 600

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=without_end())

    taken: list[bytes] = []

    async def take(piece: bytes) -> None:
        taken.append(piece)

    transport = httpx.MockTransport(answer)
    async with ImagePuller("http://farm.example", "hello", None, transport=transport) as puller:
        with pytest.raises(OutsideError, match="is something else"):
            await puller.fetch(Blob("", digest_of(b""), 1_000), take)
    assert len(taken) == 1


def test_a_layer_that_holds_something_else_than_its_image_says_is_told(
    farm: Farm, tmp_path: Path
) -> None:
    first = LAYERS[0].descriptor
    wrong = Layer(LayerDescriptor(digest_of(b"?"), first.digest, first.blob_bytes), "a path")
    farm.image = image_of([wrong], is_docker=True)
    farm.answers = [ready(farm)]
    result = run(farm, "build", "shell/hello", "-o", f"docker-archive:{tmp_path / 'x'}")
    assert result.exit_code == 3
    assert "holds something else than its image says" in result.stderr


def test_a_folder_that_is_not_there_is_named(farm: Farm, tmp_path: Path) -> None:
    result = run(farm, "build", "hello", "-o", f"oci-archive:{tmp_path}/none/x.tar")
    assert result.exit_code == 3
    assert "none/x.tar cannot be written: No such file or directory" in result.stderr


# --- Looking into one -------------------------------------------------------------------------


def explained(**more: Any) -> ExplainAnswer:
    fields: dict[str, Any] = {
        "name": "shell/hello",
        "tag": "latest",
        "source": "nixpkgs",
        "system": "x86_64-linux",
        "commit": COMMIT,
        "packages": {"hello": [f"/nix/store/{PATH}"]},
        "layers": [
            LayerView(
                paths=["0" * 32 + "-glibc-2.40"],
                nar_bytes=30 << 20,
                is_known=True,
                known_paths=1,
                digest="sha256:" + "a" * 64,
                blob_bytes=9 << 20,
                why="one of the largest",
            ),
            LayerView(
                paths=[f"{'0' * 32}-part-{number}" for number in range(9)],
                nar_bytes=2 << 20,
                is_known=False,
                known_paths=4,
                why="needed by git, curl",
            ),
            LayerView(
                paths=[PATH], nar_bytes=0, is_root=True, is_known=False, known_paths=0, why="links"
            ),
        ],
    }
    return ExplainAnswer(**fields | more)


def test_layers_are_explained(farm: Farm) -> None:
    farm.explained = explained()
    result = run(farm, "explain", "hello/shell", "--system", "aarch64-linux")
    assert result.exit_code == 0, result.output
    assert farm.asked[0].system == "aarch64-linux"
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0] == "shell/hello:latest  x86_64-linux  nixpkgs c0ffeec0ffee"
    assert lines[1] == "not made yet"
    assert "  hello  hello-2.12" in lines
    assert "  1   30.0 MiB  glibc-2.40  sha256:aaaaaaaaaaaa  one of the largest" in lines
    assert "  2    2.0 MiB  9 paths     4 of 9 paths  needed by git, curl" in lines
    assert "                part-0" in lines
    assert "                and 3 more (--json lists all)" in lines
    assert lines[-1] == (
        "3 layers of 10 paths, 32.0 MiB unpacked; 1 is known, 2.0 MiB are to be made into layers"
    )


def test_what_is_not_known_yet_is_named(farm: Farm) -> None:
    farm.explained = explained(
        layers=[], packages={}, commit="", unknown=["git"], missing=[PATH], is_made=False
    )
    for command in ("explain", "layers"):
        result = run(farm, command, "shell/hello")
        assert "whose tag was never looked up" in result.stdout
        assert "not evaluated yet: git; that is done when the image is made" in result.stdout
        assert "in no cache yet: hello-2.12; built, or fetched" in result.stdout


def test_layers_are_listed(farm: Farm) -> None:
    farm.explained = explained(is_made=True, digest="sha256:" + "d" * 64)
    result = run(farm, "layers", "shell/hello")
    assert "made: sha256:" + "d" * 64 in result.stdout
    assert "with other layers" not in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line[:3].strip().isdigit()]
    assert rows[0][:7] == ["1", "9.0", "MiB", "30.0", "MiB", "glibc-2.40", "sha256:aaaaaaaaaaaa"]
    assert rows[0][7:] == ["one", "of", "the", "largest"]
    assert rows[1][:5] == ["2", "2.0", "MiB", "9", "paths"]
    as_json = run(farm, "layers", "shell/hello", "--json")
    assert [each["nar_bytes"] for each in json.loads(as_json.stdout)] == [30 << 20, 2 << 20, 0]


def test_layers_that_a_made_image_does_not_have_are_told_to_be_others(farm: Farm) -> None:
    farm.explained = explained(is_made=True, is_as_made=False, digest="sha256:" + "d" * 64)
    for command in ("layers", "explain"):
        lines = run(farm, command, "shell/hello").stdout.splitlines()
        assert lines[1] == "made: sha256:" + "d" * 64
        assert lines[2] == "it stays what it is, with other layers than these of today's settings"


def test_manifest_and_config_are_shown(farm: Farm) -> None:
    digest = farm.image.manifest.digest
    farm.explained = explained(is_made=True, digest=digest)
    for name in ("shell/hello", f"shell/hello@{digest}"):
        result = run(farm, "inspect", name)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["digest"] == digest
        assert found["manifest"] == json.loads(farm.image.manifest.body)
        assert found["config"]["config"]["Cmd"] == ["hello"]
    farm.explained = explained()
    result = run(farm, "inspect", "shell/hello")
    assert result.exit_code == 2
    assert "have it made with: grange image build shell/hello:latest" in result.stderr


def test_images_are_listed(farm: Farm) -> None:
    assert "No image was made yet" in run(farm, "list").stdout
    farm.images = [
        ImageView(
            name="shell/hello",
            source="nixpkgs",
            commit=COMMIT,
            system="x86_64-linux",
            family="oci",
            compression="gzip",
            digest="sha256:" + "b" * 64,
            layers=12,
            blob_bytes=43 << 20,
            created=1_700_000_000.0,
            used=1_700_003_600.0,
        )
    ]
    result = run(farm, "list")
    assert "shell/hello" in result.stdout
    for word in ("c0ffeec0 ", "x86_64", "oci gzip", "43.0 MiB", "d  bbbbbbbbbbbb"):
        assert word in result.stdout
    assert json.loads(run(farm, "list", "--json").stdout)[0]["layers"] == 12
    start = {"entrypoint": ["sh", "-c"], "command": ["ls"], "user": "1:2"}
    farm.images = [farm.images[0].model_copy(update={"name": "git"} | start)]
    assert "git (sh -c ls, as 1:2)" in run(farm, "list").stdout


def test_what_nothing_needs_is_collected(farm: Farm) -> None:
    result = run(farm, "gc", "--dry-run", "--unused-for", "30d", "--deep")
    assert farm.collected == [GcRequest(is_dry=True, unused_s=30 * 86_400, is_deep=True)]
    assert "1 image, 2 blobs of 3.0 MiB: would go" in result.stdout
    assert "4 blobs of 5.0 MiB: kept" in result.stdout
    assert "1 blob of these kept because this release would make other bytes" in result.stdout
    result = run(farm, "gc")
    assert farm.collected[-1] == GcRequest()
    assert "is forgotten" in result.stdout
    assert run(farm, "gc", "--unused-for", "soon").exit_code == 2
