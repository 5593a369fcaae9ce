"""`grange key generate`."""

import json
import os
from pathlib import Path
from secrets import token_bytes

import click

from grange.errors import OperatorError
from grange.store.keys import SEED_BYTES, SecretKey


@click.group(short_help="Make signing keys.")
def key() -> None:
    """Keys the farm signs its cache with, in the format of Nix."""


@key.command()
@click.argument("name")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the secret key goes [default: NAME.secret]; never overwritten.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def generate(name: str, secret_file: Path | None, as_json: bool) -> None:
    """Make a signing key called NAME, such as farm.example-1; print its public half."""
    secret = SecretKey.generate(name, token_bytes(SEED_BYTES))
    file = secret_file or Path(f"{name}.secret")
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(secret.show() + "\n")
    except FileExistsError:
        raise OperatorError(f"{file} exists, and a key is not overwritten; move it away") from None
    except OSError as error:
        raise OperatorError(f"cannot write {file}: {error.strerror}") from error
    public = secret.public.show()
    if as_json:
        click.echo(json.dumps({"public_key": public, "secret_file": str(file)}))
        return
    click.echo(public)
    click.echo(f"The secret half is in {file}: grange serve --key-file {file}", err=True)
