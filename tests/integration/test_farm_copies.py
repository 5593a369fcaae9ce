"""Stock Nix copies paths to a farm: what it may bring, and what is made of lies."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from grange.store.keys import SecretKey
from grange.store.path import NIX_STORE
from tests.integration.farm import Farm, running_farm
from tests.peers import NIXES, NixStore

TRUSTED = SecretKey.generate("upstream.test-1", b"u" * 32)  # by the farm, as an upstream's
UNKNOWN = SecretKey.generate("unknown.test-1", b"x" * 32)
IMPOSTOR = SecretKey.generate(TRUSTED.public.name, b"i" * 32)  # another's, of the trusted name

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    root = tmp_path_factory.mktemp("copies") / "farm"
    upstream = "--substituter", "http://127.0.0.1:9", TRUSTED.public.show()  # nobody is there
    with running_farm(root, *upstream, agents=()) as farm:
        yield farm


@pytest.fixture(scope="module", params=NIXES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NixStore:
    return NixStore.make(request.param, tmp_path_factory.mktemp(f"nix-{request.param}"))


def token(farm: Farm, name: str, *roles: str) -> str:
    options = [word for role in roles for word in ("--role", role)]
    made = farm.grange("token", "new", name, *options, "--json", "--url", farm.url)
    assert made.returncode == 0, made.stderr
    text: str = json.loads(made.stdout)["token"]
    return text


def copy(
    farm: Farm, store: NixStore, secret: str, *paths: str, query: str = ""
) -> subprocess.CompletedProcess[str]:
    """`nix copy`, with the token in a netrc."""
    # Within the store's own folder, which is all that a Nix in a namespace sees.
    netrc = store.root / "nix" / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login grange password {secret}\n")
    seen = str(netrc) if store.nix == "2.8" else "/nix/netrc"
    environment = store.environment
    environment["NIX_CONFIG"] += f"netrc-file = {seen}\n"
    return subprocess.run(
        store.command("nix", "copy", "--to", f"{farm.url}{query}", *paths),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def add(store: NixStore, name: str, content: bytes) -> str:
    file = store.root / "nix" / name
    file.write_bytes(content)
    seen = str(file) if store.nix == "2.8" else f"/nix/{name}"
    return store.run("nix-store", "--add", seen).strip()


@pytest.mark.parametrize("compression", ["", "?compression=zstd", "?compression=none"])
def test_a_source_is_taken_and_served_with_the_farms_signature(
    farm: Farm, store: NixStore, compression: str
) -> None:
    name = f"source-{store.nix}-{compression[-4:].strip('?=') or 'xz'}"
    path = add(store, name, os.urandom(3 << 20))
    secret = token(farm, name, "submit", "read")
    done = copy(farm, store, secret, path, query=compression)
    assert done.returncode == 0, done.stderr
    text = farm.narinfo(path).text
    [key] = farm.client.status().public_keys
    assert f"Sig: {key.partition(':')[0]}:" in text
    code, errors = farm.nix_copy(path, to=farm.root / f"third-{name}")
    assert code == 0, errors
    again = copy(farm, store, secret, path, query=compression)
    assert again.returncode == 0, again.stderr


def make(store: NixStore, name: str) -> tuple[str, str]:
    """A source, and a path that refers to it and that its content does not prove."""
    source = add(store, f"{name}-{store.nix}", b"of something\n")
    made = store.run(
        "nix-instantiate",
        "-E",
        f'derivation {{ name = "made-{name}"; system = builtins.currentSystem; builder = "/none"; '
        f'src = "${{builtins.storePath {source}}}"; }}',
    ).strip()
    out = store.run("nix-store", "-q", "--outputs", made).strip()
    # As if it had been built: registered with the store, not proved by anything.
    physical = store.physical_path(NIX_STORE.parse(out))
    physical.write_text(f"refers to {source}\n")
    hashed = store.run("nix-hash", "--type", "sha256", "--base32", _seen(store, physical)).strip()
    registration = f"{out}\n{hashed}\n{_nar_bytes(store, physical)}\n\n1\n{source}\n"
    subprocess.run(
        store.command("nix-store", "--load-db"),
        env=store.environment,
        input=registration,
        text=True,
        check=True,
    )
    return source, out


def sign(store: NixStore, path: str, key: SecretKey) -> None:
    file = store.root / "nix" / "secret-key"
    file.write_text(key.show() + "\n")
    seen = str(file) if store.nix == "2.8" else "/nix/secret-key"
    store.run("nix", "store", "sign", "--key-file", seen, path)


def test_what_content_does_not_prove_takes_the_right_to_import(farm: Farm, store: NixStore) -> None:
    source, out = make(store, "proof")
    refused = copy(farm, store, token(farm, f"s{store.nix}", "submit", "read"), out)
    assert refused.returncode != 0
    assert farm.narinfo(out).status_code == 404
    done = copy(farm, store, token(farm, f"i{store.nix}", "import", "read"), out)
    assert done.returncode == 0, done.stderr
    assert f"References: {NIX_STORE.parse(source)}\n" in farm.narinfo(out).text


def test_a_trusted_key_stands_for_the_right_to_import(farm: Farm, store: NixStore) -> None:
    """An unknown one does not, nor one that only says it was the trusted one."""
    source, out = make(store, "signed")
    secret = token(farm, f"k{store.nix}", "submit", "read")
    for key in (UNKNOWN, IMPOSTOR):
        sign(store, out, key)
        refused = copy(farm, store, secret, out)
        assert refused.returncode != 0
        assert farm.narinfo(out).status_code == 404
    sign(store, out, TRUSTED)
    done = copy(farm, store, secret, out)
    assert done.returncode == 0, done.stderr
    text = farm.narinfo(out).text
    assert f"References: {NIX_STORE.parse(source)}\n" in text
    [own, *_] = farm.client.status().public_keys
    assert f"Sig: {own.partition(':')[0]}:" in text
    code, errors = farm.nix_copy(out, to=farm.root / f"third-signed-{store.nix}", keys=own)
    assert code == 0, errors


def _seen(store: NixStore, file: Path) -> str:
    return str(file) if store.nix == "2.8" else "/" + str(file.relative_to(store.root))


def _nar_bytes(store: NixStore, file: Path) -> int:
    command = store.command("nix-store", "--dump", _seen(store, file))
    return len(subprocess.check_output(command, env=store.environment))


def test_lies_are_refused(farm: Farm) -> None:
    secret = token(farm, "liar", "import", "read")
    http = httpx.Client(
        base_url=farm.url,
        trust_env=False,
        headers={"authorization": "Basic " + base64.b64encode(f"x:{secret}".encode()).decode()},
    )
    with http:
        wrong = http.put(f"/nar/{'0' * 52}.nar.xz", content=b"not what its name says")
        assert (wrong.status_code, "has the hash" in wrong.text) == (400, True)
        assert http.put("/nar/../../etc/passwd", content=b"x").status_code in (400, 404, 405)
        assert http.put(f"/nar/{'0' * 52}.nar.bz2", content=b"x").status_code == 400
        narinfo = (
            f"StorePath: /nix/store/{'0' * 32}-lie\nURL: nar/{'0' * 52}.nar\nCompression: none\n"
            f"FileHash: sha256:{'0' * 52}\nNarHash: sha256:{'0' * 52}\nNarSize: 7\nReferences: \n"
        )
        lost = http.put(f"/{'0' * 32}.narinfo", content=narinfo)
        assert (lost.status_code, "was not put" in lost.text) == (404, True)
        other = http.put(f"/{'1' * 32}.narinfo", content=narinfo)
        assert other.status_code == 400
    nobody = httpx.put(f"{farm.url}/nar/{'0' * 52}.nar", content=b"x", trust_env=False)
    assert nobody.status_code in (401, 403)
