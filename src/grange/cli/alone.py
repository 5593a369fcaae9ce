"""What commands share that serve something beside a farm: where, to whom, and by how many."""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from grange.cli.config import Address
from grange.errors import OperatorError

if TYPE_CHECKING:
    import uvicorn

GOODBYE_S: Final = 10  # for downloads under way when the process ends
File = click.Path(path_type=Path, dir_okay=False, exists=True)
Command = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Serving:
    """Where to listen, and how."""

    address: Address
    workers: int  # processes
    tls: dict[str, Any]  # for `uvicorn.Config`; empty: plain HTTP


def serves(port: int, tokens_variable: str) -> Callable[[Command], Command]:
    """The options of such a command, which gets what they say as `told`; what its application has
    to know of them is in the environment then."""
    options = [
        click.option(
            "--listen", default=f"127.0.0.1:{port}", show_default=True, metavar="HOST:PORT"
        ),
        click.option(
            "--store-dir",
            default="/nix/store",
            show_default=True,
            metavar="DIR",
            help="The directory all store paths of the farm begin with.",
        ),
        click.option(
            "--tokens-file",
            envvar=tokens_variable,
            type=File,
            help="Who may read: a line for each token, with the SHA-256 of its text in base 16.",
        ),
        click.option(
            "--anonymous", is_flag=True, help="Everyone may read, from other machines too."
        ),
        click.option("--tls-cert", type=File, help="PEM, with the chain: serve HTTPS."),
        click.option("--tls-key", type=File, help="PEM, of the certificate."),
        click.option(
            "--workers",
            default=1,
            show_default=True,
            type=click.IntRange(1, 256),
            help="Processes.",
        ),
    ]

    def decorate(command: Command) -> Command:
        @wraps(command)
        def whole(
            *,
            listen: str,
            store_dir: str,
            tokens_file: Path | None,
            anonymous: bool,
            tls_cert: Path | None,
            tls_key: Path | None,
            workers: int,
            **own: Any,
        ) -> None:
            is_guarded = anonymous or tokens_file is not None
            told = _serving(listen, workers, tls_cert, tls_key, is_guarded=is_guarded)
            os.environ["GRANGE_STORE_DIR"] = store_dir
            if tokens_file is not None:
                os.environ[tokens_variable] = str(tokens_file)
            command(told=told, **own)

        made: Command = whole
        for option in reversed(options):
            made = option(made)
        return made

    return decorate


def _serving(
    listen: str, workers: int, tls_cert: Path | None, tls_key: Path | None, *, is_guarded: bool
) -> Serving:
    """What the options say; `is_guarded` where they say who may read. Raises OperatorError."""
    address = Address.parse(listen)
    if not (is_guarded or address.is_loopback):
        raise OperatorError(
            f"{listen} is open to other machines: say who may read with --tokens-file, or "
            "--anonymous if everyone may"
        )
    if (tls_cert is None) is not (tls_key is None):
        raise OperatorError("--tls-cert and --tls-key go together; name both")
    tls = {"ssl_certfile": tls_cert, "ssl_keyfile": tls_key} if tls_cert else {}
    return Serving(address, workers, tls)


def run(what: str, app: str, told: Serving, *, has_lifespan: bool = False) -> None:
    """Serve the ASGI factory `app` until SIGTERM or Ctrl-C; `what` is what people call it."""
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    from grange.coordinator.http_protocol import http_config
    from grange.coordinator.serve import listen

    def config() -> "uvicorn.Config":
        return http_config(
            app,
            GOODBYE_S,
            has_lifespan=has_lifespan,
            factory=True,
            workers=told.workers,
            **told.tls,
        )

    own = config()
    try:
        own.load()  # so that what is wrong with it is told before it listens
    except ssl.SSLError as error:
        raise OperatorError(
            f"--tls-cert and --tls-key do not fit together ({error}); each must be PEM, and the "
            "key that of the first certificate"
        ) from error
    bound = listen(told.address.host, told.address.port)
    host, port = bound.getsockname()[:2]
    scheme = "https" if told.tls else "http"
    click.echo(f"{what}: {scheme}://{Address(host, port)}", err=True)
    if told.workers == 1:
        uvicorn.Server(own).run([bound])
    else:
        # Each process loads the application for itself, so it gets a configuration that has not.
        Multiprocess(config(), sockets=[bound]).run()
