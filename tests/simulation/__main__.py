"""A soak: ``python -m tests.simulation --seeds 1000 --from 0``; ``--show`` prints a run's trace."""

import argparse
import sys

from tests.simulation.run import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many to run")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--show", action="store_true", help="print every line of the trace")
    parser.add_argument("--hash", action="store_true", help="print each trace's hash")
    options = parser.parse_args()
    failed = 0
    for seed in range(options.first, options.first + options.seeds):
        verdict = simulate(seed, print if options.show else None)
        if options.hash:
            print(seed, verdict.trace)
        if verdict.problem:
            failed += 1
            print(verdict, flush=True)
    print(f"{options.seeds} seeds, {failed} failed", file=sys.stderr)
    return failed > 0


sys.exit(main())
