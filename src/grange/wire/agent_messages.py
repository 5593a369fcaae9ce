"""What agents say on the tunnel, as BuilderRequest messages."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from grange.errors import PeerError
from grange.scheduler.facts import (
    AgentId,
    AgentSpec,
    AttemptId,
    Measurements,
    Outcome,
    Phase,
    Thresholds,
)
from grange.wire.generated.runner.v1 import runner_pb2 as pb
from grange.wire.ids import agent_id
from grange.wire.messages import (
    EXTENSION_VERSION,
    AgentMessage,
    Built,
    Failed,
    Heartbeat,
    LogPart,
    Report,
)
from grange.wire.outputs import OUTPUTS_MAX, read_output, read_usage, write_output, write_usage
from grange.wire.read import (
    TEXT_CHARS_MAX,
    attempt,
    few,
    integer,
    names,
    parse,
    percent,
    real,
    store_path,
    text,
)

ATTEMPTS_MAX: Final = 10_000  # of one agent at a time; far above any max_jobs
SYSTEMS_MAX: Final = 100
FEATURES_MAX: Final = 1_000  # and tags
MISSING_MAX: Final = 10_000  # inputs that one attempt found nowhere
REPORT_ITEMS_MAX: Final = 100_000  # of each kind

_PHASES: Final = {phase.value: phase for phase in Phase if phase is not Phase.SENT}
_OUTCOMES: Final = {
    number: Outcome[name.removeprefix("OUTCOME_")]
    for name, number in pb.Outcome.items()
    if number != pb.OUTCOME_UNSPECIFIED
}
_OUTCOME_NUMBERS: Final = {outcome: number for number, outcome in _OUTCOMES.items()}


def agent_message_to_bytes(message: AgentMessage, stock: AgentId | None = None) -> bytes:
    """`message` for a Grange coordinator, or from the agent `stock` for a stock queue runner.

    The latter knows no Report, and is told in every heartbeat who speaks.
    """
    request = pb.BuilderRequest()
    match message:
        case AgentSpec():
            _write_spec(request.join, message)
        case Heartbeat():
            _write_heartbeat(request.ping, message)
            if stock is not None:
                request.ping.machine_id = stock
                request.ping.ClearField("attempts")
        case Report():
            assert stock is None, "a stock queue runner is told by calls of their own"
            _write_report(request.report, message)
    return request.SerializeToString()


def agent_message_from_bytes(data: bytes) -> AgentMessage:
    """Raises PeerError where `data` is no message, or one with a field out of bounds."""
    request = parse(pb.BuilderRequest, data)
    kind = request.WhichOneof("message")
    if kind == "ping":
        return _read_heartbeat(request.ping)
    if kind == "report":
        return _read_report(request.report)
    if kind == "join":
        return _read_spec(request.join)
    raise PeerError(f"message: a tunnel message of no kind known here: {data[:40]!r}")


def as_text(value: str) -> str:
    """`value` fit to be sent: no lone surrogates, no NUL, its end kept where it is too long."""
    return value.encode("utf-8", "replace").decode().replace("\0", "?")[-TEXT_CHARS_MAX:]


def _write_phases(
    messages: RepeatedCompositeFieldContainer[pb.AttemptPhase],
    phases: Iterable[tuple[AttemptId, Phase]],
) -> None:
    for number, phase in phases:
        messages.add(attempt=number, phase=pb.Phase.ValueType(phase))


def _read_phases(
    field: str, messages: Iterable[pb.AttemptPhase]
) -> tuple[tuple[AttemptId, Phase], ...]:
    try:
        return tuple([(attempt(field, item.attempt), _PHASES[item.phase]) for item in messages])
    except KeyError as unknown:
        raise PeerError(f"{field}: phase {unknown} is not known here") from None


def _write_spec(message: pb.JoinMessage, spec: AgentSpec) -> None:
    message.machine_id = spec.id
    message.hostname = spec.name
    message.systems.extend(spec.systems)
    message.supported_features.extend(spec.features)
    message.mandatory_features.extend(spec.mandatory_features)
    message.max_jobs = spec.max_jobs
    message.cpu_count = spec.cpus
    message.total_mem = spec.memory_bytes
    message.speed_factor = spec.speed_factor
    message.bogomips = spec.bogomips
    message.nix_version = spec.nix_version
    message.store_avail_threshold = spec.thresholds.store_free_percent
    message.build_dir_avail_threshold = spec.thresholds.build_dir_free_percent
    message.load1_threshold = spec.thresholds.load1_per_cpu * spec.cpus
    message.cpu_psi_threshold = spec.thresholds.cpu_pressure_percent
    message.mem_psi_threshold = spec.thresholds.memory_pressure_percent
    if spec.thresholds.io_pressure_percent is not None:
        message.io_psi_threshold = spec.thresholds.io_pressure_percent
    if spec.is_grange:
        message.session = spec.session
        message.previous_session = spec.previous_session
        message.extension_version = EXTENSION_VERSION
        message.tags.extend(spec.tags)
        message.mandatory_tags.extend(spec.mandatory_tags)


def _read_spec(message: pb.JoinMessage) -> AgentSpec:
    cpus = integer("join.cpu_count", message.cpu_count, 1, 1 << 16)
    spec = AgentSpec(
        id=agent_id(message.machine_id),
        name=text("join.hostname", message.hostname, 1),
        session=message.machine_id,  # a stock builder draws a new one with every start
        previous_session="",
        systems=names("join.systems", message.systems, SYSTEMS_MAX),
        features=names("join.supported_features", message.supported_features, FEATURES_MAX),
        mandatory_features=names(
            "join.mandatory_features", message.mandatory_features, FEATURES_MAX
        ),
        max_jobs=integer("join.max_jobs", message.max_jobs, 1, ATTEMPTS_MAX),
        cpus=cpus,
        memory_bytes=integer("join.total_mem", message.total_mem),
        speed_factor=real("join.speed_factor", message.speed_factor, 1e6),
        nix_version=text("join.nix_version", message.nix_version),
        thresholds=_read_thresholds(message, cpus),
        bogomips=real("join.bogomips", message.bogomips),
        is_grange=False,
    )
    if not spec.systems:
        raise PeerError(f"join.systems: agent {spec.name!r} offers none")
    if not message.extension_version:
        return spec
    return replace(
        spec,
        session=text("join.session", message.session, 1),
        previous_session=text("join.previous_session", message.previous_session),
        tags=names("join.tags", message.tags, FEATURES_MAX),
        mandatory_tags=names("join.mandatory_tags", message.mandatory_tags, FEATURES_MAX),
        is_grange=True,
    )


def _read_thresholds(message: pb.JoinMessage, cpus: int) -> Thresholds:
    return Thresholds(
        store_free_percent=percent("join.store_avail_threshold", message.store_avail_threshold),
        build_dir_free_percent=percent(
            "join.build_dir_avail_threshold", message.build_dir_avail_threshold
        ),
        load1_per_cpu=real("join.load1_threshold", message.load1_threshold) / cpus,
        cpu_pressure_percent=percent("join.cpu_psi_threshold", message.cpu_psi_threshold),
        memory_pressure_percent=percent("join.mem_psi_threshold", message.mem_psi_threshold),
        io_pressure_percent=percent("join.io_psi_threshold", message.io_psi_threshold)
        if message.HasField("io_psi_threshold")
        else None,
    )


def _write_heartbeat(message: pb.PingMessage, heartbeat: Heartbeat) -> None:
    now = heartbeat.measurements
    message.orders_seen = heartbeat.orders_seen
    message.is_draining = heartbeat.is_draining
    message.load1 = now.load1
    message.load5 = now.load5
    message.load15 = now.load15
    message.mem_usage = now.memory_used_bytes
    message.store_free_percent = now.store_free_percent
    message.build_dir_free_percent = now.build_dir_free_percent
    message.undelivered_bytes = now.undelivered_bytes
    message.refuses = as_text(now.refuses)
    if now.cpu_pressure is not None:
        message.pressure.cpu_some.avg10 = now.cpu_pressure
    if now.memory_pressure is not None:
        message.pressure.mem_full.avg10 = now.memory_pressure
    if now.io_pressure is not None:
        message.pressure.io_full.avg10 = now.io_pressure
    progress = dict(heartbeat.progress)
    for number, phase in heartbeat.attempts:
        message.attempts.add(
            attempt=number,
            phase=pb.Phase.ValueType(phase),
            progress=progress.get(number, 0),
        )
    message.SetInParent()


def _read_heartbeat(message: pb.PingMessage) -> Heartbeat:
    few("ping.attempts", message.attempts, ATTEMPTS_MAX)
    pressure = message.pressure
    return Heartbeat(
        orders_seen=integer("ping.orders_seen", message.orders_seen),
        attempts=_read_phases("ping.attempts", message.attempts),
        measurements=Measurements(
            load1=real("ping.load1", message.load1),
            load5=real("ping.load5", message.load5),
            load15=real("ping.load15", message.load15),
            memory_used_bytes=integer("ping.mem_usage", message.mem_usage),
            store_free_percent=percent("ping.store_free_percent", message.store_free_percent),
            build_dir_free_percent=percent(
                "ping.build_dir_free_percent", message.build_dir_free_percent
            ),
            cpu_pressure=percent("ping.pressure.cpu_some", pressure.cpu_some.avg10)
            if pressure.HasField("cpu_some")
            else None,
            memory_pressure=percent("ping.pressure.mem_full", pressure.mem_full.avg10)
            if pressure.HasField("mem_full")
            else None,
            io_pressure=percent("ping.pressure.io_full", pressure.io_full.avg10)
            if pressure.HasField("io_full")
            else None,
            undelivered_bytes=integer("ping.undelivered_bytes", message.undelivered_bytes),
            refuses=text("ping.refuses", message.refuses, 0, TEXT_CHARS_MAX),
        ),
        is_draining=message.is_draining,
        progress=tuple(
            [
                (AttemptId(item.attempt), integer("ping.progress", item.progress))
                for item in message.attempts
                if item.progress
            ]
        ),
    )


def _write_report(message: pb.Report, report: Report) -> None:
    for log in report.logs:
        message.logs.add(attempt=log.attempt, offset=log.offset, data=log.data)
    _write_phases(message.phases, report.phases)
    for built in report.built:
        made = message.built.add(attempt=built.attempt)
        for output in built.outputs:
            write_output(made.outputs.add(), output)
        write_usage(made.usage, built.usage)
    for failed in report.failed:
        ended = message.failed.add(
            attempt=failed.attempt,
            outcome=_OUTCOME_NUMBERS[failed.outcome],
            message=as_text(failed.message),
        )
        ended.missing.extend(failed.missing)
        write_usage(ended.usage, failed.usage)
    message.is_leaving = report.is_leaving
    message.SetInParent()


def _read_report(message: pb.Report) -> Report:
    for field in ("logs", "phases", "built", "failed"):
        few(f"report.{field}", getattr(message, field), REPORT_ITEMS_MAX)
    return Report(
        logs=tuple(
            [
                LogPart(
                    attempt("log.attempt", log.attempt),
                    integer("log.offset", log.offset),
                    log.data,
                )
                for log in message.logs
            ]
        ),
        phases=_read_phases("report.phases", message.phases),
        built=tuple(map(_read_built, message.built)),
        failed=tuple(map(_read_failed, message.failed)),
        is_leaving=message.is_leaving,
    )


def _read_built(message: pb.Built) -> Built:
    few("built.outputs", message.outputs, OUTPUTS_MAX)
    return Built(
        attempt=attempt("built.attempt", message.attempt),
        outputs=tuple(map(read_output, message.outputs)),
        usage=read_usage(message.usage),
    )


def _read_failed(message: pb.Failed) -> Failed:
    few("failed.missing", message.missing, MISSING_MAX)
    outcome = _OUTCOMES.get(message.outcome)
    if outcome is None:
        raise PeerError(f"failed.outcome: {message.outcome} is not known here")
    return Failed(
        attempt=attempt("failed.attempt", message.attempt),
        outcome=outcome,
        message=text("failed.message", message.message, 0, TEXT_CHARS_MAX),
        usage=read_usage(message.usage),
        missing=tuple([store_path("failed.missing", path) for path in message.missing]),
    )
