"""Hooks of a real farm: told in order, with a token that works, whatever they and it suffer."""

import hmac
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from grange.client.credentials import bearer, token_in
from grange.client.models import BuildView
from tests.integration.farm import Farm, make_farm, running_farm, until
from tests.integration.test_farm_failover import SharedFarm
from tests.peers import processes_with
from tests.postgres import running_postgres

pytestmark = pytest.mark.peer

SECRET = "a secret of more than sixteen bytes"
LISTENER = """
import json, os, sys, urllib.error, urllib.request
folder = sys.argv[1]
event = json.load(sys.stdin)
token = open(os.environ["GRANGE_TOKEN_FILE"]).read().strip()

def ask(method, path, body=None):
    request = urllib.request.Request(
        os.environ["GRANGE_URL"] + path,
        None if body is None else json.dumps(body).encode(),
        {"authorization": "Bearer " + token, "content-type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code

told = {
    "event": event,
    "environment": dict(os.environ),
    "status": ask("GET", "/api/v1/status"),
    "skip": ask("POST", "/api/v1/hooks/listener/skip", {"events": [1]}),
    "tries": 0,
}
again = [event["build"]["drv_path"]] if "build" in event else []
if len(sys.argv) > 2:
    told["submitted"] = ask("POST", "/api/v1/builds", {"drv_paths": again})
if os.path.exists(os.path.join(folder, "gate")):
    gate = os.open(os.path.join(folder, "gate"), os.O_RDWR)  # and keeps it if it is renamed
    open(os.path.join(folder, "at-gate"), "w").close()
    os.read(gate, 1)
with open(os.path.join(folder, "told"), "a") as file:
    file.write(json.dumps(told) + "\\n")
print("what it prints is nobody's business")
"""


class Web:
    """A server that answers as it is told to, in turn, and keeps what was posted."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.posted: list[tuple[dict[str, str], bytes]] = []
        self.ended: set[str] = set()  # builds of whose ends it was told
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, more = web.answers.pop(0) if web.answers else (204, {})
                if headers["x-grange-event"] != "build-submitted":
                    web.ended.add(json.loads(body)["build"]["id"])
                web.posted.append((headers, body))
                if status == 0:  # hangs up in the middle
                    self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-")
                    return
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def kinds(self) -> list[str]:
        return [headers["x-grange-event"] for headers, _ in self.posted]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.stop()


@contextmanager
def farm_with(folder: Path, config: str) -> Iterator[Farm]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "listener.py").write_text(LISTENER)
    (folder / "secret").write_text(SECRET + "\n")
    file = folder / "farm.toml"
    file.write_text(config)
    with running_farm(folder / "farm", "--config", file) as farm:
        yield farm


def listener(folder: Path, *more: str) -> str:
    return json.dumps([sys.executable, str(folder / "listener.py"), str(folder), *more])


def told(folder: Path) -> list[dict[str, Any]]:
    file = folder / "told"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def told_of(folder: Path, build: BuildView, last: str) -> list[dict[str, Any]]:
    """All it was told of the build, once it was told of `last`."""

    def story() -> list[dict[str, Any]]:
        return [
            each for each in told(folder) if each["event"].get("build", {}).get("id") == build.id
        ]

    until(lambda: any(each["event"]["event"] == last for each in story()), f"{last} is told")
    return story()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hooks")


@pytest.fixture(scope="module")
def farm(folder: Path, web: Web) -> Iterator[Farm]:
    config = f"""
    [events]
    stream = true
    [hooks.listener]
    events = [
      "build-submitted", "build-started", "build-succeeded", "build-failed", "build-cancelled",
      "step-finished", "inputs-missing", "agent-joined", "agent-lost",
    ]
    command = {listener(folder)}
    environment = {{ MINE = "yes" }}
    backoff_s = 0.01
    [hooks.web]
    events = ["build-submitted", "build-succeeded", "build-failed"]
    projects = ["default"]
    url = "{web.url}/secret-path"
    secret_file = "secret"
    backoff_s = 0.01
    tries = 4
    """
    with farm_with(folder, config) as farm:
        yield farm


def let_through(gate: Path) -> None:
    """Open the gate for all who wait at it, if any still live."""
    fd = os.open(gate, os.O_RDWR)
    os.write(fd, bytes(100))
    os.close(fd)


def kinds(story: list[dict[str, Any]]) -> list[str]:
    return [each["event"]["event"] for each in story]


def test_the_story_of_a_build_is_told_in_order(farm: Farm, folder: Path) -> None:
    build = farm.succeed(farm.submit(farm.step("story", "echo > $out")))
    story = told_of(folder, build, "build-succeeded")
    assert kinds(story) == ["build-submitted", "build-started", "step-finished", "build-succeeded"]
    ids = [each["event"]["id"] for each in story]
    assert ids == sorted(ids)
    first, started, finished, last = (each["event"] for each in story)
    assert first["build"]["drv_path"] == build.drv_path
    assert first["build"]["outputs"] == build.outputs
    assert first["build"]["submitted_by"] == build.submitted_by
    assert started["agent"]["name"] == "one"
    assert finished["step"]["name"] == "story"
    assert finished["attempt"] == started["attempt"]
    assert last["outcome"] == "succeeded"
    assert last["project"] == "default"


def test_a_program_gets_a_token_and_nothing_of_the_coordinators(farm: Farm, folder: Path) -> None:
    build = farm.succeed(farm.submit(farm.step("environment", "echo > $out")))
    story = told_of(folder, build, "build-succeeded")
    assert {each["status"] for each in story} == {200}
    assert {each["skip"] for each in story} == {403}, "it may read and no more"
    environment = story[0]["environment"]
    assert environment["MINE"] == "yes"
    assert environment["GRANGE_EVENT"] == "build-submitted"
    assert environment["GRANGE_URL"] == farm.url
    assert "NIX_CONFIG" not in environment
    assert not Path(environment["GRANGE_TOKEN_FILE"]).exists()


def test_a_failure_says_whose_it_is(farm: Farm, folder: Path) -> None:
    build = farm.finish(farm.submit(farm.step("wrong", "echo > $out; exit 3")))
    story = told_of(folder, build, "build-failed")
    cause = story[-1]["event"]["cause"]
    assert cause["words"] == "its builder failed"
    assert cause["fault"] == "the build"
    assert cause["step"]["drv_path"] == build.drv_path


def test_agents_are_told_of(farm: Farm, folder: Path) -> None:
    def of_agent(name: str) -> list[str]:
        story = told(folder)
        return kinds([e for e in story if e["event"].get("agent", {}).get("name") == name])

    farm.add_agent("brief")
    until(lambda: "agent-joined" in of_agent("brief"), "its coming is told")
    farm.agents.pop("brief").stop()
    until(lambda: "agent-lost" in of_agent("brief"), "its going is told")


def all_told(farm: Farm, web: Web) -> None:
    """Wait until the web was told of all that happened before, and forget that."""
    builds = {build.id for build in farm.client.builds()}
    until(lambda: builds <= web.ended, "the web is told of the ends of all builds")
    web.posted.clear()


def test_a_webhook_is_signed_and_tried_again(farm: Farm, web: Web) -> None:
    all_told(farm, web)
    web.answers[:] = [(500, {}), (0, {}), (429, {"retry-after": "0"})]
    farm.succeed(farm.submit(farm.step("signed", "echo > $out")))
    until(lambda: len(web.posted) == 5, "it is told in the end")
    assert web.kinds() == [*["build-submitted"] * 4, "build-succeeded"]
    for headers, body in web.posted:
        at = headers["x-grange-timestamp"]
        seal = hmac.new(SECRET.encode(), at.encode() + b"." + body, "sha256").hexdigest()
        assert headers["x-grange-signature"] == f"sha256={seal}"
        assert headers["x-grange-event-id"] == str(json.loads(body)["id"])
    assert len({headers["x-grange-event-id"] for headers, _ in web.posted}) == 2


def test_what_is_given_up_is_seen_retried_and_skipped(farm: Farm, web: Web) -> None:
    all_told(farm, web)
    web.answers[:] = [(302, {"location": "http://elsewhere.example.org/path"}), (404, {})]
    farm.succeed(farm.submit(farm.step("given-up", "echo > $out")))
    until(lambda: farm.client.hooks()[1].given_up == 2, "both are given up")
    assert len(web.posted) == 2, "no other try would do better"
    newer, older = farm.client.hook_failures("web")
    assert newer.error == f"{web.url.rpartition(':')[0]} answered 404"
    assert "redirect to http://elsewhere.example.org" in older.error
    trouble = "\n".join(farm.client.status().trouble)
    assert "hook web: 2 events were given up" in trouble
    assert "secret-path" not in trouble + farm.grange("hooks", "--json").stdout
    assert f"posts to {web.url.rpartition(':')[0]}" in farm.grange("hooks").stdout
    listed = farm.grange("hooks", "failures", "web")
    assert str(older.event["id"]) in listed.stdout
    skipped = farm.grange("hooks", "skip", "web", str(newer.event["id"]))
    assert "1 event will never be told" in skipped.stdout
    retried = farm.grange("hooks", "retry", "web", "--all")
    assert "1 event will be told again" in retried.stdout
    until(lambda: len(web.posted) == 3, "it is told again")
    assert web.kinds()[-1] == older.event["event"]
    until(lambda: farm.client.hooks()[1].given_up == 0, "nothing is left")
    assert farm.grange("hooks", "retry", "nobody", "--all").returncode == 2
    metrics = farm.get("/metrics").text
    assert 'grange_hook_deliveries_total{hook="web",outcome="delivered"}' in metrics


@contextmanager
def listening(farm: Farm, **headers: str) -> Iterator[Callable[[], tuple[int, str, Any]]]:
    """Open the stream of events; each call returns the next: its id, kind and data."""
    token = token_in(farm.admin_token)
    with (
        httpx.Client(trust_env=False, timeout=120) as client,
        client.stream(
            "GET",
            farm.url + "/api/v1/events?kind=build-submitted&kind=build-succeeded",
            headers={"authorization": bearer(token), **headers},
        ) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        next(lines)  # it is open

        def following() -> tuple[int, str, Any]:
            fields: dict[str, str] = {}
            for line in lines:
                name, _, value = line.partition(": ")
                if name:
                    fields[name] = value
                elif "data" in fields:
                    return int(fields.get("id", 0)), fields["event"], json.loads(fields["data"])
                else:
                    fields.clear()
            raise AssertionError("the stream ended")

        yield following


def test_listeners_resume_where_they_were(farm: Farm) -> None:
    with listening(farm) as following:
        build = farm.succeed(farm.submit(farm.step("streamed", "echo > $out")))
        first_id, kind, data = following()
        assert (kind, data["build"]["id"]) == ("build-submitted", build.id)
        second_id, kind, data = following()
        assert (kind, data["outcome"]) == ("build-succeeded", "succeeded")
    with listening(farm, **{"last-event-id": str(first_id)}) as following:
        assert following()[0] == second_id
    with listening(farm, **{"last-event-id": "0"}) as following:
        assert following()[0] < first_id


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("events", {"last-event-id": "junk"}, 400),
        ("events", {"last-event-id": "9" * 30}, 400),
        ("events?kind=nonsense", {}, 422),
        ("events?after=-1", {}, 422),
        ("hooks/failures?hook=nobody", {}, 404),
        ("hooks/failures?limit=0", {}, 422),
    ],
)
def test_wrong_questions_are_refused(
    farm: Farm, path: str, headers: dict[str, str], status: int
) -> None:
    shown = {"authorization": bearer(token_in(farm.admin_token)), **headers}
    with httpx.Client(trust_env=False) as client:
        answer = client.get(f"{farm.url}/api/v1/{path}", headers=shown)
    assert answer.status_code == status, answer.text
    answer = farm.get("/api/v1/hooks/failures")
    assert answer.status_code == 401, "what failed may hold secrets of a hook"


def test_what_was_on_its_way_when_the_farm_was_killed_is_told_again(
    farm: Farm, folder: Path
) -> None:
    os.mkfifo(folder / "gate")
    build = farm.succeed(farm.submit(farm.step("killed", "echo > $out")))
    until((folder / "at-gate").exists, "the hook is at its gate")
    assert farm.coordinator is not None
    farm.coordinator.signal(signal.SIGKILL)
    farm.coordinator.popen.wait()
    (folder / "gate").rename(folder / "old-gate")
    farm.start_coordinator()
    story = told_of(folder, build, "build-succeeded")
    assert kinds(story) == ["build-submitted", "build-started", "step-finished", "build-succeeded"]
    let_through(folder / "old-gate")  # the orphan goes on, and tells a second time
    farm.await_agent("one")


def test_lost_inputs_are_told_of_and_built_again_without_a_hook(farm: Farm, folder: Path) -> None:
    base = '(step "lost-base" {} "echo lost > $out")'
    [made] = farm.succeed(farm.submit(farm.drv(base))).outputs.values()
    [url] = [line[5:] for line in farm.narinfo(made).text.splitlines() if line[:5] == "URL: "]
    (farm.state_dir / "cache" / url).unlink()
    farm.add_agent("fresh", "--max-jobs", "1", "--tag", "fresh")
    drv = farm.drv(f'step "needs-lost" {{ base = {base}; }} "$b cat $base > $out"')
    build = farm.succeed(farm.submit(drv, "fresh"))
    story = told_of(folder, build, "build-succeeded")
    (event,) = [e["event"] for e in story if e["event"]["event"] == "inputs-missing"]
    assert event["missing"] == [made]
    assert [step["name"] for step in event["rebuilt"]] == ["lost-base"]
    assert (event["step"]["name"], event["agent"]["name"]) == ("needs-lost", "fresh")
    ended = [e["event"]["step"]["name"] for e in story if e["event"]["event"] == "step-finished"]
    assert ended == ["lost-base", "needs-lost"]


def test_another_coordinator_goes_on_where_the_killed_one_was(tmp_path: Path) -> None:
    (tmp_path / "listener.py").write_text(LISTENER)
    config = tmp_path / "farm.toml"
    config.write_text(f"""
    [hooks.listener]
    events = ["build-submitted", "build-succeeded"]
    command = {listener(tmp_path)}
    """)
    farm = make_farm(tmp_path / "farm")
    with running_postgres() as postgres:
        shared = SharedFarm(farm, postgres.new_database(), "--config", str(config))
        try:
            shared.add_agent("one")
            first = farm.succeed(farm.submit(farm.step("before", "echo > $out")))
            told_of(tmp_path, first, "build-succeeded")
            os.mkfifo(tmp_path / "gate")
            build = farm.succeed(farm.submit(farm.step("between", "echo > $out")))
            until((tmp_path / "at-gate").exists, "the hook is at its gate")
            shared.lead.process.kill()
            (tmp_path / "gate").rename(tmp_path / "old-gate")
            shared.await_takeover()
            story = told_of(tmp_path, build, "build-succeeded")
            assert kinds(story) == ["build-submitted", "build-succeeded"]
            assert len(told_of(tmp_path, first, "build-succeeded")) == 2, "that was done already"
            let_through(tmp_path / "old-gate")
        finally:
            farm.stop()
            shared.stop()


# Bad hooks


def test_bad_hooks_harm_themselves_alone(tmp_path: Path) -> None:
    orphan = f"orphan-of-{'-'.join(tmp_path.parts[-2:])}"
    hang = json.dumps(["/bin/sh", "-c", f"sh -c 'sleep 1000; :' {orphan} & sleep 1000"])
    config = f"""
    [hooks.hangs]
    events = ["build-submitted"]
    command = {hang}
    timeout_s = 0.5
    tries = 2
    backoff_s = 0
    [hooks.floods]
    events = ["build-submitted"]
    command = ["/bin/sh", "-c", "head -c 1000000000 /dev/zero"]
    tries = 1
    [hooks.leaves]
    events = ["build-submitted"]
    command = {json.dumps(["/bin/sh", "-c", f"sh -c 'sleep 1000; :' {orphan} &"])}
    [hooks.absent]
    events = ["build-submitted"]
    command = ["/nowhere/at/all"]
    tries = 1
    [hooks.deaf]
    events = ["build-submitted"]
    url = "http://127.0.0.1:1/"
    tries = 1
    [hooks.good]
    events = ["build-submitted", "build-succeeded"]
    command = {listener(tmp_path)}
    """
    with farm_with(tmp_path, config) as farm:
        build = farm.succeed(farm.submit(farm.step("calm", "echo > $out")))
        told_of(tmp_path, build, "build-succeeded")
        assert farm.get("/api/v1/events").status_code == 409  # nobody asked for a stream

        def errors() -> dict[str, str]:
            failures = farm.client.hook_failures()
            return {each.hook: each.error for each in failures}

        until(lambda: len(errors()) == 4, "all bad ones are given up")
        assert errors()["hangs"] == "it had not ended after 0.5 s, and was killed"
        assert "printed more than 16 MiB" in errors()["floods"]
        assert errors()["absent"] == "/nowhere/at/all cannot be run: No such file or directory"
        assert errors()["deaf"].startswith("http://127.0.0.1: ")
        states = {each.name: each for each in farm.client.hooks()}
        assert (states["good"].given_up, states["leaves"].given_up) == (0, 0)
        until(lambda: not processes_with(orphan), "nothing of them is left")


def test_a_hook_that_answers_builds_with_builds_comes_to_an_end(tmp_path: Path) -> None:
    config = f"""
    [hooks.again]
    events = ["build-submitted"]
    command = {listener(tmp_path, "again")}
    roles = ["read", "submit"]
    """
    with farm_with(tmp_path, config) as farm:
        farm.succeed(farm.submit(farm.step("once", "echo > $out")))
        until(lambda: len(told(tmp_path)) == 2, "it hears of its own first build")
        until(lambda: len(farm.client.builds()) == 3, "and submits a second")
        until(lambda: farm.client.hooks()[0].behind == 0, "which it is not told of")
        assert [each["submitted"] for each in told(tmp_path)] == [200, 200]
        by = [each.submitted_by for each in farm.client.builds()]
        assert by[:2] == ["hook again depth 2", "hook again depth 1"]
