"""Hydra's names, numbers and types, pinned: they are what lets a stock builder join."""

import re

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from grange.wire.generated.nix.store.derivation.v1 import derivation_pb2
from grange.wire.generated.nix.store.v1 import store_pb2
from grange.wire.generated.runner.v1 import nix_support_pb2, runner_pb2

TYPES = {
    FieldDescriptor.TYPE_STRING: "s",
    FieldDescriptor.TYPE_BYTES: "b",
    FieldDescriptor.TYPE_FLOAT: "f",
    FieldDescriptor.TYPE_DOUBLE: "d",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_UINT32: "u32",
    FieldDescriptor.TYPE_UINT64: "u64",
    FieldDescriptor.TYPE_INT32: "i32",
    FieldDescriptor.TYPE_INT64: "i64",
}

# `name=number type`, as read in NixOS/hydra 14332fbf. s string, b bytes, f float, d double,
# ? optional, * repeated.
RUNNER = """
Empty
VersionCheckRequest version=1 s, machine_id=2 s, hostname=3 s, store_dir=4 s
VersionCheckResponse compatible=1 bool, server_version=2 s
BuilderRequest join=1 JoinMessage, ping=2 PingMessage
JoinMessage machine_id=1 s, systems=2 s*, hostname=3 s, cpu_count=4 u32, bogomips=5 f, \
speed_factor=6 f, max_jobs=7 u32, build_dir_avail_threshold=8 f, store_avail_threshold=9 f, \
load1_threshold=10 f, cpu_psi_threshold=11 f, mem_psi_threshold=12 f, io_psi_threshold=13 f?, \
total_mem=14 u64, supported_features=15 s*, mandatory_features=16 s*, cgroups=17 bool, \
substituters=18 s*, use_substitutes=19 bool, nix_version=20 s
PingMessage machine_id=1 s, load1=2 f, load5=3 f, load15=4 f, mem_usage=5 u64, \
pressure=6 PressureState?, build_dir_free_percent=7 d, store_free_percent=8 d, \
current_substituting_path_count=9 u64, current_uploading_path_count=10 u64, \
current_downloading_path_count=11 u64
PressureState cpu_some=1 Pressure, mem_some=2 Pressure, mem_full=3 Pressure, io_some=4 Pressure, \
io_full=5 Pressure, irq_full=6 Pressure
Pressure avg10=1 f, avg60=2 f, avg300=3 f, total=4 u64
RunnerRequest join=1 JoinResponse, config_update=2 ConfigUpdate, ping=3 SimplePingMessage, \
build=4 BuildMessage, abort=5 AbortMessage
JoinResponse machine_id=1 s, max_concurrent_downloads=2 u32
ConfigUpdate max_concurrent_downloads=1 u32
SimplePingMessage message=1 s
AbortMessage build_id=1 s
BuildMessage build_id=1 s, drv=2 StorePath, max_log_size=4 u64, max_silent_time=5 i32, \
build_timeout=6 i32, presigned_url_opts=7 PresignedUploadOpts?, resolved_drv=8 Basic?, \
max_output_size=9 u64
PresignedUploadOpts upload_debug_info=1 bool
RequisitesResponse requisites=1 StorePath*
HasPathResponse has_path=1 bool
LogChunk drv=1 StorePath, data=2 b
AddToStoreRequest header=1 AddToStoreHeader, nar_chunk=2 b
AddToStoreHeader path_infos=1 ValidPathInfo*
OutputInfo path=1 StorePath, closure_size=2 u64, nar_size=3 u64, nar_hash=4 Hash, \
nixSupport=5 NixSupport?
StepUpdate build_id=1 s, machine_id=2 s, step_status=3 StepStatus
BuildResultInfo build_id=1 s, machine_id=2 s, import_time_ms=3 u64, build_time_ms=4 u64, \
upload_time_ms=5 u64, result_state=6 BuildResultState, outputInfos=7 map<s,OutputInfo>, \
error_msg=8 s?
PresignedNarRequest store_path=1 s, nar_hash=2 Hash, debug_info_build_ids=3 s*, nar_size=4 u64
PresignedUrlRequest build_id=1 s, machine_id=2 s, request=3 PresignedNarRequest*
PresignedUpload path=1 s, url=2 s, compression=3 s, compression_level=4 i32, \
multipart=5 MultipartUpload?
MultipartUpload upload_id=1 s, part_size=2 u64, parts=3 MultipartPart*
MultipartPart part_number=1 u32, url=2 s
MultipartCompletedPart part_number=1 u32, etag=2 s
MultipartCompletion object_key=1 s, upload_id=2 s, parts=3 MultipartCompletedPart*
MultipartPartsRequest build_id=1 s, machine_id=2 s, object_key=3 s, upload_id=4 s, \
start_part_number=5 u32, num_parts=6 u32, bucket=7 s?
MultipartPartsResponse parts=1 MultipartPart*
PresignedNarResponse store_path=1 s, nar_url=2 s, nar_upload=3 PresignedUpload, \
ls_upload=4 PresignedUpload?, debug_info_upload=5 PresignedUpload*, bucket=6 s?
PresignedUrlResponse inner=1 PresignedNarResponse*
PresignedUploadComplete build_id=1 s, machine_id=2 s, nar_info=13 NarInfo, \
multipart=14 MultipartCompletion?, nar_already_present=15 bool, bucket=16 s?
"""
NIX_SUPPORT = """
BuildProduct path=1 RelativeStorePath, default_path=2 s, type=3 s, subtype=4 s, name=5 s, \
is_regular=6 bool, sha256hash=7 s?, file_size=8 u64?
BuildMetric unit=1 s?, value=2 d
NixSupport failed=1 bool, hydra_release_name=2 s?, products=3 BuildProduct*, \
metrics=4 map<s,BuildMetric>
"""
STORE = """
StorePath path=1 s
StorePaths paths=1 StorePath*
RelativeStorePath store_path=1 StorePath, sub_path=2 s
Hash algorithm=1 HashAlgorithm, digest=2 b
ContentAddress method=1 ContentAddressMethod, hash=2 Hash
ContentAddressMethodAlgorithm method=1 ContentAddressMethod, algorithm=2 HashAlgorithm
Signature key_name=1 s, sig=2 s
UnkeyedValidPathInfo deriver=1 StorePath?, nar_hash=2 Hash, references=3 StorePath*, \
registration_time=4 i64?, nar_size=5 u64, ultimate=6 bool, signatures=7 Signature*, \
ca=8 ContentAddress?, store_dir=9 s
ValidPathInfo path=1 StorePath, info=2 UnkeyedValidPathInfo
UnkeyedNarInfo info=1 UnkeyedValidPathInfo, url=2 s, compression=3 s, download_hash=4 Hash?, \
download_size=5 u64?
NarInfo path=1 StorePath, info=2 UnkeyedNarInfo
"""
DERIVATION = """
Unit
Output input_addressed=1 StorePath, ca_fixed=2 ContentAddress, deferred=3 Unit, \
ca_floating=4 ContentAddressMethodAlgorithm, impure=5 ContentAddressMethodAlgorithm
Basic name=1 s, outputs=2 map<s,Output>, inputs=3 StorePath*, platform=4 b, builder=5 b, \
args=6 b*, env=7 map<s,b>, structured_attrs=8 s?
"""
MESSAGES = [
    pytest.param(file, *line.partition(" ")[::2], id=line.partition(" ")[0])
    for file, table in (
        (runner_pb2.DESCRIPTOR, RUNNER),
        (nix_support_pb2.DESCRIPTOR, NIX_SUPPORT),
        (store_pb2.DESCRIPTOR, STORE),
        (derivation_pb2.DESCRIPTOR, DERIVATION),
    )
    for line in table.strip().splitlines()
]
GRANGE_ALONE = {
    "AttemptPhase",
    "Report",
    "LogPart",
    "Built",
    "BuiltOutput",
    "Usage",
    "Failed",
    "Orders",
    "UploadGrant",
    "Settled",
}


def kind(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        return str(field.message_type.name)
    if field.enum_type is not None:
        return str(field.enum_type.name)
    return TYPES[field.type]


def shown(message: Descriptor) -> str:
    """The fields below 100, written as in the tables above."""
    fields = []
    for field in message.fields:
        if field.number >= 100:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            text = f"map<{kind(entry['key'])},{kind(entry['value'])}>"
        else:
            oneof = field.containing_oneof
            is_optional = oneof is not None and len(oneof.fields) == 1
            text = kind(field) + "*" * field.is_repeated + "?" * is_optional
        fields.append(f"{field.name}={field.number} {text}")
    return ", ".join(fields)


@pytest.mark.parametrize(("file", "name", "fields"), MESSAGES)
def test_a_message_is_hydras(file: object, name: str, fields: str) -> None:
    assert shown(file.message_types_by_name[name]) == fields  # type: ignore[attr-defined]


def test_what_is_not_hydras_is_known() -> None:
    pinned = {param.values[1] for param in MESSAGES}
    assert set(runner_pb2.DESCRIPTOR.message_types_by_name) - pinned == GRANGE_ALONE
    assert set(store_pb2.DESCRIPTOR.message_types_by_name) <= pinned
    assert set(derivation_pb2.DESCRIPTOR.message_types_by_name) <= pinned


def test_oneofs() -> None:
    def oneof(message: Descriptor) -> dict[str, list[int]]:
        return {
            name: [field.number for field in group.fields]
            for name, group in message.oneofs_by_name.items()
        }

    assert oneof(runner_pb2.BuilderRequest.DESCRIPTOR) == {"message": [1, 2, 100]}
    assert oneof(runner_pb2.RunnerRequest.DESCRIPTOR) == {"message": [1, 2, 3, 4, 5, 100]}
    assert oneof(runner_pb2.AddToStoreRequest.DESCRIPTOR) == {"message": [1, 2]}
    assert oneof(derivation_pb2.Output.DESCRIPTOR) == {"output": [1, 2, 3, 4, 5]}


def test_packages() -> None:
    assert runner_pb2.DESCRIPTOR.package == nix_support_pb2.DESCRIPTOR.package == "runner.v1"
    assert store_pb2.DESCRIPTOR.package == "nix.store.v1"
    assert derivation_pb2.DESCRIPTOR.package == "nix.store.derivation.v1"


def test_enumerations() -> None:
    assert dict(store_pb2.HashAlgorithm.items()) == {
        "SHA256": 0,
        "SHA512": 1,
        "SHA1": 2,
        "MD5": 3,
        "BLAKE3": 4,
    }
    assert dict(store_pb2.ContentAddressMethod.items()) == {"TEXT": 0, "FLAT": 1, "NIX_ARCHIVE": 2}
    assert list(runner_pb2.StepStatus.items()) == [
        ("Preparing", 0),
        ("Connecting", 1),
        ("SeningInputs", 2),
        ("Building", 3),
        ("WaitingForLocalSlot", 4),
        ("ReceivingOutputs", 5),
        ("PostProcessing", 6),
    ]
    assert list(runner_pb2.BuildResultState.items()) == [
        ("BuildFailure", 0),
        ("Success", 1),
        ("PreparingFailure", 2),
        ("ImportFailure", 3),
        ("UploadFailure", 4),
        ("PostProcessingFailure", 5),
        ("TimedOutFailure", 6),
        ("LogLimitFailure", 7),
        ("NarSizeLimitFailure", 8),
    ]


METHODS = """
CheckVersion VersionCheckRequest -> VersionCheckResponse
OpenTunnel stream BuilderRequest -> stream RunnerRequest
BuildLog stream LogChunk -> Empty
BuildResult stream AddToStoreRequest -> Empty
BuildStepUpdate StepUpdate -> Empty
CompleteBuild BuildResultInfo -> Empty
FetchRequisites StorePaths -> RequisitesResponse
HasPath StorePath -> HasPathResponse
FetchPaths StorePaths -> stream AddToStoreRequest
RequestPresignedUrl PresignedUrlRequest -> PresignedUrlResponse
RequestMultipartParts MultipartPartsRequest -> MultipartPartsResponse
NotifyPresignedUploadComplete PresignedUploadComplete -> Empty
"""


def test_methods() -> None:
    service = runner_pb2.DESCRIPTOR.services_by_name["RunnerService"]
    stream = {True: "stream ", False: ""}
    lines = [
        f"{method.name} {stream[method.client_streaming]}{method.input_type.name}"
        f" -> {stream[method.server_streaming]}{method.output_type.name}"
        for method in service.methods
    ]
    assert lines == METHODS.strip().splitlines()


def test_number_three_of_a_build_stays_unused() -> None:
    text = runner_pb2.DESCRIPTOR.serialized_pb
    assert re.search(rb"BuildMessage.*J\x04\x08\x03\x10\x04", text, re.DOTALL)  # reserved 3
