"""Calls that block, aside: nobody waits for one that is wanted no more."""

import subprocess
import sys

PROGRAM = """
import asyncio, threading
from grange.evaluator.aside import aside

async def main():
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def call():
        loop.call_soon_threadsafe(begun.set)
        threading.Event().wait()

    task = asyncio.create_task(aside(call))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    print("cancelled", task.cancelled())

asyncio.run(main())
"""


def test_a_call_without_end_holds_up_neither_its_loop_nor_its_process() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "cancelled True\n"
