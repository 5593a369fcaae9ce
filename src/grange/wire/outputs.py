"""What a build made, as messages: outputs, nix-support, and what it cost."""

from typing import Final

from grange.errors import PeerError
from grange.scheduler.facts import Usage
from grange.store.hash import Hash
from grange.wire.generated.runner.v1 import nix_support_pb2
from grange.wire.generated.runner.v1 import runner_pb2 as pb
from grange.wire.messages import BuiltOutput, Metric, NixSupport, Product
from grange.wire.read import (
    INTEGER_MAX,
    REAL_MAX,
    digest,
    few,
    integer,
    real,
    store_path,
    store_paths,
    text,
)

OUTPUTS_MAX: Final = 1_000  # texlive has some hundred
REFERENCES_MAX: Final = 200_000  # an image or a channel of everything
PRODUCTS_MAX: Final = 10_000  # a manual with every page a product
METRICS_MAX: Final = 10_000
PATH_CHARS_MAX: Final = 4096  # PATH_MAX

_USAGE_MAX: Final = {
    name: REAL_MAX if name.endswith("_s") else INTEGER_MAX for name in Usage.__dataclass_fields__
}
_NO_SUPPORT: Final = NixSupport()
_NO_USAGE: Final = Usage()


def write_output(message: pb.BuiltOutput, output: BuiltOutput) -> None:
    assert output.nar_hash.algorithm == "sha256", "Nix and Guix hash NARs with nothing else"
    message.name = output.name
    message.path = output.path
    message.nar_sha256 = output.nar_hash.digest
    message.nar_bytes = output.nar_bytes
    message.references.extend(output.references)
    if output.nix_support != _NO_SUPPORT:
        write_nix_support(message.nix_support, output.nix_support)


def read_output(message: pb.BuiltOutput) -> BuiltOutput:
    few("built.references", message.references, REFERENCES_MAX)
    return BuiltOutput(
        name=text("built.name", message.name, 1),
        path=store_path("built.path", message.path),
        nar_hash=digest("built.nar_sha256", "sha256", message.nar_sha256),
        nar_bytes=integer("built.nar_bytes", message.nar_bytes, 1),
        references=store_paths("built.references", message.references),
        nix_support=read_nix_support(message.nix_support)
        if message.HasField("nix_support")
        else _NO_SUPPORT,
    )


def write_nix_support(message: nix_support_pb2.NixSupport, support: NixSupport) -> None:
    message.failed = support.is_failed
    if support.release_name is not None:
        message.hydra_release_name = support.release_name
    for product in support.products:
        _write_product(message.products.add(), product)
    for name, metric in support.metrics.items():
        value = message.metrics[name]
        value.value = metric.value
        if metric.unit is not None:
            value.unit = metric.unit
    message.SetInParent()


def read_nix_support(message: nix_support_pb2.NixSupport) -> NixSupport:
    few("nix_support.products", message.products, PRODUCTS_MAX)
    few("nix_support.metrics", message.metrics, METRICS_MAX)
    return NixSupport(
        is_failed=message.failed,
        release_name=text("nix_support.hydra_release_name", message.hydra_release_name)
        if message.HasField("hydra_release_name")
        else None,
        products=tuple(map(_read_product, message.products)),
        metrics={
            text("nix_support.metrics", name, 1): _read_metric(metric)
            for name, metric in message.metrics.items()
        },
    )


def _read_metric(message: nix_support_pb2.BuildMetric) -> Metric:
    sign = -1 if message.value < 0 else 1
    value = sign * real("nix_support.metrics.value", abs(message.value), 1e300)
    unit = text("nix_support.metrics.unit", message.unit) if message.HasField("unit") else None
    return Metric(value, unit)


def _write_product(message: nix_support_pb2.BuildProduct, product: Product) -> None:
    message.path.store_path.path = product.output
    message.path.sub_path = product.sub_path
    message.type = product.type
    message.subtype = product.subtype
    message.name = product.name
    message.default_path = product.default_path
    message.is_regular = product.is_regular
    if product.sha256 is not None:
        message.sha256hash = product.sha256
    if product.file_bytes is not None:
        message.file_size = product.file_bytes


def _read_product(message: nix_support_pb2.BuildProduct) -> Product:
    return Product(
        output=store_path("product.path.store_path", message.path.store_path.path),
        sub_path=text("product.path.sub_path", message.path.sub_path, 0, PATH_CHARS_MAX),
        type=text("product.type", message.type, 1),
        subtype=text("product.subtype", message.subtype),
        name=text("product.name", message.name),
        default_path=text("product.default_path", message.default_path, 0, PATH_CHARS_MAX),
        is_regular=message.is_regular,
        sha256=Hash.parse(message.sha256hash, "sha256").base16()
        if message.HasField("sha256hash")
        else None,
        file_bytes=integer("product.file_size", message.file_size)
        if message.HasField("file_size")
        else None,
    )


def write_usage(message: pb.Usage, usage: Usage) -> None:
    """Leave `message` without the fields that nobody measured."""
    if usage.fetch_s is not None:
        message.fetch_s = usage.fetch_s
    if usage.build_s is not None:
        message.build_s = usage.build_s
    if usage.upload_s is not None:
        message.upload_s = usage.upload_s
    if usage.cpu_user_s is not None:
        message.cpu_user_s = usage.cpu_user_s
    if usage.cpu_system_s is not None:
        message.cpu_system_s = usage.cpu_system_s
    if usage.memory_peak_bytes is not None:
        message.memory_peak_bytes = usage.memory_peak_bytes
    if usage.io_read_bytes is not None:
        message.io_read_bytes = usage.io_read_bytes
    if usage.io_write_bytes is not None:
        message.io_write_bytes = usage.io_write_bytes


def read_usage(message: pb.Usage) -> Usage:
    # ListFields names only what is there: cheaper than asking for each of eight.
    present = {field.name: value for field, value in message.ListFields()}
    for name, value in present.items():
        if not 0 <= value <= _USAGE_MAX[name]:  # which NaN is not either
            raise PeerError(f"usage.{name}: {value} is not between 0 and {_USAGE_MAX[name]:g}")
    return Usage(**present) if present else _NO_USAGE
