"""Ports for servers that tests stop and start again."""

import socket
from pathlib import Path
from random import SystemRandom
from typing import Final

PORTS: Final = 10_000  # so many below the kernel's own
_given: Final = set[int]()


def free_port() -> int:
    """One that nobody has now, and that the kernel gives to nobody who does not name it.

    While a server is down its clients try again and again, each time from a port that the kernel
    chooses. Sooner or later that would be the server's own: the client would then be connected to
    itself, and the server could not come back.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = SystemRandom().randrange(max(1024, lowest - PORTS), lowest)
        with socket.socket() as held:
            try:
                held.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:  # to a server that is yet to start
            _given.add(port)
            return port
