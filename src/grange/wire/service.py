"""What both sides of the gRPC service agree on beside its messages."""

from typing import Any, Final

import grpc.aio

SERVICE: Final = "runner.v1.RunnerService"
MESSAGE_BYTES_MAX: Final = 50 << 20  # Hydra's, both ways

# A dead connection is found within 40 s, on a quiet tunnel as well.
OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),  # zero: no end of them
)

EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in grpc-stubs
