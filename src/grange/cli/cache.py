"""`grange cache`."""

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from grange.cli.config import Address
from grange.errors import OperatorError

if TYPE_CHECKING:
    import uvicorn

CACHE_PORT: Final = 7382
APP: Final = "grange.asgi:cache"
GOODBYE_S: Final = 10  # for downloads under way when the process ends

File = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command(short_help="Serve a binary cache alone, without a farm.")
@click.option(
    "--store",
    required=True,
    envvar="GRANGE_CACHE_STORE",
    metavar="DIR|URL",
    help="What is served: the farm's cache directory, or the bucket where it keeps its cache.",
)
@click.option(
    "--listen",
    default=f"127.0.0.1:{CACHE_PORT}",
    show_default=True,
    metavar="HOST:PORT",
)
@click.option(
    "--store-dir",
    default="/nix/store",
    show_default=True,
    metavar="DIR",
    help="The directory all store paths of the farm begin with.",
)
@click.option(
    "--tokens-file",
    envvar="GRANGE_CACHE_TOKENS",
    type=File,
    help="Who may read: a line for each token, with the SHA-256 of its text in base 16.",
)
@click.option("--anonymous", is_flag=True, help="Everyone may read, from other machines too.")
@click.option("--tls-cert", type=File, help="PEM, with the chain: serve HTTPS.")
@click.option("--tls-key", type=File, help="PEM, of the certificate.")
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes."
)
def cache(
    *,
    store: str,
    listen: str,
    store_dir: str,
    tokens_file: Path | None,
    anonymous: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    workers: int,
) -> None:
    """Serve narinfos and NARs until SIGTERM or Ctrl-C; needs neither farm nor database.

    Under another ASGI server, the application is `grange.asgi:cache`, a factory that is told all
    this by the environment.
    """
    address = _address(listen)
    if not (anonymous or tokens_file or _is_loopback(address.host)):
        raise OperatorError(
            f"{listen} is open to other machines: say who may read with --tokens-file, or "
            "--anonymous if everyone may"
        )
    if (tls_cert is None) is not (tls_key is None):
        raise OperatorError("--tls-cert and --tls-key go together; name both")
    os.environ["GRANGE_CACHE_STORE"] = store
    os.environ["GRANGE_STORE_DIR"] = store_dir
    if tokens_file is not None:
        os.environ["GRANGE_CACHE_TOKENS"] = str(tokens_file)
    tls = {"ssl_certfile": tls_cert, "ssl_keyfile": tls_key} if tls_cert else {}
    _run(address, workers, tls)


def _run(address: Address, workers: int, tls: dict[str, Any]) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    from grange.coordinator.serve import listen

    config = _config(workers, tls)
    try:
        config.load()  # so that what is wrong with it is told before it listens
    except ssl.SSLError as error:
        raise OperatorError(
            f"--tls-cert and --tls-key do not fit together ({error}); each must be PEM, and the "
            "key that of the first certificate"
        ) from error
    bound = listen(address.host, address.port)
    host, port = bound.getsockname()[:2]
    scheme = "https" if tls else "http"
    click.echo(f"cache: {scheme}://{Address(host, port)}", err=True)
    if workers == 1:
        uvicorn.Server(config).run([bound])
    else:
        # Each process loads the application for itself, so it gets a configuration that has not.
        Multiprocess(_config(workers, tls), sockets=[bound]).run()


def _config(workers: int, tls: dict[str, Any]) -> "uvicorn.Config":
    from grange.coordinator.http_protocol import http_config

    return http_config(APP, GOODBYE_S, factory=True, workers=workers, **tls)


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise OperatorError(
            f"{text!r} is not an address to listen on; write 127.0.0.1:{CACHE_PORT}"
        )
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
