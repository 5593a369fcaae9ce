"""``python -m tests.crash [--database sqlite|postgres] [--runs N] [--seed S] [--derivations N]``.

Kills and freezes a farm's processes while it builds; prints what was done and what came of it.
"""

import shutil
import sys
from pathlib import Path
from tempfile import mkdtemp

import click

from tests.crash.farm import Database
from tests.crash.run import run


@click.command(help=__doc__)
@click.option("--database", type=click.Choice(["sqlite", "postgres"]), default="sqlite")
@click.option("--runs", default=1, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=1, show_default=True, help="Of the first run; then counts up.")
@click.option("--derivations", default=300, show_default=True, type=click.IntRange(10, 5000))
@click.option("--keep", is_flag=True, help="Leave the folders of runs with problems.")
def main(database: Database, runs: int, seed: int, derivations: int, *, keep: bool) -> None:
    failed = 0
    for number in range(seed, seed + runs):
        root = Path(mkdtemp(prefix="grange-crash-"))
        try:
            verdict = run(root / "run", database, number, derivations)
            print(verdict, flush=True)
            failed += bool(verdict.problems)
        finally:
            if keep:
                print(f"its folder: {root}", flush=True)
            else:
                shutil.rmtree(root, ignore_errors=True)
    print(f"{runs} runs, {failed} with problems", file=sys.stderr)
    sys.exit(failed > 0)


main()
