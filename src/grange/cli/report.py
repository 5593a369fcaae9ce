"""What a person reads when builds have ended: what was built where, and what failed and why."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grange.cli.app import EXIT_FAILED, EXIT_OUTSIDE, EXIT_REQUEST
from grange.cli.text import clean, count, duration, step_name
from grange.client.api import GrangeClient
from grange.client.models import BuildView, StepState, StepView
from grange.client.words import FARM, REQUEST, said_of
from grange.errors import GrangeError
from grange.scheduler.facts import Outcome, StepId, is_check

ROWS_MAX: Final = 60  # of built steps; of more only the longest are shown
LONGEST_SHOWN: Final = 20
FAILURES_MAX: Final = 5
BLOCKED_MAX: Final = 10
LOG_LINES: Final = 20
LOG_TAIL_BYTES: Final = 64 << 10

_SUCCESSES: Final = frozenset(each.value for each in Outcome if each.is_success)


def exit_code_of(builds: Iterable[BuildView]) -> int:
    """0 if all were built, else by whose fault it was."""
    faults = {
        said_of(build.cause.outcome if build.cause else build.outcome).fault
        for build in builds
        if build.outcome not in _SUCCESSES
    }
    if not faults:
        return 0
    if faults == {REQUEST}:
        return EXIT_REQUEST
    return EXIT_OUTSIDE if faults == {FARM} else EXIT_FAILED


def report(
    console: Console, client: GrangeClient, builds: Sequence[BuildView], steps: Sequence[StepView]
) -> None:
    """`steps` are those that these builds waited for."""
    built = [step for step in steps if step.state is StepState.DONE and step.attempt is not None]
    if built:
        console.print(_built_table(built))
        if len(built) > ROWS_MAX:
            console.print(f"… and {len(built) - LONGEST_SHOWN:,} quicker steps", style="dim")
        console.print(_by_agent(built))
    _report_failures(console, client, builds, steps)
    for build in builds:
        if build.outcome in _SUCCESSES:
            _report_success(console, build, has_built=bool(built))
        else:
            cause = build.cause.outcome if build.cause else build.outcome
            line = Text.assemble(("✗ ", "bold red"), f"{step_name(build.drv_path)}: {cause} ")
            line.append(f"(build {build.id})", "dim")
            console.print(line, soft_wrap=True)


def _report_success(console: Console, build: BuildView, *, has_built: bool) -> None:
    is_cached = build.outcome == Outcome.CACHED.value or not has_built
    said = ": everything was in the cache already" if is_cached else ""
    line = Text.assemble(("✓ ", "bold green"), (step_name(build.drv_path), "bold"), said)
    console.print(line, soft_wrap=True)
    for path in build.outputs.values():
        console.print(f"  {path}", soft_wrap=True)


def _built_table(built: Sequence[StepView]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("built", no_wrap=True, overflow="ellipsis")
    table.add_column("on", no_wrap=True, overflow="ellipsis")
    table.add_column("took", justify="right", no_wrap=True)
    if len(built) > ROWS_MAX:
        shown = sorted(built, key=lambda step: -(step.build_s or 0.0))[:LONGEST_SHOWN]
    else:
        shown = sorted(built, key=lambda step: (step.since or 0.0, step.id))
    for step in shown:
        table.add_row(step.name, step.agent_name or "", duration(step.build_s))
    return table


def _by_agent(built: Sequence[StepView]) -> Text:
    numbers: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    for step in built:
        numbers[step.agent_name or "?"] += 1
        seconds[step.agent_name or "?"] += step.build_s or 0.0
    parts = [
        f"{number:,} on {agent} ({duration(seconds[agent])} of building)"
        for agent, number in numbers.most_common()
    ]
    return Text(f"{count(len(built), 'step')} built: {', '.join(parts)}")


def _report_failures(
    console: Console, client: GrangeClient, builds: Sequence[BuildView], steps: Sequence[StepView]
) -> None:
    failed = [step for step in steps if step.state is StepState.FAILED]
    blocked = [step.name for step in failed if step.outcome == Outcome.DEPENDENCY_FAILED.value]
    # A failure from before is remembered, and then only the build itself says so.
    blocked += [step_name(build.drv_path) for build in builds if _is_blocked(build)]
    blocked = list(dict.fromkeys(blocked))
    own = [step for step in failed if step.outcome != Outcome.DEPENDENCY_FAILED.value]
    for step in own[:FAILURES_MAX]:
        _report_failure(console, client, step)
    if len(own) > FAILURES_MAX:
        more = count(len(own) - FAILURES_MAX, "more step")
        console.print(f"… and {more} failed: grange show {builds[0].id}", style="red")
    if blocked:
        names = blocked[:BLOCKED_MAX]
        if len(blocked) > BLOCKED_MAX:
            names.append(f"and {len(blocked) - BLOCKED_MAX:,} more")
        console.print(Text.assemble(("Not built because of it: ", "bold"), ", ".join(names)))
    if not own:
        causes = [each.cause for each in builds if each.cause and each.outcome not in _SUCCESSES]
        for message in dict.fromkeys(cause.message for cause in causes if cause.message):
            console.print(Text(clean(message), "red"), soft_wrap=True)
        for advice in dict.fromkeys(cause.advice for cause in causes if cause.advice):
            console.print(f"What to do: {advice}.", soft_wrap=True)


def _is_blocked(build: BuildView) -> bool:
    return build.outcome == Outcome.DEPENDENCY_FAILED.value


def _report_failure(console: Console, client: GrangeClient, step: StepView) -> None:
    said = said_of(step.outcome)
    words = step.words or said.happened
    if said.fault == FARM:
        words += " (not its own fault)"
    where = f" on {step.agent_name}" if step.agent_name else ""
    console.print()
    console.print(Text.assemble(("✗ ", "bold red"), (step.name, "bold"), f": {words}{where}"))
    console.print(Text(f"  {step.drv_path}", "dim"), soft_wrap=True)
    # What Nix says goes on with the end of the log, which comes below anyway.
    message = clean(step.message)
    is_difference = step.outcome == Outcome.NOT_DETERMINISTIC.value
    if step.attempt is not None and not is_difference:
        message = message.partition("\n")[0].rstrip(";")
    if message:
        console.print(Text(_indented(message)), soft_wrap=True)
    if advice := step.advice or said.advice:
        console.print(Text(f"  What to do: {advice}."), soft_wrap=True)
    if step.attempt is None:
        return
    try:
        lines = log_tail(client, step.attempt)
    except GrangeError as error:
        console.print(Text(f"  its log cannot be read: {error}", "yellow"), soft_wrap=True)
        return
    if lines:
        console.print(Text(f"  last {count(len(lines), 'line')} of its log:", "dim"))
        for line in lines:
            console.print(Text.assemble(("  │ ", "red"), clean(line)), soft_wrap=True)
    if not is_check(StepId(step.id)):
        console.print(Text(f"  whole log: grange log {step.id}", "dim"))
    console.print()


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def log_tail(client: GrangeClient, attempt: int) -> list[str]:
    """The last lines of an attempt's log, at most `LOG_LINES`."""
    tail = b""
    for chunk in client.log(attempt):
        tail = (tail + chunk)[-LOG_TAIL_BYTES:]
    return tail.decode(errors="replace").splitlines()[-LOG_LINES:]
