"""Becomes a command, under limits that only a process itself can set. A script of its own:

    python -I -S launch.py MEMORY_BYTES PARENT_PID COMMAND…

Setting them between fork and exec instead would run Python in a child of a process with threads.
"""

import ctypes
import os
import resource
import signal
import sys
from typing import Final

MISSING: Final = 127  # as a shell says it: there is no such command
_PR_SET_PDEATHSIG: Final = 1  # sys/prctl.h


def main() -> None:
    memory_bytes, parent, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("whoever wanted this has gone")
    if memory_bytes:
        # Linux counts with data all that a process may write and shares with nobody, which is how
        # Nix's collector gets memory, and it answers a want of it with an error. A limit of address
        # space would count libraries too, and end Nix's stack, which it takes for a recursion.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        sys.stderr.write(f"error: there is no {command[0]} on this machine\n")
        sys.exit(MISSING)


if __name__ == "__main__":
    main()
