"""Every fact survives the wire; a peer's junk becomes a PeerError that names its field."""

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.scheduler.facts import (
    AgentId,
    AgentSpec,
    AttemptId,
    Limits,
    Measurements,
    Outcome,
    Phase,
    Thresholds,
    Usage,
)
from grange.store.basic import BasicDerivation, BasicOutput
from grange.store.hash import DIGEST_BYTES, Hash, base32_encode
from grange.store.outputs import fixed_output_path
from grange.store.path import NIX_STORE, StoreDir, StorePath
from grange.wire.agent_messages import agent_message_from_bytes, agent_message_to_bytes, as_text
from grange.wire.basic import basic_from_bytes, basic_to_bytes
from grange.wire.coordinator_messages import (
    coordinator_message_from_bytes,
    coordinator_message_to_bytes,
    hydra_messages,
)
from grange.wire.generated.nix.store.derivation.v1 import derivation_pb2
from grange.wire.generated.nix.store.v1 import store_pb2
from grange.wire.generated.runner.v1 import runner_pb2 as pb
from grange.wire.ids import ATTEMPT_MAX, attempt_from_uuid, attempt_to_uuid, order_from_uuid
from grange.wire.messages import (
    BuildOrder,
    Built,
    BuiltOutput,
    Failed,
    Heartbeat,
    JoinAnswer,
    LogPart,
    Metric,
    NixSupport,
    Orders,
    Ping,
    PresignedRequest,
    Product,
    Report,
    SerializedBuildOrder,
    UploadComplete,
    UploadGrant,
    VersionCheck,
    WantedUpload,
)
from grange.wire.presigned import (
    presigned_request_from_bytes,
    presigned_request_to_bytes,
    upload_complete_from_bytes,
    upload_complete_to_bytes,
)
from grange.wire.unary import (
    log_chunk_from_bytes,
    log_chunk_to_bytes,
    paths_from_bytes,
    paths_to_bytes,
    requisites_from_bytes,
    requisites_to_bytes,
    result_from_bytes,
    result_to_bytes,
    step_update_from_bytes,
    step_update_to_bytes,
    version_check_from_bytes,
    version_check_to_bytes,
)

GNU_STORE = StoreDir("/gnu/store")
AGENT = AgentId("6f1d1c1e-9d1f-4f6e-8f5a-0123456789ab")

# Regular expressions are dear to draw from.
paths = st.builds(
    lambda digest, name: StorePath.parse_base(f"{base32_encode(digest)}-{name}"),
    st.binary(min_size=20, max_size=20),
    st.text("abyz019.+_?=-", min_size=1, max_size=20).map("p{}".format),
)
path_tuples = st.lists(paths, max_size=4).map(tuple)
attempts = st.integers(1, ATTEMPT_MAX).map(AttemptId)
agents = st.uuids().map(lambda uuid: AgentId(str(uuid)))
integers = st.integers(0, (1 << 63) - 1)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
some_names = names.filter(bool)
name_tuples = st.lists(some_names, max_size=3).map(tuple)
reals = st.floats(0, 1e9)
float32s = st.floats(0, 1e9, width=32)
percents = st.floats(0, 100, width=32)
sha256s = st.binary(min_size=32, max_size=32).map(lambda digest: Hash("sha256", digest))
hashes = st.sampled_from(sorted(DIGEST_BYTES)).flatmap(
    lambda algorithm: st.binary(
        min_size=DIGEST_BYTES[algorithm], max_size=DIGEST_BYTES[algorithm]
    ).map(lambda digest: Hash(algorithm, digest))
)
phases = st.sampled_from([phase for phase in Phase if phase is not Phase.SENT])
attempt_phases = st.lists(st.tuples(attempts, phases), max_size=4).map(tuple)
raw_texts = st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))

specs = st.builds(
    AgentSpec,
    id=agents,
    name=some_names,
    session=some_names,
    previous_session=names,
    systems=name_tuples.filter(bool),
    features=name_tuples,
    mandatory_features=name_tuples,
    max_jobs=st.integers(1, 1000),
    cpus=st.sampled_from([1, 2, 64]),  # powers of two keep the load's threshold exact
    memory_bytes=integers,
    speed_factor=st.floats(0, 1e6, width=32),
    tags=name_tuples,
    mandatory_tags=name_tuples,
    nix_version=names,
    thresholds=st.builds(
        Thresholds,
        store_free_percent=percents,
        build_dir_free_percent=percents,
        load1_per_cpu=st.sampled_from([0.0, 0.5, 4.0]),
        cpu_pressure_percent=percents,
        memory_pressure_percent=percents,
        io_pressure_percent=st.none() | percents,
    ),
    bogomips=float32s,
    is_grange=st.just(True),
)
heartbeats = st.builds(
    Heartbeat,
    orders_seen=integers,
    attempts=attempt_phases,
    measurements=st.builds(
        Measurements,
        load1=float32s,
        load5=float32s,
        load15=float32s,
        memory_used_bytes=integers,
        store_free_percent=st.floats(0, 100),
        build_dir_free_percent=st.floats(0, 100),
        cpu_pressure=st.none() | percents,
        memory_pressure=st.none() | percents,
        io_pressure=st.none() | percents,
        undelivered_bytes=integers,
        refuses=names,
    ),
    is_draining=st.booleans(),
)
optional_reals = st.none() | reals
optional_integers = st.none() | integers
usages = st.builds(
    Usage,
    optional_reals,
    optional_reals,
    optional_reals,
    optional_reals,
    optional_reals,
    optional_integers,
    optional_integers,
    optional_integers,
)
products = st.builds(
    Product,
    output=paths,
    sub_path=names,
    type=some_names,
    subtype=names,
    name=names,
    default_path=names,
    is_regular=st.booleans(),
    sha256=st.none() | sha256s.map(Hash.base16),
    file_bytes=optional_integers,
)
metrics = st.builds(Metric, st.floats(-1e300, 1e300), st.none() | names)
supports = st.builds(
    NixSupport,
    is_failed=st.booleans(),
    release_name=st.none() | names,
    products=st.lists(products, max_size=2).map(tuple),
    metrics=st.dictionaries(some_names, metrics, max_size=2),
)
outputs = st.builds(
    BuiltOutput, some_names, paths, sha256s, integers.filter(bool), path_tuples, supports
)
builts = st.builds(Built, attempts, st.lists(outputs, min_size=1, max_size=2).map(tuple), usages)
_OF_THE_FARM = (Outcome.DEPENDENCY_FAILED, Outcome.AGENT_LOST, Outcome.UNSUPPORTED)
TELLABLE = [
    outcome for outcome in Outcome if not outcome.is_success and outcome not in _OF_THE_FARM
]
faileds = st.builds(Failed, attempts, st.sampled_from(TELLABLE), names, usages)
reports = st.builds(
    Report,
    logs=st.lists(st.builds(LogPart, attempts, integers, st.binary(max_size=9)), max_size=2).map(
        tuple
    ),
    phases=attempt_phases,
    built=st.lists(builts, max_size=2).map(tuple),
    failed=st.lists(faileds, max_size=2).map(tuple),
    is_leaving=st.booleans(),
)


@st.composite
def basics(draw: st.DrawFn, store_dir: StoreDir = NIX_STORE) -> BasicDerivation:
    name = draw(st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True))
    if draw(st.booleans()):
        hash_, recursive = draw(hashes), draw(st.booleans())
        path = fixed_output_path(name, hash_, store_dir, recursive=recursive)
        algorithm = "r:" * recursive + hash_.algorithm
        made = {"out": BasicOutput(path, algorithm, hash_.base16())}
    else:
        keys = draw(st.sets(st.sampled_from(["out", "dev", "lib"]), min_size=1))
        made = {}
        for key in keys:
            suffix = "" if key == "out" else f"-{key}"
            base = f"{draw(paths).hash_part}-{name}{suffix}"
            made[key] = BasicOutput(StorePath.parse_base(base))
    return BasicDerivation(
        outputs=made,
        input_srcs=draw(path_tuples),
        system=draw(some_names),
        builder=draw(raw_texts),
        args=tuple(draw(st.lists(raw_texts, max_size=3))),
        env=draw(st.dictionaries(names | st.just("__json"), raw_texts, max_size=4)),
    )


seconds = st.integers(0, (1 << 31) - 1)
limits = st.builds(Limits, seconds, seconds, integers, integers)
orders = st.builds(
    Orders,
    number=integers,
    builds=st.lists(st.builds(BuildOrder, attempts, paths, basics(), limits), max_size=2).map(
        tuple
    ),
    aborts=st.lists(attempts, max_size=3).map(tuple),
    grants=st.lists(
        st.builds(
            UploadGrant,
            attempts,
            paths,
            some_names,
            names,
            st.integers(-100, 100),
            st.booleans(),
            st.booleans(),
        ),
        max_size=2,
    ).map(tuple),
    settled=st.lists(st.tuples(attempts, st.booleans()), max_size=2).map(tuple),
)
answers = st.builds(
    JoinAnswer, agents, names, name_tuples, reals, reals, st.integers(1, 1000), st.just(True)
)


@given(specs | heartbeats | reports)
def test_agent_messages_survive(message: AgentSpec | Heartbeat | Report) -> None:
    assert agent_message_from_bytes(agent_message_to_bytes(message)) == message


@given(answers | orders | st.just(Ping()))
def test_coordinator_messages_survive(message: JoinAnswer | Orders | Ping) -> None:
    data = coordinator_message_to_bytes(message)
    assert coordinator_message_from_bytes(data, NIX_STORE, None) == message


@given(basics(GNU_STORE))
def test_derivations_survive_in_the_same_bytes(derivation: BasicDerivation) -> None:
    data = basic_to_bytes(derivation)
    assert basic_from_bytes(data, GNU_STORE) == derivation
    backwards = replace(derivation, env=dict(reversed(list(derivation.env.items()))))
    assert basic_to_bytes(backwards) == data


@given(attempts, paths, basics(), limits)
def test_a_serialized_order_goes_out_as_the_same_bytes(
    attempt: AttemptId, drv_path: StorePath, derivation: BasicDerivation, limit: Limits
) -> None:
    order = BuildOrder(attempt, drv_path, derivation, limit)
    serialized = SerializedBuildOrder(attempt, drv_path, basic_to_bytes(derivation), limit)
    assert coordinator_message_to_bytes(Orders(1, (order,))) == coordinator_message_to_bytes(
        Orders(1, (serialized,))
    )


@given(specs)
def test_a_stock_builder_has_no_extension(spec: AgentSpec) -> None:
    read = agent_message_from_bytes(agent_message_to_bytes(replace(spec, is_grange=False)))
    bare = replace(spec, is_grange=False, session=spec.id, tags=(), mandatory_tags=())
    assert read == replace(bare, previous_session="")


@given(heartbeats)
def test_a_heartbeat_to_a_stock_queue_runner_says_who_speaks(heartbeat: Heartbeat) -> None:
    ping = pb.BuilderRequest.FromString(agent_message_to_bytes(heartbeat, AGENT)).ping
    assert ping.machine_id == AGENT
    assert not ping.attempts


@given(orders)
def test_a_stock_builders_orders_are_read_by_an_agent(message: Orders) -> None:
    data = list(hydra_messages(message, is_first=False))
    read = [coordinator_message_from_bytes(part, NIX_STORE, None) for part in data]
    assert read == [
        *(Orders(0, builds=(build,)) for build in message.builds),
        *(Orders(0, aborts=(attempt,)) for attempt in message.aborts),
    ]


@given(answers)
def test_a_stock_queue_runners_answer_and_its_update(answer: JoinAnswer) -> None:
    (first,) = hydra_messages(answer, is_first=True)
    joined = coordinator_message_from_bytes(first, NIX_STORE, None)
    assert joined == JoinAnswer(answer.agent, "", (), 0.0, 0.0, answer.downloads_max, False)
    (update,) = hydra_messages(replace(answer, downloads_max=3), is_first=False)
    updated = coordinator_message_from_bytes(update, NIX_STORE, answer)
    assert updated == replace(answer, downloads_max=3)


def test_a_measurement_nobody_made_takes_no_room() -> None:
    silent = pb.BuilderRequest.FromString(
        agent_message_to_bytes(Heartbeat(0, (), Measurements()))
    ).ping
    assert not silent.HasField("pressure")
    told = Report(failed=(Failed(AttemptId(1), Outcome.CANCELLED, "", Usage(build_s=0.0)),))
    message = pb.BuilderRequest.FromString(agent_message_to_bytes(told)).report.failed[0]
    assert [field.name for field, _ in message.usage.ListFields()] == ["build_s"]


def test_a_measurement_of_zero_is_not_an_absent_one() -> None:
    nothing = Usage(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0)
    report = Report(failed=(Failed(AttemptId(1), Outcome.CANCELLED, "", nothing),))
    assert agent_message_from_bytes(agent_message_to_bytes(report)) == report
    calm = Measurements(cpu_pressure=0.0, memory_pressure=0.0, io_pressure=0.0)
    heartbeat = Heartbeat(0, (), calm)
    assert agent_message_from_bytes(agent_message_to_bytes(heartbeat)) == heartbeat


@given(attempts)
def test_an_attempt_is_a_version_8_uuid(attempt: AttemptId) -> None:
    text = attempt_to_uuid(attempt)
    uuid = UUID(text)
    assert str(uuid) == text
    assert uuid.version == 8
    assert uuid.variant == "specified in RFC 4122"
    assert attempt_from_uuid(text) == order_from_uuid(text) == attempt


def test_a_stock_queue_runners_uuid_is_taken_by_agents_alone() -> None:
    text = str(uuid4())
    assert attempt_to_uuid(order_from_uuid(text)) == text
    with pytest.raises(PeerError, match="build_id"):
        attempt_from_uuid(text)


@pytest.mark.parametrize(
    "text",
    ["", "7", "6772616e-6765-8000-8000-000000000000", "6772616e-6765-8000-0000-000000000001"],
)
def test_what_is_no_attempt(text: str) -> None:
    for read in (attempt_from_uuid, order_from_uuid):
        with pytest.raises(PeerError, match="build_id"):
            read(text)


ms_usages = st.integers(0, 10**9).map(
    lambda ms: Usage(fetch_s=ms / 1000, build_s=ms / 1000, upload_s=ms / 1000)
)


@given(agents, builts, ms_usages)
def test_a_completed_build_survives_hydras_dialect(
    agent: AgentId, built: Built, usage: Usage
) -> None:
    by_name = {output.name: replace(output, references=()) for output in built.outputs}
    sorted_outputs = tuple(by_name[name] for name in sorted(by_name))
    told = replace(built, outputs=sorted_outputs, usage=usage)
    assert result_from_bytes(result_to_bytes(agent, told)) == (agent, told)


@pytest.mark.parametrize(
    ("outcome", "read_as"),
    [
        (Outcome.BUILD_FAILED, Outcome.BUILD_FAILED),
        (Outcome.NOT_DETERMINISTIC, Outcome.BUILD_FAILED),
        (Outcome.TIMED_OUT, Outcome.TIMED_OUT),
        (Outcome.SILENT_TOO_LONG, Outcome.TIMED_OUT),
        (Outcome.LOG_LIMIT, Outcome.LOG_LIMIT),
        (Outcome.OUTPUT_TOO_LARGE, Outcome.OUTPUT_TOO_LARGE),
        (Outcome.INPUTS_MISSING, Outcome.FETCH_FAILED),
        (Outcome.UPLOAD_FAILED, Outcome.UPLOAD_FAILED),
        (Outcome.RETURNED, Outcome.AGENT_FAILED),
    ],
)
def test_outcomes_in_hydras_dialect(outcome: Outcome, read_as: Outcome) -> None:
    usage = Usage(fetch_s=0.0, build_s=0.0, upload_s=0.0)
    failed = Failed(AttemptId(1), outcome, "why", usage)
    assert result_from_bytes(result_to_bytes(AGENT, failed)) == (
        AGENT,
        replace(failed, outcome=read_as),
    )


@pytest.mark.parametrize(
    ("phase", "read_as"),
    [
        (Phase.SENT, Phase.QUEUED),
        (Phase.QUEUED, Phase.QUEUED),
        (Phase.FETCHING, Phase.FETCHING),
        (Phase.BUILDING, Phase.BUILDING),
        (Phase.BUILT, Phase.UPLOADING),
        (Phase.UPLOADING, Phase.UPLOADING),
        (Phase.STORED, Phase.UPLOADING),
    ],
)
def test_phases_in_hydras_dialect(phase: Phase, read_as: Phase) -> None:
    data = step_update_to_bytes(AGENT, AttemptId(1), phase)
    assert step_update_from_bytes(data) == (AGENT, AttemptId(1), read_as)


wanted_uploads = st.lists(st.builds(WantedUpload, paths, hashes, integers), max_size=3).map(tuple)


@given(st.builds(PresignedRequest, agents, attempts, wanted_uploads))
def test_presigned_requests_survive(request: PresignedRequest) -> None:
    data = presigned_request_to_bytes(request)
    assert presigned_request_from_bytes(data, NIX_STORE) == request
    message = pb.PresignedUrlRequest.FromString(data)
    for wanted in message.request:
        wanted.store_path = "/nix/store/" + wanted.store_path
    assert presigned_request_from_bytes(message.SerializeToString(), NIX_STORE) == request


@given(
    st.builds(
        UploadComplete,
        agents,
        attempts,
        paths,
        hashes,
        integers.filter(bool),
        path_tuples,
        st.none() | paths,
        names,
        names,
        st.none() | hashes,
        optional_integers,
        st.booleans(),
    )
)
def test_upload_completions_survive(upload: UploadComplete) -> None:
    assert upload_complete_from_bytes(upload_complete_to_bytes(upload, NIX_STORE), NIX_STORE) == (
        upload
    )
    with pytest.raises(PeerError, match="store_dir"):
        upload_complete_from_bytes(upload_complete_to_bytes(upload, GNU_STORE), NIX_STORE)


@given(st.builds(VersionCheck, names, names, names, names), path_tuples, st.binary(max_size=9))
def test_small_calls_survive(check: VersionCheck, some: tuple[StorePath, ...], data: bytes) -> None:
    assert version_check_from_bytes(version_check_to_bytes(check)) == check
    assert paths_from_bytes(paths_to_bytes(some)) == some
    assert requisites_from_bytes(requisites_to_bytes(some)) == some
    for drv_path in (None, *some):
        assert log_chunk_from_bytes(log_chunk_to_bytes(drv_path, data)) == (drv_path, data)


READERS: list[Callable[[bytes], Any]] = [
    agent_message_from_bytes,
    lambda data: coordinator_message_from_bytes(data, NIX_STORE, None),
    lambda data: basic_from_bytes(data, NIX_STORE),
    lambda data: presigned_request_from_bytes(data, NIX_STORE),
    lambda data: upload_complete_from_bytes(data, NIX_STORE),
    step_update_from_bytes,
    result_from_bytes,
    version_check_from_bytes,
    paths_from_bytes,
    requisites_from_bytes,
    log_chunk_from_bytes,
]


@pytest.mark.parametrize("read", READERS)
@given(data=st.binary(max_size=200))
def test_junk_is_the_peers_fault(read: Callable[[bytes], Any], data: bytes) -> None:
    try:
        read(data)
    except PeerError:
        pass


GOOD = Report(
    built=(
        Built(
            AttemptId(1),
            (BuiltOutput("out", StorePath("0" * 32 + "-x"), Hash("sha256", b"h" * 32), 96, ()),),
            Usage(build_s=1.0),
        ),
    )
)


@given(st.data())
def test_flipped_bytes_are_the_peers_fault(data: st.DataObject) -> None:
    raw = bytearray(agent_message_to_bytes(GOOD))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        agent_message_from_bytes(bytes(raw))
    except PeerError:
        pass


def spoilt_join(**fields: Any) -> bytes:
    good: dict[str, Any] = {
        "machine_id": AGENT,
        "hostname": "ci-3",
        "systems": ["x86_64-linux"],
        "cpu_count": 1,
        "max_jobs": 1,
    }
    return pb.BuilderRequest(join=pb.JoinMessage(**(good | fields))).SerializeToString()


def spoilt_ping(**fields: Any) -> bytes:
    return pb.BuilderRequest(ping=pb.PingMessage(**fields)).SerializeToString()


def spoilt_report(**fields: Any) -> bytes:
    return pb.BuilderRequest(report=pb.Report(**fields)).SerializeToString()


def spoilt_output(**fields: Any) -> bytes:
    good: dict[str, Any] = {
        "name": "out",
        "path": "0" * 32 + "-x",
        "nar_sha256": bytes(32),
        "nar_bytes": 96,
    }
    output = pb.BuiltOutput(**(good | fields))
    return spoilt_report(built=[pb.Built(attempt=1, outputs=[output])])


HUGE = (1 << 64) - 1
NAN = struct.unpack("<f", b"\x00\x00\xc0\x7f")[0]


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        (spoilt_join(machine_id="me"), "machine_id", "'me'"),
        (spoilt_join(hostname=""), "join.hostname", "''"),
        (spoilt_join(hostname="a\0b"), "join.hostname", "NUL"),
        (spoilt_join(systems=[]), "join.systems", "none"),
        (spoilt_join(systems=["x"] * 101), "join.systems", "101"),
        (spoilt_join(max_jobs=0), "join.max_jobs", "0"),
        (spoilt_join(cpu_count=0), "join.cpu_count", "0"),
        (spoilt_join(max_jobs=(1 << 32) - 1), "join.max_jobs", "4294967295"),
        (spoilt_join(total_mem=HUGE), "join.total_mem", str(HUGE)),
        (spoilt_join(speed_factor=-1.0), "join.speed_factor", "-1"),
        (spoilt_join(speed_factor=NAN), "join.speed_factor", "nan"),
        (spoilt_join(store_avail_threshold=101.0), "join.store_avail_threshold", "101"),
        (spoilt_join(extension_version=1), "join.session", "''"),
        (spoilt_ping(load1=float("inf")), "ping.load1", "inf"),
        (spoilt_ping(store_free_percent=-0.5), "ping.store_free_percent", "-0.5"),
        (spoilt_ping(attempts=[pb.AttemptPhase(attempt=1)]), "ping.attempts", "0"),
        (spoilt_ping(attempts=[{"attempt": 1, "phase": 9}]), "ping.attempts", "9"),
        (spoilt_ping(attempts=[{"attempt": 0, "phase": 1}]), "ping.attempts", "0"),
        (spoilt_ping(attempts=[{}] * 10_001), "ping.attempts", "10001"),
        (spoilt_report(logs=[pb.LogPart(attempt=1, offset=HUGE)]), "log.offset", str(HUGE)),
        (spoilt_report(failed=[pb.Failed(attempt=1)]), "failed.outcome", "0"),
        (spoilt_report(failed=[{"attempt": 1, "outcome": 99}]), "failed.outcome", "99"),
        (
            spoilt_report(failed=[{"attempt": 1, "outcome": 1, "usage": {"build_s": -1.0}}]),
            "usage.build_s",
            "-1",
        ),
        (spoilt_output(name=""), "built.name", "''"),
        (spoilt_output(path="/nix/store/x"), "built.path", "/nix/store/x"),
        (spoilt_output(references=["../x"]), "built.references", "../x"),
        (spoilt_output(nar_sha256=b"\1"), "built.nar_sha256", "01"),
        (spoilt_output(nar_bytes=0), "built.nar_bytes", "0"),
        (spoilt_output(nix_support={"products": [{}]}), "product.path.store_path", "''"),
        (pb.BuilderRequest().SerializeToString(), "message", "b''"),
    ],
)
def test_an_agents_junk_is_named(data: bytes, field: str, value: str) -> None:
    with pytest.raises(PeerError) as caught:
        agent_message_from_bytes(data)
    assert str(caught.value).startswith(f"{field}: ")
    assert value in str(caught.value)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.RunnerRequest(build=pb.BuildMessage()), "resolved_drv"),
        (pb.RunnerRequest(abort=pb.AbortMessage(build_id="x")), "build_id"),
        (pb.RunnerRequest(config_update=pb.ConfigUpdate()), "message"),
        (pb.RunnerRequest(join=pb.JoinResponse(machine_id=AGENT)), "max_concurrent_downloads"),
        (pb.RunnerRequest(orders=pb.Orders(aborts=[0])), "orders.aborts"),
        (pb.RunnerRequest(orders=pb.Orders(grants=[pb.UploadGrant()])), "grant.url"),
        (pb.RunnerRequest(), "message"),
    ],
)
def test_a_coordinators_junk_is_named(message: pb.RunnerRequest, field: str) -> None:
    with pytest.raises(PeerError, match=f"^{field}: "):
        coordinator_message_from_bytes(message.SerializeToString(), NIX_STORE, None)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (derivation_pb2.Output(), "None"),
        (derivation_pb2.Output(deferred=derivation_pb2.Unit()), "deferred"),
        (
            derivation_pb2.Output(
                ca_fixed=store_pb2.ContentAddress(
                    method=store_pb2.FLAT, hash=store_pb2.Hash(algorithm=store_pb2.BLAKE3)
                )
            ),
            "algorithm 4",
        ),
        (
            derivation_pb2.Output(
                ca_fixed=store_pb2.ContentAddress(
                    method=store_pb2.FLAT, hash=store_pb2.Hash(digest=b"x")
                )
            ),
            "1 bytes",
        ),
    ],
)
def test_outputs_that_nobody_builds_here(output: derivation_pb2.Output, said: str) -> None:
    message = derivation_pb2.Basic(name="x", platform=b"s", outputs={"out": output})
    with pytest.raises(PeerError, match=said):
        basic_from_bytes(message.SerializeToString(), NIX_STORE)


def test_an_environment_variables_name_must_be_text() -> None:
    derivation = BasicDerivation(
        {"out": BasicOutput(StorePath("0" * 32 + "-x"))}, (), "s", "b", (), {"a\udcff": ""}
    )
    with pytest.raises(PeerError, match="env"):
        basic_to_bytes(derivation)


def test_structured_attributes_ride_in_their_field() -> None:
    derivation = BasicDerivation(
        {"dev": BasicOutput(StorePath("0" * 32 + "-x-1-dev"))}, (), "s", "b", (), {"__json": "{}"}
    )
    message = derivation_pb2.Basic.FromString(basic_to_bytes(derivation))
    assert (message.name, message.structured_attrs, dict(message.env)) == ("x-1", "{}", {})


def test_an_agents_text_is_made_fit_to_send() -> None:
    assert as_text("a\0b\udcff") == "a?b?"
    assert as_text("x" * 70_000 + "end").endswith("xend")
    failed = Failed(AttemptId(1), Outcome.BUILD_FAILED, "\0\udcff" * 100_000, Usage())
    read = agent_message_from_bytes(agent_message_to_bytes(Report(failed=(failed,))))
    assert isinstance(read, Report)
    assert set(read.failed[0].message) == {"?"}
