"""What an evaluation of others' packages can reach from the machine that it runs on: the internet,
and neither this machine's programs, nor its network, nor what its user has the keys of."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Final

import pytest

from grange.evaluator.nix import Nix, evaluation_environment
from tests.integration.evaluating import Place, a_place, git, job, limits, source

pytestmark = pytest.mark.peer

SECRET: Final = b"what only this machine may read"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with a_place(tmp_path_factory.mktemp("reach") / "place") as place:
        yield place


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """The URL of a program of this machine, and what it was asked for."""
    asked: list[str] = []

    class Told(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("content-length", str(len(SECRET)))
            self.end_headers()
            self.wfile.write(SECRET)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Told) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()
            thread.join()


async def test_packages_of_others_ask_nothing_of_this_machine(place: Place, tmp_path: Path) -> None:
    with listening() as (url, asked):
        text = """{ system, ... }:
          let
            named = name: derivation { inherit name system; builder = "/a"; };
            fetched = name: url: named "${name}${builtins.hashFile "md5" url}";
            cloned = name: arguments: named "${name}${(builtins.fetchGit arguments).rev}";
          in {
            file = fetched "file" (builtins.fetchurl "URLfile");
            tree = fetched "tree" (builtins.fetchTarball "URLtree");
            web = cloned "web" { url = "URLweb"; };
            keys = cloned "keys" { url = "ssh://git@127.0.0.1/keys"; };
            scp = cloned "scp" { url = "git@127.0.0.1:keys"; };
            daemon = cloned "daemon" { url = "git://127.0.0.1/daemon"; };
          }""".replace("URL", url)
        (tmp_path / "default.nix").write_text(text)
        names = ("file", "tree", "web", "keys", "scp", "daemon")
        spec = source("git", "https://example.org/set.git")
        _, found = await place.evaluate(job(*names, spec=spec), tmp_path)
        for name in names:
            assert found[name].lack == "failed", name
            said = found[name].message
            assert "restricted mode" in said or "is not a valid URL" in said, (name, said)
        assert asked == []


async def test_whoever_is_sent_on_to_plain_http_does_not_come_there(
    place: Place, tmp_path: Path
) -> None:
    nix = place.nix()
    with listening() as (url, asked):
        command = ["nix-instantiate", "--eval", "--expr", f'builtins.fetchurl "{url}file"']
        restricted = evaluation_environment(is_restricted=True)
        refused = await nix.run(command, limits(job()), environment=restricted)
        assert not refused.is_good
        assert asked == []
        fetched = await nix.run(command, limits(job()), environment=None)
        assert fetched.is_good, fetched.stderr
        assert asked == ["/file"]


async def test_submodules_are_none_of_this_machines_repositories(
    place: Place, tmp_path: Path
) -> None:
    private, public = tmp_path / "private", tmp_path / "public"
    for folder in (private, public):
        folder.mkdir()
        git(folder, "init", "--quiet")
        (folder / "file").write_text(folder.name)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", folder.name)
    git(public, "-c", "protocol.file.allow=always", "submodule", "add", str(private), "inner")
    git(public, "commit", "--quiet", "-m", "inner")
    nix: Nix = place.nix()
    cloned = f'builtins.fetchGit {{ url = "file://{public}"; submodules = true; }}'
    command = ["nix-instantiate", "--eval", "--expr", f"builtins.readFile ({cloned} + /inner/file)"]
    restricted = evaluation_environment(is_restricted=True)
    refused = await nix.run(command, limits(job()), environment=restricted)
    assert not refused.is_good
    assert "private" not in refused.stdout.decode()
    read = await nix.run(command, limits(job()))
    assert read.stdout.strip() == b'"private"', read.stderr
