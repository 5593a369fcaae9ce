"""What runs beside an agent: where the farm is, and whatever happens to it."""

import asyncio

import pytest

from grange.agent.beside import AGAIN_S, Beside


class Running:
    """Tells where it began and where it was ended."""

    def __init__(self, defects: int = 0) -> None:
        self.told: list[str] = []
        self.paused: list[float] = []
        self.begun = asyncio.Event()
        self._defects = defects

    async def __call__(self, url: str) -> None:
        self.told.append(f"begins at {url}")
        if self._defects:
            self._defects -= 1
            raise ZeroDivisionError("ours")
        self.begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.told.append(f"ends at {url}")

    async def pause(self, seconds: float) -> None:
        self.paused.append(seconds)

    async def begins(self) -> None:
        await self.begun.wait()
        self.begun.clear()


async def test_it_follows_the_farm_and_ends_with_it() -> None:
    running = Running()
    beside = Beside(running)
    await beside.go_to("one")
    await running.begins()
    await beside.go_to("one")
    await beside.go_to("two")
    await running.begins()
    await beside.stop()
    await beside.stop()
    assert running.told == ["begins at one", "ends at one", "begins at two", "ends at two"]
    await beside.go_to("two")
    await running.begins()
    await beside.stop()


async def test_a_defect_of_it_is_told_and_mended(caplog: pytest.LogCaptureFixture) -> None:
    running = Running(defects=2)
    beside = Beside(running, pause=running.pause)
    await beside.go_to("one")
    await running.begins()
    assert running.paused == [AGAIN_S, AGAIN_S]
    assert caplog.text.count("ZeroDivisionError: ours") == 2
    await beside.stop()
    assert running.told[-1] == "ends at one"
