"""What the coordinator says on the tunnel, as RunnerRequest messages.

Orders are put together from bytes: a message field is its number, its length and its own bytes, so
a derivation goes from the database to the network without being parsed and written again.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from grange.errors import PeerError
from grange.scheduler.facts import Limits
from grange.store.path import StoreDir
from grange.wire.basic import basic_from_message, basic_to_bytes
from grange.wire.generated.nix.store.v1 import store_pb2
from grange.wire.generated.runner.v1 import runner_pb2 as pb
from grange.wire.ids import agent_id, attempt_to_uuid, order_from_uuid
from grange.wire.messages import (
    EXTENSION_VERSION,
    BuildOrder,
    CoordinatorMessage,
    JoinAnswer,
    Orders,
    Ping,
    SerializedBuildOrder,
    UploadGrant,
)
from grange.wire.read import (
    URL_CHARS_MAX,
    attempt,
    few,
    integer,
    names,
    parse,
    real,
    store_path,
    text,
)

ORDERS_ITEMS_MAX: Final = 100_000  # of each kind
DOWNLOADS_MAX: Final = 10_000
KEYS_MAX: Final = 1_000

# Tags of length-delimited fields: number << 3 | 2, as varints.
_REQUEST_BUILD: Final = b"\x22"  # RunnerRequest.build
_REQUEST_ORDERS: Final = b"\xa2\x06"  # RunnerRequest.orders
_ORDERS_BUILDS: Final = b"\x12"  # Orders.builds
_BUILD_RESOLVED_DRV: Final = b"\x42"  # BuildMessage.resolved_drv

_PING: Final = pb.RunnerRequest(ping=pb.SimplePingMessage(message="ping")).SerializeToString()
_NO_LIMITS: Final = Limits()


def coordinator_message_to_bytes(message: CoordinatorMessage) -> bytes:
    """`message` for a Grange agent."""
    match message:
        case JoinAnswer():
            return pb.RunnerRequest(join=_write_answer(message)).SerializeToString()
        case Ping():
            return _PING
        case Orders():
            return _orders_to_bytes(message)


def hydra_messages(message: CoordinatorMessage, *, is_first: bool) -> Iterator[bytes]:
    """`message` for a stock builder, who takes one order at a time.

    It has no use for grants (it asks for them) and settlements. Of an answer other than the first
    it takes what may change.
    """
    match message:
        case JoinAnswer() if is_first:
            join = pb.JoinResponse(
                machine_id=message.agent, max_concurrent_downloads=message.downloads_max
            )
            yield pb.RunnerRequest(join=join).SerializeToString()
        case JoinAnswer():
            update = pb.ConfigUpdate(max_concurrent_downloads=message.downloads_max)
            yield pb.RunnerRequest(config_update=update).SerializeToString()
        case Ping():
            yield _PING
        case Orders():
            for build in message.builds:
                yield _field(_REQUEST_BUILD, _build_to_bytes(build, is_stock=True))
            for number in message.aborts:
                abort = pb.AbortMessage(build_id=attempt_to_uuid(number))
                yield pb.RunnerRequest(abort=abort).SerializeToString()


def coordinator_message_from_bytes(
    data: bytes, store_dir: StoreDir, answer: JoinAnswer | None
) -> CoordinatorMessage:
    """Read what a Grange coordinator or a stock queue runner says.

    `answer` is the last JoinAnswer, which a configuration update changes. Raises PeerError where
    `data` is no message, or one with a field out of bounds.
    """
    request = parse(pb.RunnerRequest, data)
    kind = request.WhichOneof("message")
    if kind == "orders":
        return _read_orders(request.orders, store_dir)
    if kind == "ping":
        return Ping()
    if kind == "join":
        return _read_answer(request.join)
    if kind == "build":
        return Orders(number=0, builds=(_read_build(request.build, store_dir),))
    if kind == "abort":
        return Orders(number=0, aborts=(order_from_uuid(request.abort.build_id),))
    if kind == "config_update" and answer is not None:
        return replace(answer, downloads_max=_downloads(request.config_update))
    raise PeerError(f"message: a tunnel message of no kind known here: {data[:40]!r}")


def _field(tag: bytes, body: bytes) -> bytes:
    size = len(body)
    varint = bytearray()
    while size > 0x7F:
        varint.append(size & 0x7F | 0x80)
        size >>= 7
    varint.append(size)
    return b"".join((tag, varint, body))


def _write_answer(answer: JoinAnswer) -> pb.JoinResponse:
    return pb.JoinResponse(
        machine_id=answer.agent,
        max_concurrent_downloads=answer.downloads_max,
        extension_version=EXTENSION_VERSION,
        cache_url=answer.cache_url,
        public_keys=answer.public_keys,
        lease_s=answer.lease_s,
        heartbeat_s=answer.heartbeat_s,
        ping_s=answer.ping_s,
    )


def _read_answer(message: pb.JoinResponse) -> JoinAnswer:
    return JoinAnswer(
        agent=agent_id(message.machine_id),
        cache_url=text("join.cache_url", message.cache_url, 0, URL_CHARS_MAX),
        public_keys=names("join.public_keys", message.public_keys, KEYS_MAX),
        lease_s=real("join.lease_s", message.lease_s),
        heartbeat_s=real("join.heartbeat_s", message.heartbeat_s),
        downloads_max=_downloads(message),
        is_grange=message.extension_version > 0,
        ping_s=real("join.ping_s", message.ping_s),
    )


def _downloads(message: pb.JoinResponse | pb.ConfigUpdate) -> int:
    field = "max_concurrent_downloads"
    return integer(field, message.max_concurrent_downloads, 1, DOWNLOADS_MAX)


def _orders_to_bytes(orders: Orders) -> bytes:
    message = pb.Orders(number=orders.number, aborts=orders.aborts)
    for grant in orders.grants:
        message.grants.add(
            attempt=grant.attempt,
            path=grant.path,
            url=grant.url,
            compression=grant.compression,
            compression_level=grant.compression_level,
            is_present=grant.is_present,
            is_direct=grant.is_direct,
        )
    for number, is_delivered in orders.settled:
        message.settled.add(attempt=number, is_delivered=is_delivered)
    parts = [message.SerializeToString()]
    for build in orders.builds:
        parts.append(_field(_ORDERS_BUILDS, _build_to_bytes(build, is_stock=False)))
    return _field(_REQUEST_ORDERS, b"".join(parts))


def _build_to_bytes(order: BuildOrder | SerializedBuildOrder, *, is_stock: bool) -> bytes:
    message = pb.BuildMessage(
        build_id=attempt_to_uuid(order.attempt), drv=store_pb2.StorePath(path=order.drv_path)
    )
    limits = order.limits
    if limits != _NO_LIMITS:
        message.max_silent_time = limits.silent_s
        message.build_timeout = limits.build_s
        message.max_log_size = limits.log_bytes
        message.max_output_size = limits.output_bytes
    message.is_check = order.is_check
    message.is_fresh = order.is_fresh
    if is_stock:
        message.presigned_url_opts.SetInParent()  # its presence asks for presigned uploads
    match order:
        case SerializedBuildOrder():
            basic = order.basic
        case BuildOrder():
            basic = basic_to_bytes(order.derivation)
    return message.SerializeToString() + _field(_BUILD_RESOLVED_DRV, basic)


def _read_orders(message: pb.Orders, store_dir: StoreDir) -> Orders:
    for field in ("builds", "aborts", "grants", "settled"):
        few(f"orders.{field}", getattr(message, field), ORDERS_ITEMS_MAX)
    return Orders(
        number=integer("orders.number", message.number),
        builds=tuple([_read_build(build, store_dir) for build in message.builds]),
        aborts=tuple([attempt("orders.aborts", number) for number in message.aborts]),
        grants=tuple(map(_read_grant, message.grants)),
        settled=tuple(
            [
                (attempt("settled.attempt", item.attempt), item.is_delivered)
                for item in message.settled
            ]
        ),
    )


def _read_build(message: pb.BuildMessage, store_dir: StoreDir) -> BuildOrder:
    if not message.HasField("resolved_drv"):
        raise PeerError(f"resolved_drv: missing in the order {message.build_id[:100]!r}")
    return BuildOrder(
        attempt=order_from_uuid(message.build_id),
        drv_path=store_path("build.drv", message.drv.path),
        derivation=basic_from_message(message.resolved_drv, store_dir),
        limits=Limits(
            silent_s=integer("build.max_silent_time", message.max_silent_time),
            build_s=integer("build.build_timeout", message.build_timeout),
            log_bytes=integer("build.max_log_size", message.max_log_size),
            output_bytes=integer("build.max_output_size", message.max_output_size),
        ),
        is_check=message.is_check,
        is_fresh=message.is_fresh,
    )


def _read_grant(message: pb.UploadGrant) -> UploadGrant:
    url = text("grant.url", message.url, 0, URL_CHARS_MAX)
    if not url and not message.is_present:
        raise PeerError(f"grant.url: missing for {message.path[:300]!r}")
    return UploadGrant(
        attempt=attempt("grant.attempt", message.attempt),
        path=store_path("grant.path", message.path),
        url=url,
        compression=text("grant.compression", message.compression),
        compression_level=message.compression_level,
        is_present=message.is_present,
        is_direct=message.is_direct,
    )
