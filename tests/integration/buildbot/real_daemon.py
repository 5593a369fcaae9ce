"""The autoscaler itself, over a cloud and a balancer that do as they are told, as a process: a
Unix socket `s` in the folder it is given, and TCP for tokens in `tokens` there, whose URL it prints
once it listens. It ends when its standard input does."""

import asyncio
import sys
from pathlib import Path

from grange.web.capacity_app import by_socket, make_capacity_app, read_tokens
from tests.capacity_web import capacity_place, serving, tcp_socket, unix_socket


async def serve(folder: Path) -> None:
    listening, url = tcp_socket()
    async with capacity_place(folder / "state") as place:
        near = make_capacity_app(place.autoscaler, by_socket, place.registry)
        far = make_capacity_app(place.autoscaler, read_tokens(folder / "tokens"), place.registry)
        async with serving(near, unix_socket(folder / "s")), serving(far, listening):
            print(url, flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
