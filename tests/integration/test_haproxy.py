"""Slots on a real HAProxy: bound in the safe order, whatever it does in between."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from grange.autoscaler.wiring import Wiring, haproxy_config
from grange.capacity.effects import SetServer
from grange.capacity.facts import Pool, PoolName, ServerMode, SlotId
from grange.cloud.haproxy import HaproxyBalancer, HaproxySettings
from grange.errors import OperatorError, OutsideError
from tests.haproxy import (
    ONE,
    TWO,
    Haproxy,
    program,
    running_haproxy,
    server,
    stand_in,
    until,
    until_healthy,
)
from tests.ports import free_port

MAINTENANCE, DRAIN, READY = ServerMode.MAINTENANCE, ServerMode.DRAIN, ServerMode.READY


async def bring_up(balancer: HaproxyBalancer, address: str, slot: SlotId = ONE) -> None:
    await balancer.set(SetServer(slot, DRAIN, address))
    await until_healthy(balancer, slot)
    await balancer.set(SetServer(slot, READY, address))


def test_haproxy_takes_the_configuration_without_a_word(tmp_path: Path) -> None:
    pools = (
        Pool(PoolName("x86"), ("x86_64-linux", "i686-linux"), ("kvm", "big-parallel"), max=30),
        Pool(PoolName("arm"), ("aarch64-linux",), max=3, capacity=8),
    )
    state = tmp_path / "state"
    state.write_text("1\n")
    settings = HaproxySettings(str(tmp_path / "socket"))
    text = haproxy_config(Wiring(pools), settings, str(state), "nobody", "nogroup")
    (tmp_path / "haproxy.cfg").write_text(text)
    done = subprocess.run(
        [program(), "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    assert "Warnings" not in done.stdout.decode()
    assert "bind 127.0.0.1:22030" in text
    assert "server arm-3 arm-3.invalid:1" in text


async def test_a_slot_serves_after_its_checks_and_keeps_its_sessions_in_a_drain() -> None:
    async with running_haproxy() as haproxy, stand_in("a") as a, stand_in("b") as b:
        balancer = haproxy.balancer()
        assert {(each.mode, each.is_healthy) for each in await balancer.servers()} == {
            (MAINTENANCE, False)
        }
        await bring_up(balancer, a.address)
        await bring_up(balancer, b.address, TWO)
        first = await server(balancer)
        assert (first.address, first.mode, first.is_healthy) == (a.address, READY, True)

        by_alias, *more = [await haproxy.connect(1) for _ in range(3)]  # the other has fewer
        other = await haproxy.connect(2)
        shared = await haproxy.connect()
        assert {each.banner for each in (by_alias, *more)} == {"a"}
        assert other.banner == "b"
        for each in more:
            each.end()
        assert shared.banner in ("a", "b")
        shared.end()

        await balancer.set(SetServer(ONE, DRAIN, a.address))
        assert await by_alias.echoes(b"still here")
        refused = await haproxy.connect(1)  # the alias leads nowhere else
        elsewhere = [await haproxy.connect() for _ in range(3)]
        assert refused.banner == ""
        assert {session.banner for session in elsewhere} == {"b"}
        await until(lambda: _has_sessions(balancer, 1))
        by_alias.end()
        await until(lambda: _has_sessions(balancer, 0))
        await balancer.set(SetServer(ONE, READY, a.address))  # back to work
        again = await haproxy.connect(1)
        assert again.banner == "a"
        await balancer.set(SetServer(ONE, MAINTENANCE))
        await balancer.set(SetServer(ONE, MAINTENANCE))
        assert (await haproxy.connect(1)).banner == ""
        assert await balancer.troubles() == ()


async def test_haproxy_itself_sends_at_once_to_what_leaves_maintenance_and_we_do_not() -> None:
    async with running_haproxy("downinter 1h inter 1h") as haproxy, stand_in("a") as a:
        balancer = haproxy.balancer()
        nobody = f"127.0.0.1:{free_port()}"
        a.holds.clear()  # the check does not end
        host, port = a.address.split(":")
        await haproxy.ask(f"set server grange-x86/{ONE} addr {host} port {port}")
        await haproxy.ask(f"set server grange-x86/{ONE} state ready")
        assert ",UP 1/3," in await haproxy.ask("show stat -1 4 -1")
        assert not (await server(balancer)).is_healthy

        await balancer.set(SetServer(ONE, MAINTENANCE))
        for address in (a.address, nobody):
            with pytest.raises(OutsideError, match="has to pass its checks at"):
                await balancer.set(SetServer(ONE, READY, address))
            assert (await server(balancer)).mode is MAINTENANCE


async def test_a_new_tenant_does_not_inherit_the_health_of_the_one_before() -> None:
    async with running_haproxy() as haproxy, stand_in("a") as a:
        balancer = haproxy.balancer()
        await bring_up(balancer, a.address)
        nobody = f"127.0.0.1:{free_port()}"
        await balancer.set(SetServer(ONE, DRAIN, nobody))
        stale = await haproxy.ask("show stat -1 4 1")
        if "L7OK" in stale:  # HAProxy's own word for it, until a check has ended
            assert (await server(balancer)).address == nobody
        seen = []

        async def is_down() -> bool:
            seen.append((await server(balancer)).is_healthy)
            return "L4CON" in await haproxy.ask("show stat -1 4 1")

        await until(is_down)
        assert not any(seen)
        with pytest.raises(OutsideError, match="not to serve yet"):
            await balancer.set(SetServer(ONE, READY, nobody))
        assert a.said == []


async def test_a_check_that_is_under_way_does_not_count_for_the_next_tenant() -> None:
    async with running_haproxy() as haproxy, stand_in("a") as a:
        balancer = haproxy.balancer()
        a.holds.clear()
        await balancer.set(SetServer(ONE, DRAIN, a.address))
        async with asyncio.timeout(30):
            await a.arrived.wait()
        async with stand_in("b") as b:
            b.holds.clear()
            binding = asyncio.create_task(balancer.set(SetServer(ONE, DRAIN, b.address)))

            async def is_resting() -> bool:
                return binding.done() or ",MAINT," in await haproxy.ask("show stat -1 4 1")

            await until(is_resting)
            a.holds.set()  # now that check passes, in maintenance
            await binding
            async with asyncio.timeout(30):
                await b.arrived.wait()
            assert not (await server(balancer)).is_healthy
            b.holds.set()
            await until_healthy(balancer)


async def test_an_agent_that_says_ready_ends_neither_drain_nor_maintenance() -> None:
    words: list[bytes] = [b"ready\n"]
    asked = asyncio.Event()

    async def agent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.write(words[0])
        writer.close()

    port = free_port()
    async with await asyncio.start_server(agent, "127.0.0.1", port), stand_in("a") as a:
        extra = f"agent-check agent-addr 127.0.0.1 agent-port {port} agent-inter 50ms"
        async with running_haproxy(extra) as haproxy:
            balancer = haproxy.balancer()
            await until(lambda: _is_mode(balancer, READY))  # HAProxy believes it, unbound as it is
            await balancer.set(SetServer(ONE, DRAIN, a.address))
            asked.clear()
            await until_healthy(balancer)
            assert (await server(balancer)).mode is DRAIN
            await balancer.set(SetServer(ONE, READY, a.address))
            words[0] = b"drain\n"  # while it serves, its agent is heard
            await until(lambda: _is_mode(balancer, DRAIN))
            words[0] = b"ready\n"
            await balancer.set(SetServer(ONE, MAINTENANCE))
            for _ in range(3):  # the other slot's agent goes on
                asked.clear()
                async with asyncio.timeout(30):
                    await asked.wait()
            assert (await server(balancer)).mode is MAINTENANCE


async def _has_sessions(balancer: HaproxyBalancer, sessions: int) -> bool:
    return (await server(balancer)).sessions == sessions


async def _is_mode(balancer: HaproxyBalancer, mode: ServerMode) -> bool:
    return (await server(balancer)).mode is mode


async def test_after_a_restart_slots_rest_until_they_are_bound_anew() -> None:
    async with running_haproxy() as haproxy, stand_in("a") as a:
        balancer = haproxy.balancer()
        await bring_up(balancer, a.address)
        await haproxy.stop()
        with pytest.raises(OutsideError, match="is HAProxy running"):
            await balancer.servers()
        await haproxy.start()
        assert (await server(balancer)).mode is MAINTENANCE
        assert (await haproxy.connect()).banner == ""
        with pytest.raises(OutsideError, match="not to serve yet"):
            await balancer.set(SetServer(ONE, READY, a.address))
        await bring_up(balancer, a.address)
        assert (await haproxy.connect()).banner == "a"


async def test_health_of_before_a_reload_opens_nothing() -> None:
    async with running_haproxy() as haproxy, stand_in("a") as a, stand_in("b") as b:
        balancer = haproxy.balancer()
        await balancer.set(SetServer(ONE, DRAIN, a.address))
        await until_healthy(balancer)
        with pytest.raises(OutsideError, match=f"pass its checks at {b.address}"):
            await balancer.set(SetServer(ONE, READY, b.address))
        a.holds.clear()  # from now on no check of it ends well
        await haproxy.reload()
        after = await server(haproxy.balancer())
        assert (after.address, after.mode, after.is_healthy) == (a.address, DRAIN, False)
        with pytest.raises(OutsideError, match="not to serve yet"):
            await haproxy.balancer().set(SetServer(ONE, READY, a.address))


@pytest.mark.parametrize("has_master", [True, False])
@pytest.mark.parametrize("is_new_daemon", [True, False])
async def test_sessions_of_before_a_reload_are_not_forgotten(
    has_master: bool, is_new_daemon: bool
) -> None:
    async with running_haproxy() as haproxy, stand_in("a") as a:
        balancer = haproxy.balancer(has_master=has_master)
        await balancer.servers()  # as each life of a daemon begins
        await bring_up(balancer, a.address)
        sessions = [await haproxy.connect(1) for _ in range(2)]
        assert (await server(balancer)).sessions == 2
        await haproxy.reload()
        if is_new_daemon:
            balancer = haproxy.balancer(has_master=has_master)
        after = await server(balancer)
        assert (after.address, after.mode) == (a.address, READY)
        assert after.sessions == (2 if has_master or not is_new_daemon else 1)
        assert [await each.echoes(b"x") for each in sessions] == [True, True]
        new = await haproxy.connect(1)
        assert new.banner == "a"
        assert (await server(balancer)).sessions == after.sessions + 1
        assert bool(await balancer.troubles()) is not has_master
        for each in (new, *sessions):
            each.end()

        if has_master:
            await until(lambda: _has_sessions(balancer, 0))


async def test_wrong_names_and_rights_are_told_by_name(tmp_path: Path) -> None:
    async with running_haproxy() as haproxy:
        balancer = haproxy.balancer()
        socket = haproxy.settings.socket
        with pytest.raises(OperatorError, match=rf"{socket} has no server grange-x86/x86-9; add"):
            await balancer.set(SetServer(SlotId("x86-9"), DRAIN, "10.0.0.1"))
        with pytest.raises(OperatorError, match=r"no server grange-arm/arm-1, and says"):
            await balancer.set(SetServer(SlotId("arm-1"), MAINTENANCE))
        with pytest.raises(OperatorError, match=r"address 'builder\.example'"):
            await balancer.set(SetServer(ONE, DRAIN, "builder.example"))
        missing = HaproxyBalancer(haproxy.settings, lambda: [ONE, SlotId("x86-7")])
        (said,) = await missing.troubles()
        assert said.startswith("no server in HAProxy for x86-7; add")


async def test_traffic_never_meets_a_stranger_while_tenants_come_and_go() -> None:
    """Under load, over reloads and restarts; each address is taken by someone else afterwards."""
    async with running_haproxy() as haproxy:
        balancer = haproxy.balancer()
        visits: list[str] = []
        stop = asyncio.Event()

        async def use(alias: int) -> None:
            while not stop.is_set():
                try:
                    session = await haproxy.connect(alias)
                except OSError:  # between a stop and a start
                    await asyncio.sleep(0)
                    continue
                if session.banner and await session.echoes(b"build"):
                    visits.append(session.banner)
                session.end()

        async with asyncio.TaskGroup() as tasks:
            for alias in (0, 1, 0):
                tasks.create_task(use(alias))
            try:
                for number in range(6):
                    await _one_tenancy(haproxy, balancer, number, visits)
            finally:
                stop.set()
        assert not [each for each in visits if each.startswith("stranger")]
        assert {f"tenant-{number}" for number in range(6)} <= {*visits}


async def _one_tenancy(
    haproxy: Haproxy, balancer: HaproxyBalancer, number: int, visits: list[str]
) -> None:
    async def is_used() -> bool:
        return visits.count(name) > used

    name, used = f"tenant-{number}", 0
    async with stand_in(name) as tenant:
        await bring_up(balancer, tenant.address)
        await until(is_used)
        match number % 3:
            case 0:
                await haproxy.reload()
            case 1:
                await haproxy.stop()
                await haproxy.start()
                await bring_up(balancer, tenant.address)
        used = visits.count(name)
        await until(is_used)
        await balancer.set(SetServer(ONE, DRAIN, tenant.address))
        await until(lambda: _has_sessions(balancer, 0))
        await balancer.set(SetServer(ONE, MAINTENANCE))
    async with stand_in(f"stranger-{number}", tenant.port) as stranger:
        await balancer.set(SetServer(ONE, MAINTENANCE))
        with pytest.raises(OutsideError, match="not to serve yet"):
            await balancer.set(SetServer(ONE, READY, tenant.address))
        if number % 2:
            await haproxy.reload()
        assert stranger.said == []
