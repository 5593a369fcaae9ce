"""The farm's file on hooks, and the hooks that are there to begin with."""

import hmac
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from grange.cli.farm_file import read_farm_file
from grange.coordinator.hooks.rules import EventRules, HookRule
from grange.errors import OperatorError
from grange.identity import Role
from grange.scheduler.facts import EventKind, Limits
from tests.ports import free_port

EXAMPLES = Path(__file__).parents[2] / "examples/hooks"


def read(folder: Path, text: str) -> EventRules:
    path = folder / "farm.toml"
    path.write_text(text)
    farm = read_farm_file(path, Limits())
    assert farm.policy.tells == farm.events.tells
    return farm.events


def test_a_farm_without_hooks_tells_nobody(tmp_path: Path) -> None:
    assert read(tmp_path, "") == EventRules((), is_stream=False, keep_days=7.0)
    assert read(tmp_path, "").tells == frozenset()
    assert read(tmp_path, "[events]\nstream = true").tells == frozenset(EventKind)


def test_a_hook_is_as_the_file_says(tmp_path: Path) -> None:
    text = """
        [hooks.all]
        events = ["agent-lost", "build-failed"]
        url = "https://example.org/x"
        projects = ["p"]
        parallel = 2
        timeout_s = 1.5
        tries = 3
        backoff_s = 0
        roles = ["read", "submit"]
        secret_file = "secret"
        depth = 0
        [hooks.least]
        events = ["build-failed"]
        command = ["x", "y"]
    """
    rules = read(tmp_path, text)
    assert rules.tells == {EventKind.AGENT_LOST, EventKind.BUILD_FAILED}
    assert list(rules.hooks) == [
        HookRule(
            "all",
            frozenset({EventKind.AGENT_LOST, EventKind.BUILD_FAILED}),
            url="https://example.org/x",
            projects=frozenset({"p"}),
            parallel=2,
            timeout_s=1.5,
            tries=3,
            backoff_s=0.0,
            roles=frozenset({Role.READ, Role.SUBMIT}),
            secret_file=tmp_path / "secret",
            depth=0,
        ),
        HookRule("least", frozenset({EventKind.BUILD_FAILED}), command=("x", "y")),
    ]


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ('command = ["x"]', "hooks.h.events"),
        ('events = []\ncommand = ["x"]', "hooks.h.events is"),
        ('events = ["build-failed"]', "exactly one of command, url and entry_point"),
        ('events = ["build-failed"]\ncommand = ["x"]\nurl = "http://x/"', "exactly one"),
        ('events = ["failed"]\ncommand = ["x"]', "hooks.h.events.0 is 'failed'"),
        ('events = ["build-failed"]\ncommand = []', "hooks.h.command"),
        ('events = ["build-failed"]\ncommand = "x"', "hooks.h.command"),
        ('events = ["build-failed"]\nurl = "ftp://x/"', "hooks.h.url"),
        ('events = ["build-failed"]\ncommand = ["x"]\nparallel = 0', "hooks.h.parallel"),
        ('events = ["build-failed"]\ncommand = ["x"]\ntimeout_s = 0', "hooks.h.timeout_s"),
        ('events = ["build-failed"]\ncommand = ["x"]\nroles = ["administer"]', "may administer"),
        ('events = ["build-failed"]\ncommand = ["x"]\nroles = ["build"]', "no hook may build"),
        ('events = ["build-failed"]\ncommand = ["x"]\nsecret_file = "s"', "secret_file is for"),
        ('events = ["build-failed"]\nurl = "http://x/"\nenvironment = {A = "b"}', "is for a hook"),
        ('events = ["build-failed"]\ncommand = ["x"]\nenvironment = {GRANGE_URL = "b"}', "'GRANGE"),
        ('events = ["build-failed"]\ncommand = ["x"]\nsurprise = 1', "surprise is not known"),
    ],
)
def test_a_hook_that_makes_no_sense_stops_the_start(tmp_path: Path, hook: str, said: str) -> None:
    with pytest.raises(OperatorError) as told:
        read(tmp_path, f"[hooks.h]\n{hook}")
    assert said in str(told.value)


def test_a_hook_has_a_plain_name(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot name a hook"):
        read(tmp_path, '[hooks."a/b c"]\nevents = ["agent-lost"]\ncommand = ["x"]')


def test_the_example_file_is_one() -> None:
    rules = read_farm_file(EXAMPLES / "farm.toml", Limits()).events
    assert [hook.name for hook in rules.hooks] == ["announce", "retry", "chat"]
    assert rules.is_stream
    for hook in rules.hooks:
        if hook.command:
            assert os.access(EXAMPLES / Path(hook.command[0]).name, os.X_OK)


def test_announce_writes_each_event_once(tmp_path: Path) -> None:
    for number in ("1", "2", "1"):
        subprocess.run(
            [EXAMPLES / "announce.sh", tmp_path / "log"],
            input=b'{"id": 1}',
            env={**os.environ, "GRANGE_EVENT_ID": number},
            check=True,
        )
    assert (tmp_path / "log").read_text() == 'event 1: {"id": 1}\nevent 2: {"id": 1}\n'


class Farm(HTTPServer):
    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Retries)


class Retries(BaseHTTPRequestHandler):
    server: Farm

    def do_POST(self) -> None:
        self.server.asked.append((self.path, self.headers["authorization"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_retry_asks_for_another_try_where_the_farm_was_at_fault(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("grange_t\n")
    with Farm() as farm:
        thread = threading.Thread(target=farm.serve_forever)
        thread.start()
        environment = {
            **os.environ,
            "GRANGE_URL": f"http://127.0.0.1:{farm.server_port}",
            "GRANGE_TOKEN_FILE": str(tmp_path / "token"),
            "RETRY_COUNTS": str(tmp_path / "counts"),
        }
        told = [
            (1, "the farm"),
            (2, "the build"),
            (3, "the farm"),
            (3, "the farm"),
            (4, "the farm"),
        ]
        for number, fault in told:
            event = {"id": number, "build": {"id": "b"}, "cause": {"fault": fault}}
            subprocess.run(
                [sys.executable, EXAMPLES / "retry.py", "2"],
                input=json.dumps(event).encode(),
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        farm.shutdown()
        thread.join()
    # The third is told twice and asked for twice, which is harmless; the fourth is one too many.
    assert farm.asked == [("/api/v1/builds/b/retry", "Bearer grange_t")] * 3


def test_receive_takes_what_is_signed_and_fresh(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sixteen bytes of secret\n")
    port = free_port()
    body = json.dumps({"id": 7, "event": "build-failed", "project": "p"}).encode()

    def post(at: float, key: bytes) -> int:
        seal = hmac.new(key, f"{at:.0f}".encode() + b"." + body, "sha256").hexdigest()
        headers = {"x-grange-timestamp": f"{at:.0f}", "x-grange-signature": f"sha256={seal}"}
        with httpx.Client(trust_env=False, transport=httpx.HTTPTransport(retries=20)) as client:
            return client.post(
                f"http://127.0.0.1:{port}/", content=body, headers=headers
            ).status_code

    with subprocess.Popen(
        [sys.executable, EXAMPLES / "receive.py", str(port), secret],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as receiver:
        try:
            now, key = time.time(), b"sixteen bytes of secret"
            answers = post(now, key), post(now, b"another"), post(now - 9_999, key)
            assert answers == (204, 403, 403)
        finally:
            receiver.terminate()
        assert receiver.stdout is not None
        assert receiver.stdout.read() == b"7 build-failed p\n"
