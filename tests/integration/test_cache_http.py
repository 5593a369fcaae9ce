"""The cache over real HTTP: uploads, ranges, listings, and what a real Nix makes of it."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest
import uvicorn
import zstandard
from starlette.applications import Starlette

from grange.cache.app import Cache, DerivationText, Sources
from grange.cache.signing import publish
from grange.cache.tokens import TokenKey
from grange.cache.uploads import BATCH_BYTES_MAX, Stored, Uploads, join_batch
from grange.cache.verify import Candidates, candidates_of
from grange.objects.directory import DirectoryObjects
from grange.scheduler.facts import AttemptId
from grange.store.hash import Hash
from grange.store.keys import SecretKey
from grange.store.nar import Directory, File, Symlink, nar_of_tree, single_file_nar
from grange.store.narinfo import NarInfo, parse
from grange.store.outputs import text_path
from grange.store.path import NIX_STORE, StorePath
from grange.wire.messages import BuiltOutput

KEY = SecretKey.generate("farm.test-1", b"s" * 32)
DEP = StorePath.parse_base("1b" * 16 + "-dep")
OWN = StorePath.parse_base("0a" * 16 + "-own")
DEP_NAR = single_file_nar(b"needed")
OWN_NAR = nar_of_tree(
    Directory(
        {
            b"link": Symlink(NIX_STORE.show(DEP).encode()),
            b"noise": File(os.urandom(1 << 20), is_executable=True),
        }
    )
)
OUT = NIX_STORE.show(StorePath.parse_base("lr28p5p317v3bi5rf3n3bkvzrqhh0l97-x"))  # Nix's answer
ATERM = (
    f'Derive([("out","{OUT}","","")],[],["{NIX_STORE.show(DEP)}"],'
    f'"x86_64-linux","/bin/sh",[],[("out","{OUT}")])'
).encode()
DRV = text_path("x.drv", Hash.of("sha256", ATERM), [DEP], NIX_STORE)
LOGGED = StorePath.parse_base("2c" * 16 + "-x.drv")


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(data)


class WallClock:
    def wall_s(self) -> float:
        return 1_700_000_000.0

    def monotonic_s(self) -> float:
        return 0.0


class Farm:
    """A cache served over HTTP, which publishes whatever is stored."""

    url: str
    http: aiohttp.ClientSession

    def __init__(self, root: Path) -> None:
        self.objects = DirectoryObjects(root)
        self.narinfos: dict[str, NarInfo] = {}
        self.lookups = 0
        key = TokenKey(b"k" * 32)
        self.uploads = Uploads(self.objects, key, WallClock(), self._publish, store_dir=NIX_STORE)
        sources = Sources(self._narinfo, self._derivation, self._log)
        self.cache = Cache(sources, self.objects, self.uploads, [KEY], NIX_STORE)

    async def _publish(self, stored: Sequence[Stored]) -> None:
        for each in stored:
            narinfo = publish(each.verified, None, [KEY], NIX_STORE)
            self.narinfos[each.verified.path.hash_part] = narinfo

    async def _narinfo(self, hash_part: str) -> NarInfo | None:
        self.lookups += 1
        return self.narinfos.get(hash_part)

    async def _derivation(self, hash_part: str) -> DerivationText | None:
        return DerivationText(DRV, ATERM, (DEP,)) if hash_part == DRV.hash_part else None

    async def _log(self, drv: StorePath) -> AsyncIterator[bytes] | None:
        async def lines() -> AsyncIterator[bytes]:
            yield b"one\n"
            yield b"two\n"

        return lines() if drv == LOGGED else None

    def grant(
        self, path: StorePath, nar: bytes, *references: StorePath, candidates: Candidates
    ) -> str:
        claims = BuiltOutput("out", path, Hash.of("sha256", nar), len(nar), references)
        return self.uploads.grant(AttemptId(1), claims, candidates, None)

    async def upload_both(self) -> None:
        for path, nar, references in ((DEP, DEP_NAR, ()), (OWN, OWN_NAR, (DEP,))):
            url = self.grant(path, nar, *references, candidates=candidates_of([DEP]))
            async with self.http.put(self.url + url, data=BytesIO(zstd(nar))) as answer:
                assert answer.status == HTTPStatus.CREATED, await answer.text()

    async def get(self, path: str, **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.get(self.url + path, headers=named) as answer:
            return answer, await answer.read()


@asynccontextmanager
async def serving(farm: Farm) -> AsyncIterator[None]:
    config = uvicorn.Config(Starlette(routes=farm.cache.routes()), port=0, log_level="warning")
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    farm.url = f"http://127.0.0.1:{port}"
    loop = asyncio.create_task(server.main_loop())
    async with aiohttp.ClientSession() as farm.http:
        yield
    server.should_exit = True
    await loop
    await server.shutdown()


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[Farm]:
    farm = Farm(tmp_path / "objects")
    async with serving(farm):
        yield farm


async def test_cache_info(farm: Farm) -> None:
    answer, text = await farm.get("/nix-cache-info")
    assert answer.status == HTTPStatus.OK
    assert text == b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"


async def test_what_is_uploaded_is_published(farm: Farm) -> None:
    await farm.upload_both()
    answer, text = await farm.get(f"/{OWN.hash_part}.narinfo")
    assert answer.status == HTTPStatus.OK
    narinfo = parse(text.decode(), NIX_STORE)
    assert narinfo == farm.narinfos[OWN.hash_part]
    answer, file = await farm.get(f"/{narinfo.url}")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert file == zstd(OWN_NAR)
    lookups = farm.lookups
    async with farm.http.head(f"{farm.url}/{OWN.hash_part}.narinfo") as head:
        assert head.status == HTTPStatus.OK
        assert int(head.headers["content-length"]) == len(text)
    assert farm.lookups == lookups


async def test_what_is_unknown_costs_one_lookup_at_most(farm: Farm) -> None:
    for path, lookups in (
        (f"/{OWN.hash_part}.narinfo", 1),
        (f"/{OWN.hash_part}.ls", 1),
        ("/short.narinfo", 0),
        (f"/{'e' * 32}.narinfo", 0),
        ("/short.ls", 0),
        (f"/nar/{'0' * 52}.nar.zst", 0),
        ("/nar/..%2f..%2fetc%2fpasswd", 0),
        ("/nar/.incoming", 0),
        ("/nar/short.drv.nar", 0),
        (f"/nar/{OWN.hash_part}.drv.nar", 0),
        ("/log/nothing", 0),
        (f"/log/{OWN}", 0),
    ):
        farm.lookups = 0
        answer, text = await farm.get(path)
        assert answer.status == HTTPStatus.NOT_FOUND, path
        assert text.count(b"\n") <= 1
        assert farm.lookups == lookups, path


async def test_a_miss_turns_into_a_hit(farm: Farm) -> None:
    answer, _ = await farm.get(f"/{DEP.hash_part}.narinfo")
    assert answer.headers["cache-control"] == "public, max-age=5"
    await farm.upload_both()
    answer, _ = await farm.get(f"/{DEP.hash_part}.narinfo")
    assert answer.status == HTTPStatus.OK


async def test_ranges(farm: Farm) -> None:
    await farm.upload_both()
    url = "/" + farm.narinfos[OWN.hash_part].url
    whole, file = await farm.get(url)
    size = len(file)
    etag = whole.headers["etag"]
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, size),
        (f"bytes=600000-{size + 5}", 600_000, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=-{size + 7}", 0, size),
    ):
        answer, part = await farm.get(url, range=asked)
        assert answer.status == HTTPStatus.PARTIAL_CONTENT
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert part == file[start:end]
    for asked in (f"bytes={size}-", "bytes=-0"):
        answer, part = await farm.get(url, range=asked)
        assert answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        assert answer.headers["content-range"] == f"bytes */{size}"
        assert part == b""
    for asked in ("bytes=5-2", "bytes=0-1,3-4", "lines=1-2", "bytes=", "bytes=-"):
        answer, part = await farm.get(url, range=asked)
        assert (answer.status, part) == (HTTPStatus.OK, file)
    answer, part = await farm.get(url, range="bytes=1-2", if_range=etag)
    assert part == file[1:3]
    answer, part = await farm.get(url, range="bytes=1-2", if_range='"another"')
    assert part == file
    answer, part = await farm.get(url, if_none_match=f'"x", W/{etag}')
    assert (answer.status, part) == (HTTPStatus.NOT_MODIFIED, b"")
    async with farm.http.head(farm.url + url) as head:
        assert int(head.headers["content-length"]) == size


async def test_listings(farm: Farm) -> None:
    await farm.upload_both()
    answer, text = await farm.get(f"/{DEP.hash_part}.ls")
    assert text == b'{"version":1,"root":{"type":"regular","size":6,"narOffset":96}}'
    answer, text = await farm.get(f"/{OWN.hash_part}.ls")
    assert answer.status == HTTPStatus.OK
    assert b'"noise":{"type":"regular","size":1048576,"executable":true' in text


async def test_logs(farm: Farm) -> None:
    answer, text = await farm.get(f"/log/{LOGGED}")
    assert text == b"one\ntwo\n"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


async def test_an_upload_cut_in_the_middle_is_tried_again(farm: Farm) -> None:
    url = farm.grant(OWN, OWN_NAR, DEP, candidates=candidates_of([DEP]))
    file = zstd(OWN_NAR)

    async def half() -> AsyncIterator[bytes]:
        yield file[: len(file) // 2]
        raise ConnectionResetError

    with pytest.raises(aiohttp.ClientError):
        await farm.http.put(farm.url + url, data=half())
    async with farm.http.put(farm.url + url, data=BytesIO(file)) as answer:
        assert answer.status == HTTPStatus.CREATED
    async with farm.http.put(farm.url + url, data=BytesIO(file)) as answer:
        assert answer.status == HTTPStatus.CONFLICT
    async with farm.http.put(f"{farm.url}/upload/forged", data=BytesIO(file)) as answer:
        assert answer.status == HTTPStatus.FORBIDDEN


async def test_a_batch(farm: Farm) -> None:
    nars = [single_file_nar(b"item %d" % n) for n in range(300)]
    paths = [StorePath.parse_base(f"{n:032}-item") for n in range(300)]
    grants = [farm.grant(path, nar, candidates={}) for path, nar in zip(paths, nars, strict=True)]
    tokens = [grant.removeprefix("/upload/") for grant in grants]
    body = join_batch(zip(tokens, map(zstd, nars), strict=True))
    async with farm.http.post(f"{farm.url}/upload", data=body) as answer:
        assert await answer.json() == [{"status": 201, "text": "stored"}] * 300
    async with farm.http.post(f"{farm.url}/upload", data=body[:-1]) as answer:
        assert answer.status == HTTPStatus.BAD_REQUEST
        assert "ends within an item" in await answer.text()
    async with farm.http.post(
        f"{farm.url}/upload", data=BytesIO(bytes(BATCH_BYTES_MAX + 1))
    ) as answer:
        assert answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


async def test_a_path_of_an_upstream_is_served_with_its_own_signature(farm: Farm) -> None:
    await farm.upload_both()
    known = farm.narinfos[DEP.hash_part]
    away = NarInfo(known.info, "https://up.example/nar/x.nar.xz", "xz", None, None)
    farm.narinfos[DEP.hash_part] = away
    farm.cache.forget(DEP)
    _, text = await farm.get(f"/{DEP.hash_part}.narinfo")
    assert parse(text.decode(), NIX_STORE) == away
    answer, _ = await farm.get(f"/{DEP.hash_part}.ls")
    assert answer.status == HTTPStatus.NOT_FOUND


def _nix_environment(home: Path, keys: str) -> dict[str, str]:
    config = f"substituters =\ntrusted-public-keys = {keys}\nexperimental-features = nix-command\n"
    return {"PATH": os.environ["PATH"], "HOME": str(home), "NIX_CONFIG": config}


async def _nix(home: Path, keys: str, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "nix",
        *arguments,
        env=_nix_environment(home, keys),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.peer
async def test_nix_copies_from_the_cache(farm: Farm, tmp_path: Path) -> None:
    await farm.upload_both()
    key = KEY.public.show()
    store = tmp_path / "store"
    copy = ("copy", "--from", farm.url, "--to", str(store))
    for what in ([NIX_STORE.show(OWN)], ["--derivation", NIX_STORE.show(DRV)]):
        code, output = await _nix(tmp_path, key, *copy, *what)
        assert code == 0, output
    link = store / "nix/store" / OWN / "link"
    assert os.readlink(link) == NIX_STORE.show(DEP)
    assert (store / "nix/store" / DEP).read_bytes() == b"needed"
    assert (store / "nix/store" / DRV).read_bytes() == ATERM
    code, output = await _nix(
        tmp_path, key, "store", "ls", "--store", farm.url, "-R", NIX_STORE.show(OWN)
    )
    assert code == 0, output
    assert "noise" in output
    code, output = await _nix(
        tmp_path, key, "store", "verify", "--store", str(store), NIX_STORE.show(OWN)
    )
    assert code == 0, output


@pytest.mark.peer
async def test_nix_refuses_what_another_key_signed(farm: Farm, tmp_path: Path) -> None:
    await farm.upload_both()
    other = SecretKey.generate("other-1", b"o" * 32).public.show()
    copy = ("copy", "--from", farm.url, "--to", str(tmp_path / "store"))
    code, output = await _nix(tmp_path, other, *copy, NIX_STORE.show(OWN))
    assert code != 0
    assert "signature" in output
