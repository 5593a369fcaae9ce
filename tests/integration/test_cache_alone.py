"""`grange cache`: stock Nix reads from it; files leave whole, whoever takes them and how."""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

import aiohttp
import pytest
import uvicorn
from click.testing import CliRunner

from grange.cache.alone import make_app, read_tokens
from grange.cache.sendfile import CHUNK_BYTES, SendfileProtocol
from grange.cli.cache import cache
from grange.errors import OperatorError
from grange.objects.directory import DirectoryObjects
from grange.ports import Shelf, StoreOptions
from grange.store.hash import Hash
from grange.store.keys import SecretKey
from grange.store.nar import single_file_nar
from grange.store.narinfo import NarInfo, PathInfo, fingerprint, show
from grange.store.path import NIX_STORE, StorePath

KEY = SecretKey.generate("alone.test-1", b"a" * 32)
PATH = StorePath.parse_base("0a" * 16 + "-thing")
CONTENT = os.urandom(5 * CHUNK_BYTES + 17)
NAR = single_file_nar(CONTENT)
NAR_HASH = Hash.of("sha256", NAR)
NAR_URL = f"/nar/{NAR_HASH.base32()}.nar"


@pytest.fixture
async def shelf(tmp_path: Path) -> Shelf:
    objects = DirectoryObjects(tmp_path / "store")
    info = PathInfo(PATH, NAR_HASH, len(NAR), ())
    signature = KEY.sign(fingerprint(info, NIX_STORE))
    info = PathInfo(PATH, NAR_HASH, len(NAR), (), None, None, (signature,))
    narinfo = NarInfo(info, NAR_URL[1:], "none", NAR_HASH, len(NAR))
    await objects.put_if_absent(NAR_URL[1:], NAR)
    text = show(narinfo, NIX_STORE).encode()
    await objects.put_if_absent(f"{PATH.hash_part}.narinfo", text)
    return Shelf("here", objects, StoreOptions(), is_bucket=False)


@asynccontextmanager
async def serving(shelf: Shelf, tokens: Path | None = None) -> AsyncIterator[str]:
    app = make_app(shelf, NIX_STORE, None if tokens is None else read_tokens(tokens))
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, http=SendfileProtocol, lifespan="off", log_level="warning", ws="none")
    )
    running = asyncio.create_task(server.serve([bound]))
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running


async def test_stock_nix_copies_from_it(shelf: Shelf, tmp_path: Path) -> None:
    async with serving(shelf) as url:
        command = ["nix", "--extra-experimental-features", "nix-command", "copy"]
        command += ["--from", url, "--to", str(tmp_path / "third"), NIX_STORE.show(PATH)]
        command += ["--option", "trusted-public-keys", KEY.public.show()]
        process = await asyncio.create_subprocess_exec(
            *command,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")},
        )
        _, errors = await process.communicate()
    assert process.returncode == 0, errors
    assert (tmp_path / f"third/nix/store/{PATH}").read_bytes() == CONTENT


async def test_files_leave_whole_on_one_connection(shelf: Shelf) -> None:
    async with serving(shelf) as url, aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.get(url + NAR_URL) as answer:
                assert sha256(await answer.read()).digest() == NAR_HASH.digest
                assert answer.headers["content-length"] == str(len(NAR))
            async with session.get(f"{url}/{PATH.hash_part}.narinfo") as answer:
                assert NIX_STORE.show(PATH) in await answer.text()
            async with session.get(url + NAR_URL, headers={"range": "bytes=5-9"}) as answer:
                assert (answer.status, await answer.read()) == (206, NAR[5:10])
            async with session.head(url + NAR_URL) as answer:
                assert answer.headers["content-length"] == str(len(NAR))
            missing = f"{url}/nar/{'0' * 52}.nar"
            async with session.get(missing) as answer:
                assert answer.status == HTTPStatus.NOT_FOUND


async def test_requests_that_come_before_the_answer_is_read(shelf: Shelf) -> None:
    """Pipelined, to a reader with little room: file after file, none into another."""
    async with serving(shelf) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 16)
        writer.write(f"GET {NAR_URL} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 3)
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert sha256(await reader.readexactly(len(NAR))).digest() == NAR_HASH.digest
        writer.close()
        await writer.wait_closed()


async def test_a_reader_that_leaves_spoils_nothing(shelf: Shelf) -> None:
    async with serving(shelf) as url, aiohttp.ClientSession() as session:
        host, port = url.removeprefix("http://").split(":")
        for _ in range(5):
            reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 12)
            writer.write(f"GET {NAR_URL} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await reader.readexactly(100)
            writer.transport.abort()
        async with session.get(url + NAR_URL) as answer:
            assert sha256(await answer.read()).digest() == NAR_HASH.digest


async def test_who_may_read(shelf: Shelf, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# readers\n{sha256(b'secret').hexdigest()}  ci\n")
    narinfo = f"/{PATH.hash_part}.narinfo"
    async with serving(shelf, tokens) as url, aiohttp.ClientSession() as session:
        for headers, status in (
            ({}, 401),
            ({"authorization": "Bearer wrong"}, 401),
            ({"authorization": "Basic !"}, 401),
            ({"authorization": "Bearer secret"}, 200),
            ({"authorization": aiohttp.encode_basic_auth("any", "secret")}, 200),
        ):
            for path in (narinfo, NAR_URL, "/nix-cache-info"):
                async with session.get(url + path, headers=headers) as answer:
                    assert (answer.status, path) == (status, path)
        async with session.get(f"{url}/healthz") as answer:
            assert answer.status == HTTPStatus.OK


def test_a_broken_file_of_tokens_lets_nobody_in(tmp_path: Path) -> None:
    for text in ("", "# none\n", "secret in plain\n"):
        (tmp_path / "tokens").write_text(text)
        with pytest.raises(OperatorError):
            read_tokens(tmp_path / "tokens")
    with pytest.raises(OperatorError):
        read_tokens(tmp_path / "nowhere")


def test_other_machines_are_let_in_only_on_purpose(tmp_path: Path) -> None:
    result = CliRunner().invoke(cache, ["--store", str(tmp_path), "--listen", "0.0.0.0:0"])
    assert isinstance(result.exception, OperatorError)
    assert "--anonymous" in str(result.exception)
