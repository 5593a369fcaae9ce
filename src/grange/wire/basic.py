"""Resolved derivations as nix.store.derivation.v1.Basic.

The coordinator keeps these bytes in its database and sends them as they are.
"""

from typing import Final

from grange.errors import PeerError
from grange.store.basic import BasicDerivation, BasicOutput
from grange.store.content import ContentAddress, Method, path_of
from grange.store.hash import Hash
from grange.store.outputs import output_name
from grange.store.path import NAME_CHARS_MAX, StoreDir
from grange.wire.generated.nix.store.derivation.v1 import derivation_pb2 as pb
from grange.wire.generated.nix.store.v1 import store_pb2
from grange.wire.outputs import OUTPUTS_MAX
from grange.wire.read import HASH_ALGORITHMS, few, nix_hash, parse, store_path, store_paths, text

INPUTS_MAX: Final = 200_000  # an image or a channel of everything
ARGS_MAX: Final = 100_000
ENV_MAX: Final = 100_000

_METHODS: Final = (Method.TEXT, Method.FLAT, Method.NAR)  # by nix.store.v1.ContentAddressMethod
_METHOD_PREFIXES: Final = ("text:", "", "r:")  # as a derivation's hash_algo begins
_STRUCTURED: Final = "__json"


def basic_to_bytes(derivation: BasicDerivation) -> bytes:
    """`derivation`, which has an output, in the same bytes every time.

    Raises PeerError where the name of a variable is not UTF-8, which a protobuf key must be.
    """
    message = pb.Basic(
        name=_name(derivation),
        inputs=[store_pb2.StorePath(path=path) for path in derivation.input_srcs],
        platform=_raw(derivation.system),
        builder=_raw(derivation.builder),
        args=map(_raw, derivation.args),
    )
    for name, output in derivation.outputs.items():
        _write_output(message.outputs[name], output)
    for key, value in derivation.env.items():
        raw = _raw(value)
        if key == _STRUCTURED and _is_utf8(raw):
            message.structured_attrs = value
        elif _is_utf8(_raw(key)):
            message.env[key] = raw
        else:
            raise PeerError(f"env: the name {key[:200]!r} is not UTF-8; rename the variable")
    return message.SerializeToString(deterministic=True)


def basic_from_bytes(data: bytes, store_dir: StoreDir) -> BasicDerivation:
    """Read what `basic_to_bytes` or a stock queue runner wrote; raises PeerError on other bytes."""
    return basic_from_message(parse(pb.Basic, data), store_dir)


def basic_from_message(message: pb.Basic, store_dir: StoreDir) -> BasicDerivation:
    few("resolved_drv.outputs", message.outputs, OUTPUTS_MAX)
    few("resolved_drv.inputs", message.inputs, INPUTS_MAX)
    few("resolved_drv.args", message.args, ARGS_MAX)
    few("resolved_drv.env", message.env, ENV_MAX)
    name = text("resolved_drv.name", message.name, 1, NAME_CHARS_MAX)
    if not message.outputs:
        raise PeerError(f"resolved_drv.outputs: {name!r} has none")
    env = {key: _lax(value) for key, value in message.env.items()}
    if message.HasField("structured_attrs"):
        env[_STRUCTURED] = message.structured_attrs
    return BasicDerivation(
        outputs={
            key: _read_output(output_name(name, key), output, store_dir)
            for key, output in message.outputs.items()
        },
        input_srcs=store_paths("resolved_drv.inputs", [path.path for path in message.inputs]),
        system=text("resolved_drv.platform", _lax(message.platform), 1),
        builder=_lax(message.builder),
        args=tuple(map(_lax, message.args)),
        env=env,
    )


def _name(derivation: BasicDerivation) -> str:
    """The derivation's own name: an output's is that, with ``-<output>`` unless it is "out"."""
    output, value = next(iter(derivation.outputs.items()))
    return value.path.name if output == "out" else value.path.name.removesuffix(f"-{output}")


def _write_output(message: pb.Output, output: BasicOutput) -> None:
    if not output.hash_algo:
        message.input_addressed.path = output.path
        return
    prefix, _, algorithm = output.hash_algo.rpartition(":")
    method = _METHOD_PREFIXES.index(prefix and prefix + ":")
    address = message.ca_fixed
    address.method = store_pb2.ContentAddressMethod.ValueType(method)
    write_hash(address.hash, Hash.parse(output.hash, algorithm))


def _read_output(name: str, message: pb.Output, store_dir: StoreDir) -> BasicOutput:
    kind = message.WhichOneof("output")
    if kind == "input_addressed":
        return BasicOutput(store_path("input_addressed", message.input_addressed.path))
    if kind != "ca_fixed":
        raise PeerError(f"resolved_drv.outputs: {name!r} is {kind}; that kind is not built here")
    method = message.ca_fixed.method
    if method >= len(_METHODS):
        raise PeerError(f"ca_fixed.method: {method} is not known here")
    hash_ = nix_hash("ca_fixed.hash", message.ca_fixed.hash)
    path = path_of(ContentAddress(_METHODS[method], hash_), name, (), store_dir)
    return BasicOutput(path, _METHOD_PREFIXES[method] + hash_.algorithm, hash_.base16())


def write_hash(message: store_pb2.Hash, value: Hash) -> None:
    algorithm = HASH_ALGORITHMS.index(value.algorithm)
    message.algorithm = store_pb2.HashAlgorithm.ValueType(algorithm)
    message.digest = value.digest


def _raw(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _lax(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
