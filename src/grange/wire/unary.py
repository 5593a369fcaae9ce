"""Hydra's calls of their own, which serve stock builders and queue runners."""

from collections.abc import Sequence
from typing import Final

from grange.errors import PeerError
from grange.scheduler.facts import AgentId, AttemptId, Outcome, Phase, Usage
from grange.store.path import StorePath
from grange.wire.basic import write_hash
from grange.wire.generated.nix.store.v1 import store_pb2
from grange.wire.generated.runner.v1 import runner_pb2 as pb
from grange.wire.ids import agent_id, attempt_from_uuid, attempt_to_uuid
from grange.wire.messages import (
    Built,
    BuiltOutput,
    Failed,
    NixSupport,
    VersionCheck,
)
from grange.wire.outputs import (
    OUTPUTS_MAX,
    read_nix_support,
    write_nix_support,
)
from grange.wire.read import (
    TEXT_CHARS_MAX,
    URL_CHARS_MAX,
    few,
    integer,
    nix_hash,
    parse,
    store_path,
    store_paths,
    text,
)

PATHS_MAX: Final = 200_000  # a question for the closure of an image or a channel of everything
CHUNK_BYTES_MAX: Final = 4 << 20  # of a log; Hydra's builder sends far smaller ones

_PHASE_OF_STATUS: Final = {
    pb.Preparing: Phase.QUEUED,
    pb.Connecting: Phase.QUEUED,
    pb.SeningInputs: Phase.FETCHING,
    pb.Building: Phase.BUILDING,
    pb.WaitingForLocalSlot: Phase.QUEUED,
    pb.ReceivingOutputs: Phase.UPLOADING,
    pb.PostProcessing: Phase.UPLOADING,
}
_STATUS_OF_PHASE: Final = {
    Phase.SENT: pb.Preparing,
    Phase.QUEUED: pb.WaitingForLocalSlot,
    Phase.FETCHING: pb.SeningInputs,
    Phase.BUILDING: pb.Building,
    Phase.BUILT: pb.ReceivingOutputs,
    Phase.UPLOADING: pb.ReceivingOutputs,
    Phase.STORED: pb.PostProcessing,
}
_OUTCOME_OF_STATE: Final = {
    pb.BuildFailure: Outcome.BUILD_FAILED,
    pb.PreparingFailure: Outcome.AGENT_FAILED,
    pb.ImportFailure: Outcome.FETCH_FAILED,
    pb.UploadFailure: Outcome.UPLOAD_FAILED,
    pb.PostProcessingFailure: Outcome.AGENT_FAILED,
    pb.TimedOutFailure: Outcome.TIMED_OUT,
    pb.LogLimitFailure: Outcome.LOG_LIMIT,
    pb.NarSizeLimitFailure: Outcome.OUTPUT_TOO_LARGE,
}
# Of what a queue runner would try again, the failure that it does try again.
_STATE_OF_OUTCOME: Final = {
    Outcome.SILENT_TOO_LONG: pb.TimedOutFailure,
    Outcome.TIMED_OUT: pb.TimedOutFailure,
    Outcome.LOG_LIMIT: pb.LogLimitFailure,
    Outcome.OUTPUT_TOO_LARGE: pb.NarSizeLimitFailure,
    Outcome.INPUTS_MISSING: pb.ImportFailure,
    Outcome.FETCH_FAILED: pb.ImportFailure,
    Outcome.UPLOAD_FAILED: pb.UploadFailure,
    Outcome.AGENT_FAILED: pb.PreparingFailure,
    Outcome.CANCELLED: pb.PreparingFailure,
    Outcome.RETURNED: pb.PreparingFailure,
}


def version_check_to_bytes(check: VersionCheck) -> bytes:
    return pb.VersionCheckRequest(
        version=check.version,
        machine_id=check.machine_id,
        hostname=check.hostname,
        store_dir=check.store_dir,
    ).SerializeToString()


def version_check_from_bytes(data: bytes) -> VersionCheck:
    message = parse(pb.VersionCheckRequest, data)
    return VersionCheck(
        version=text("version", message.version),
        machine_id=text("machine_id", message.machine_id),
        hostname=text("hostname", message.hostname),
        store_dir=text("store_dir", message.store_dir, 0, URL_CHARS_MAX),
    )


def step_update_to_bytes(agent: AgentId, attempt: AttemptId, phase: Phase) -> bytes:
    return pb.StepUpdate(
        build_id=attempt_to_uuid(attempt), machine_id=agent, step_status=_STATUS_OF_PHASE[phase]
    ).SerializeToString()


def step_update_from_bytes(data: bytes) -> tuple[AgentId, AttemptId, Phase]:
    message = parse(pb.StepUpdate, data)
    phase = _PHASE_OF_STATUS.get(message.step_status)
    if phase is None:
        raise PeerError(f"step_status: {message.step_status} is not known here")
    return agent_id(message.machine_id), attempt_from_uuid(message.build_id), phase


def result_to_bytes(agent: AgentId, result: Built | Failed) -> bytes:
    """`result` as Hydra knows it: without references, and of its cost the durations alone."""
    message = pb.BuildResultInfo(
        build_id=attempt_to_uuid(result.attempt),
        machine_id=agent,
        import_time_ms=round((result.usage.fetch_s or 0) * 1000),
        build_time_ms=round((result.usage.build_s or 0) * 1000),
        upload_time_ms=round((result.usage.upload_s or 0) * 1000),
    )
    match result:
        case Built():
            message.result_state = pb.Success
            for output in result.outputs:
                info = message.outputInfos[output.name]
                info.path.path = output.path
                info.nar_size = output.nar_bytes
                write_hash(info.nar_hash, output.nar_hash)
                write_nix_support(info.nixSupport, output.nix_support)
        case Failed():
            message.result_state = _STATE_OF_OUTCOME.get(result.outcome, pb.BuildFailure)
            message.error_msg = result.message
    return message.SerializeToString()


def result_from_bytes(data: bytes) -> tuple[AgentId, Built | Failed]:
    """Built outputs are without references: those come with each UploadComplete."""
    message = parse(pb.BuildResultInfo, data)
    attempt = attempt_from_uuid(message.build_id)
    usage = Usage(
        fetch_s=integer("import_time_ms", message.import_time_ms) / 1000,
        build_s=integer("build_time_ms", message.build_time_ms) / 1000,
        upload_s=integer("upload_time_ms", message.upload_time_ms) / 1000,
    )
    result: Built | Failed
    if message.result_state == pb.Success:
        result = Built(attempt, _read_output_infos(message), usage)
    else:
        outcome = _OUTCOME_OF_STATE.get(message.result_state)
        if outcome is None:
            raise PeerError(f"result_state: {message.result_state} is not known here")
        # The end of a log may be long; what a person needs of it is the end.
        said = message.error_msg.replace("\0", "?")[-TEXT_CHARS_MAX:]
        result = Failed(attempt, outcome, said, usage)
    return agent_id(message.machine_id), result


def _read_output_infos(message: pb.BuildResultInfo) -> tuple[BuiltOutput, ...]:
    few("outputInfos", message.outputInfos, OUTPUTS_MAX)
    if not message.outputInfos:
        raise PeerError(f"outputInfos: {message.build_id!r} succeeded without outputs")
    return tuple(
        BuiltOutput(
            name=text("outputInfos.name", name, 1),
            path=store_path("outputInfos.path", info.path.path),
            nar_hash=nix_hash("outputInfos.nar_hash", info.nar_hash),
            nar_bytes=integer("outputInfos.nar_size", info.nar_size, 1),
            references=(),
            nix_support=read_nix_support(info.nixSupport)
            if info.HasField("nixSupport")
            else NixSupport(),
        )
        for name, info in sorted(message.outputInfos.items())
    )


def paths_to_bytes(paths: Sequence[StorePath]) -> bytes:
    return store_pb2.StorePaths(
        paths=[store_pb2.StorePath(path=path) for path in paths]
    ).SerializeToString()


def paths_from_bytes(data: bytes) -> tuple[StorePath, ...]:
    message = parse(store_pb2.StorePaths, data)
    few("paths", message.paths, PATHS_MAX)
    return store_paths("paths", [path.path for path in message.paths])


def requisites_to_bytes(paths: Sequence[StorePath]) -> bytes:
    return pb.RequisitesResponse(
        requisites=[store_pb2.StorePath(path=path) for path in paths]
    ).SerializeToString()


def requisites_from_bytes(data: bytes) -> tuple[StorePath, ...]:
    message = parse(pb.RequisitesResponse, data)
    return store_paths("requisites", [path.path for path in message.requisites])


def log_chunk_to_bytes(drv_path: StorePath | None, data: bytes) -> bytes:
    chunk = pb.LogChunk(data=data)
    if drv_path is not None:
        chunk.drv.path = drv_path
    return chunk.SerializeToString()


def log_chunk_from_bytes(data: bytes) -> tuple[StorePath | None, bytes]:
    """The derivation, which only a log's first chunk must name, and a piece of its zstd stream."""
    message = parse(pb.LogChunk, data)
    integer("data", len(message.data), 0, CHUNK_BYTES_MAX)
    drv_path = store_path("drv", message.drv.path) if message.HasField("drv") else None
    return drv_path, message.data
