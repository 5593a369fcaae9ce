"""A benchmark's figures: a table for people, and a line of JSON for machines."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Series:
    """One figure, measured in every run."""

    label: str
    unit: str
    runs: Sequence[float]

    @property
    def median(self) -> float:
        return median(self.runs)


@dataclass(frozen=True, slots=True)
class Result:
    bench: str
    aim: str  # such as "ratio <= 1.0"; of the figure `ours` where it names none
    ours: Series
    rival: Series | None = None
    others: Sequence[Series] = ()
    also: Mapping[str, float] = field(default_factory=dict)  # further members of the JSON line
    notes: Sequence[str] = ()


def print_result(result: Result, command: str) -> None:
    """The table, what was measured on what, and last the line of JSON."""
    console = Console(width=110)
    table = Table(title=f"{result.bench}  (aim: {result.aim})", title_justify="left")
    for heading in ("figure", "unit"):
        table.add_column(heading)
    for heading in ("median", "min", "max", "runs"):
        table.add_column(heading, justify="right")
    for series in _all(result):
        figures = (series.median, min(series.runs), max(series.runs))
        table.add_row(series.label, series.unit, *map(_short, figures), str(len(series.runs)))
    console.print(table)
    if result.rival is not None:
        console.print(f"ratio of medians: {_ratio(result):.2f}")
    for note in result.notes:
        console.print(f"- {note}")
    console.print(f"machine: {machine()}")
    console.print(f"command: {command}", soft_wrap=True)
    print(json.dumps(_as_json(result)), flush=True)


def machine() -> str:
    """CPU model, cores and kernel of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}"


def _all(result: Result) -> list[Series]:
    return [result.ours, *([result.rival] if result.rival else []), *result.others]


def _ratio(result: Result) -> float:
    assert result.rival is not None
    return result.ours.median / result.rival.median


def _as_json(result: Result) -> dict[str, object]:
    line: dict[str, object] = {
        "bench": result.bench,
        "value": _rounded(result.ours.median),
        "unit": result.ours.unit,
        "aim": result.aim,
        "runs": [_rounded(figure) for figure in result.ours.runs],
    }
    if result.rival is not None:
        line["rival"] = _rounded(result.rival.median)
        line["rival_runs"] = [_rounded(figure) for figure in result.rival.runs]
        line["ratio"] = round(_ratio(result), 3)
    line |= {name: _rounded(figure) for name, figure in result.also.items()}
    line["others"] = {
        series.label: {"unit": series.unit, "runs": [_rounded(figure) for figure in series.runs]}
        for series in result.others
    }
    line["machine"] = machine()
    return line


def _rounded(figure: float) -> float:
    return float(f"{figure:.4g}") if abs(figure) < 1e4 else round(figure)


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"
