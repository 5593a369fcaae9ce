"""A peer that sends junk: only our own errors, and never a wait for ever."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.daemon import Daemon, DaemonError, DaemonGone, GcAction
from grange.daemon.connection import Connection
from grange.daemon.failure import plain
from grange.daemon.link import Link
from grange.daemon.messages import DEAF, ERROR, LAST, NEXT, RESULT, START_ACTIVITY, Listener
from grange.daemon.wire import STRING_BYTES_MAX, integer, string, strings
from grange.errors import GrangeError, OperatorError
from grange.store.basic import BasicDerivation, BasicOutput
from grange.store.hash import Hash
from grange.store.nar import nar_of_text
from grange.store.narinfo import PathInfo
from grange.store.path import NIX_STORE, StorePath

PATH = StorePath("0" * 32 + "-x")
NAR = nar_of_text(b"x")
INFO = PathInfo(PATH, Hash.of("sha256", NAR), len(NAR), ())
BASIC = BasicDerivation({"out": BasicOutput(PATH)}, (), "s", "/b", ("a",), {"k": "v"})
HELLO = b"".join(
    (integer(0x6478696F), integer(1 << 8 | 38), strings(()), string("2.99"), integer(1))
) + integer(LAST)


async def build(daemon: Daemon) -> object:
    return await daemon.build_derivation(PATH, BASIC, lambda _: None)


async def read_nar(daemon: Daemon) -> object:
    return [piece async for piece in daemon.nar_from_path(PATH)]


OPERATIONS: list[Callable[[Daemon], Awaitable[object]]] = [
    build,
    read_nar,
    lambda daemon: daemon.prove_trust(),
    lambda daemon: daemon.query_valid_paths([PATH]),
    lambda daemon: daemon.query_path_infos([PATH, StorePath("1" * 32 + "-x")]),
    lambda daemon: daemon.query_closure([PATH]),
    lambda daemon: daemon.find_roots(),
    lambda daemon: daemon.collect_garbage(GcAction.RETURN_DEAD),
    lambda daemon: daemon.add_temp_root(PATH),
    lambda daemon: daemon.add_multiple_to_store([(INFO, NAR)]),
    lambda daemon: daemon.add_to_store("x", "text:sha256", b"x"),
]

# Pieces of which real answers are made, so that junk gets past the first integer.
plausible = st.lists(
    st.one_of(
        st.sampled_from([0, 1, 2, 101, 104, NEXT, LAST, ERROR, RESULT, START_ACTIVITY]).map(
            integer
        ),
        st.integers(0, 2**64 - 1).map(integer),
        st.binary(max_size=20).map(string),
        st.sampled_from([NIX_STORE.show(PATH), "", "sha256!out", '{"outPath": 3}', "[" * 9999]).map(
            string
        ),
        st.binary(max_size=20),
    ),
    max_size=30,
).map(b"".join)


@asynccontextmanager
async def link_to(answer: bytes) -> AsyncIterator[Link]:
    """A peer that says `answer`, whatever it hears, and then nothing more."""
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        link = Link("fake", reader, writer, None)
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        yield link
        link.close()
        await asyncio.sleep(0)  # asyncio closes the socket in its next round


async def opened(link: Link, listener: Listener = DEAF) -> Daemon:
    return Daemon(await Connection.open(link, NIX_STORE), listener)


@given(st.one_of(st.binary(max_size=200), plausible.map(lambda junk: HELLO[:16] + junk)))
def test_junk_for_a_handshake(junk: bytes) -> None:
    async def run() -> None:
        async with link_to(junk) as link:
            with pytest.raises((DaemonGone, DaemonError, OperatorError)):
                await opened(link)
            assert link.is_closed

    asyncio.run(run())


@given(st.sampled_from(OPERATIONS), plausible)
def test_junk_for_an_answer(operation: Callable[[Daemon], Awaitable[object]], junk: bytes) -> None:
    async def run() -> None:
        async with link_to(HELLO + junk) as link:
            daemon = await opened(link)
            try:
                await operation(daemon)
            except DaemonError:
                return  # a well formed refusal
            except GrangeError:
                assert daemon.is_broken

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        integer(NEXT) + integer(STRING_BYTES_MAX + 1),
        integer(NEXT) + integer(1) + b"axxxxxxx",
        integer(LAST) + integer(2**64 - 1),
        integer(RESULT) + integer(0) + integer(101) + integer(0),
        integer(RESULT) + integer(0) + integer(101) + integer(10**6),
        integer(LAST) + integer(1) + string("/etc/passwd"),
        integer(17),
    ],
    ids=["huge", "padding", "long list", "log without line", "many fields", "path", "message"],
)
async def test_nonsense_breaks_the_connection(answer: bytes) -> None:
    async with link_to(HELLO + answer) as link:
        daemon = await opened(link)
        with pytest.raises(DaemonGone, match="protocol violation by the daemon"):
            await daemon.query_valid_paths([PATH])
        assert daemon.is_broken


async def test_an_error_keeps_its_traces_and_loses_its_colours() -> None:
    fields = (
        "Error",
        0,
        "gone",
        "\x1b[31;1merror:\x1b[0m no \x1b[35;1mroom\x1b[0m",
        0,
        1,
        0,
        "here\n",
    )
    parts = [integer(each) if isinstance(each, int) else string(each) for each in fields]
    heard: list[str] = []
    said = integer(NEXT) + string("\x1b]0;title\x07warning: \xff".encode("latin-1"))
    async with link_to(HELLO + said + integer(ERROR) + b"".join(parts)) as link:
        daemon = await opened(link, Listener(on_message=heard.append))
        with pytest.raises(DaemonError) as caught:
            await daemon.find_roots()
    assert caught.value.message == "no room"
    assert caught.value.traces == ("here",)
    assert str(caught.value) == "no room\n… here"
    assert heard == ["warning: \N{REPLACEMENT CHARACTER}"]


async def test_a_refused_path_info_leaves_the_connection_in_step() -> None:
    refusal = integer(ERROR) + string("Error") + integer(0) + string("") + string("corrupt")
    refusal += integer(0) * 2
    absent = integer(LAST) + integer(0)
    valid = integer(LAST) + strings([NIX_STORE.show(PATH)])
    async with link_to(HELLO + refusal + absent + valid) as link:
        daemon = await opened(link)
        with pytest.raises(DaemonError, match="corrupt"):
            await daemon.query_path_infos([PATH, StorePath("1" * 32 + "-x")])
        assert await daemon.query_valid_paths([PATH]) == {PATH}


async def test_a_status_of_a_later_nix_is_a_failure() -> None:
    reply = b"".join((integer(LAST), integer(99), string("odd"), integer(0) * 6, strings(())))
    async with link_to(HELLO + reply) as link:
        daemon = await opened(link)
        result = await daemon.build_derivation(PATH, BASIC, lambda _: None)
    assert not result.status.is_success
    assert "odd (status 99" in result.error_msg


async def test_cpu_times_are_read() -> None:
    head = integer(LAST) + integer(0) + string("") + integer(1) + integer(0) * 3
    times = integer(1) + integer(1500) + integer(1) + integer(20)
    outputs = integer(1) + string("sha256:00!out") + string(json.dumps({"outPath": PATH}))
    async with link_to(HELLO + head + times + outputs) as link:
        result = await (await opened(link)).build_derivation(PATH, BASIC, lambda _: None)
    assert (result.cpu_user_us, result.cpu_system_us) == (1500, 20)
    assert result.built_outputs == {"out": PATH}


async def test_only_one_operation_at_a_time() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(HELLO)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        daemon = await opened(Link("fake", reader, writer, None))
        asking = asyncio.create_task(daemon.find_roots())
        await asyncio.sleep(0)
        with pytest.raises(AssertionError, match="one operation"):
            await daemon.find_roots()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert daemon.is_broken


def test_plain_text() -> None:
    assert plain(b"\x1b[31;1mred\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \xff ") == (
        "red link \N{REPLACEMENT CHARACTER}"
    )


@asynccontextmanager
async def silent_peer() -> AsyncIterator[Daemon]:
    """A daemon that says hello and then neither speaks nor reads."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(HELLO)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        daemon = await opened(Link("fake", reader, writer, None))
        try:
            yield daemon
        finally:
            await daemon.aclose()
            await asyncio.sleep(0)  # asyncio closes the socket in its next round


IMPATIENT = [each for each in OPERATIONS if each is not build and each is not OPERATIONS[2]]


@pytest.mark.parametrize("number", range(len(IMPATIENT)))
async def test_a_daemon_that_says_nothing_is_given_up(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with silent_peer() as daemon:  # greeted with all patience
        for name in ("wire.ANSWER_S", "client.COLLECT_S", "connection.TAKE_IN_S", "link.DRAIN_S"):
            monkeypatch.setattr(f"grange.daemon.{name}", 0.05)
        with pytest.raises(DaemonGone, match="nothing"):
            await IMPATIENT[number](daemon)
        assert daemon.is_broken


async def test_a_daemon_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    nar = nar_of_text(bytes(8 << 20))  # far beyond any buffer between the two
    info = PathInfo(PATH, Hash.of("sha256", nar), len(nar), ())
    async with silent_peer() as daemon:
        for name in ("connection.TAKE_IN_S", "link.DRAIN_S"):
            monkeypatch.setattr(f"grange.daemon.{name}", 0.05)
        with pytest.raises(DaemonGone, match="nothing"):
            await daemon.add_multiple_to_store([(info, nar)])


async def test_a_build_may_be_silent_for_as_long_as_it_likes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = b"".join((integer(LAST), integer(3), string("odd"), integer(0) * 6, strings(())))
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(HELLO)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        daemon = await opened(Link("fake", reader, writer, None))
        monkeypatch.setattr("grange.daemon.wire.ANSWER_S", 0.02)
        asyncio.get_running_loop().call_later(0.1, theirs.sendall, answer)
        result = await daemon.build_derivation(PATH, BASIC, lambda _: None)
        assert "odd" in result.error_msg
        await daemon.aclose()
        await asyncio.sleep(0)
