"""`grange autoscaler` as a process: its doors, its file read anew, and two of them."""

import signal
import stat
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from grange.client.capacity import CapacityClient
from grange.client.capacity_models import CapacityStatus, ReserveRequest
from grange.errors import ForbiddenError, GrangeError, OutsideError, UnauthenticatedError
from tests.integration.farm import GRANGE, Process, until
from tests.ports import free_port

pytestmark = pytest.mark.timeout(200)

POOL = """
[pools.{name}]
cloud = "local"
systems = ["x86_64-linux"]
max = {slots}
local.command = ["sleep", "1000"]
"""


class Place:
    """A file, and the autoscaler that it is of. There is no HAProxy."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "autoscaler.toml"
        self.socket = root / "run/auto.sock"
        self.environment = {"PATH": "/usr/bin:/bin", "NO_COLOR": "1", "COLUMNS": "200"}
        self.started: list[Process] = []

    def write(self, *pools: str, daemon: str = "") -> None:
        said = f'[haproxy]\nsocket = "{self.root}/none"\n[daemon]\nsocket = "run/auto.sock"\n'
        self.file.write_text(said + f'state_dir = "state"\n{daemon}\n' + "".join(pools))

    def start(self, name: str = "autoscaler") -> Process:
        process = Process(name, ["autoscaler", "--config", self.file], self.root, self.environment)
        self.started.append(process)
        return process

    def begin(self) -> Process:
        process = self.start()
        until(self.answers, "it should answer", process)
        return process

    def answers(self) -> CapacityStatus | None:
        try:
            return self.status()
        except OutsideError:
            return None

    def status(self) -> CapacityStatus:
        with self.client() as client:
            return client.status()

    def client(self) -> CapacityClient:
        return CapacityClient(f"unix:{self.socket}")

    def grange(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [GRANGE, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    place.write(POOL.format(name="x86", slots=2))
    yield place
    for each in place.started:
        each.stop()


def test_it_serves_until_it_is_told_to_stop_and_another_does_not_begin_beside_it(
    place: Place,
) -> None:
    process = place.begin()
    assert stat.S_IMODE(place.socket.stat().st_mode) == 0o660
    second = place.start("second")
    assert second.popen.wait(100) == 3
    assert f"another autoscaler runs on {place.root}/state" in second.log
    other = place.root / "other.toml"
    other.write_text(place.file.read_text().replace('"state"', '"state-2"'))
    done = place.grange("autoscaler", "--config", other)
    assert done.returncode == 3
    assert f"another autoscaler listens at {place.socket}" in done.stderr
    assert place.status().pools[0].name == "x86", "the first was not disturbed"
    process.signal(signal.SIGTERM)
    assert process.popen.wait(100) == 0, process.log
    assert not place.socket.exists()


def test_after_a_kill_the_next_begins_with_what_was_durable(place: Place) -> None:
    first = place.begin()
    asked = ReserveRequest(key="a", system="x86_64-linux", deadline_s=86_400)
    with place.client() as client:
        before = client.reserve(asked)
    first.kill()
    assert place.socket.exists(), "nobody could put it away"
    place.begin()
    with place.client() as client:
        assert client.reserve(asked).id == before.id
        assert "HAProxy" in " ".join(client.status().troubles)


def test_pools_are_read_anew_and_what_is_wrong_changes_nothing(place: Place) -> None:
    process = place.begin()
    place.write(POOL.format(name="x86", slots=1) + "min = 7")
    process.signal(signal.SIGHUP)
    until(lambda: "all stays as it was" in process.log, "it should complain", process)
    assert "pools.x86 is wrong: min is 7 and max 1" in process.log
    assert [pool.max for pool in place.status().pools] == [2]
    arm = POOL.format(name="arm", slots=3).replace("x86_64", "aarch64")
    place.write(POOL.format(name="x86", slots=1), arm, daemon='socket_mode = "0600"')
    process.signal(signal.SIGHUP)
    until(lambda: {p.name: p.max for p in place.status().pools} == {"x86": 1, "arm": 3}, "changed")
    assert "[daemon] in the file changed, which holds from the next start" in process.log


def test_over_tcp_a_token_says_who_asks(place: Place) -> None:
    port, tokens = free_port(), place.root / "tokens"
    roles = ("read", "submit")
    lines = [f"{sha256(f'grange_{each}'.encode()).hexdigest()} {each}" for each in roles]
    tokens.write_text("\n".join(lines))
    place.write(
        POOL.format(name="x86", slots=2),
        daemon=f'listen = "127.0.0.1:{port}"\ntokens_file = "tokens"',
    )
    place.begin()
    url = f"http://127.0.0.1:{port}"

    def as_one(who: str) -> CapacityClient:
        file = place.root / who
        file.write_text(f"grange_{who}")
        return CapacityClient(url, token_file=file)

    with as_one("read") as reader, as_one("submit") as ci, as_one("junk") as nobody:
        assert reader.status().pools
        asked = ReserveRequest(key="a", system="x86_64-linux")
        with pytest.raises(ForbiddenError):
            reader.reserve(asked)
        assert ci.reserve(asked).is_open
        with pytest.raises(UnauthenticatedError):
            nobody.status()
    assert httpx.get(f"{url}/healthz", trust_env=False).text == "ok\n"
    assert httpx.get(f"{url}/metrics", trust_env=False).status_code == 401


def test_what_keeps_it_from_beginning_is_said(place: Place) -> None:
    place.socket.parent.mkdir()
    place.socket.write_text("")
    done = place.grange("autoscaler", "--config", place.file)
    assert (done.returncode, "is no socket; remove it" in done.stderr) == (3, True), done.stderr
    place.write(daemon='listen = "127.0.0.1:1"')
    done = place.grange("autoscaler", "--config", place.file)
    assert (done.returncode, "name a tokens_file" in done.stderr) == (3, True), done.stderr


def test_a_file_is_checked_with_and_without_asking_the_outside(place: Place) -> None:
    done = place.grange("capacity", "check-config", "--offline", place.file)
    assert done.returncode == 0, done.stderr
    assert "is in order, and nothing outside was asked" in done.stdout
    done = place.grange("capacity", "check-config", place.file)
    assert done.returncode == 1
    assert "HAProxy's socket" in done.stderr
    assert sorted(each.name for each in place.root.iterdir()) == ["autoscaler.toml"], "none made"
    place.write(POOL.format(name="x86", slots=1), daemon='tokens_file = "tokens"')
    done = place.grange("capacity", "check-config", place.file)
    assert f"the tokens in {place.root}/tokens cannot be read" in done.stderr
    place.write(POOL.format(name="x86", slots=1) + "mx = 1")
    done = place.grange("capacity", "check-config", place.file)
    assert done.returncode == 3
    assert "pools.x86.mx is not known" in done.stderr


def test_a_client_of_nobody_says_where_it_looked(place: Place) -> None:
    with place.client() as client, pytest.raises(GrangeError, match=str(place.socket)):
        client.status()
