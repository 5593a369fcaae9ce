"""What a farm answers, taken apart: errors, and streams of lines."""

from collections.abc import Iterable, Iterator
from typing import Final

import httpx
from pydantic import ValidationError

from grange.client.models import Problem
from grange.errors import GrangeError, OutsideError, PeerError

ERROR_BYTES_MAX: Final = 2_000  # of an answer that is no Problem, such as a proxy's page
LINE_BYTES_MAX: Final = 256 << 20  # the first event of a watch holds all unfinished steps


def unreachable(url: str, error: httpx.TransportError) -> OutsideError:
    """The error for a farm that was tried at `url` in vain, or that went away in the middle."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return OutsideError(
            f"the certificate of {url} is not trusted ({error}); where an authority of one's own "
            "signed it, name that one's certificate in SSL_CERT_FILE"
        )
    if isinstance(error, httpx.RemoteProtocolError) and url.startswith("http:"):
        return OutsideError(
            f"{url} hung up without a word ({error}); try again, or https:// if it speaks TLS"
        )
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return OutsideError(
            f"no farm answers at {url} ({error}); "
            "`grange serve` may not be running there, or --url or GRANGE_URL name another place"
        )
    if isinstance(error, httpx.ReadTimeout):
        return OutsideError(
            f"the farm at {url} takes connections and does not answer: it is overloaded, or its "
            "process stands still; try again, and see its log and its machine"
        )
    reason = str(error) or type(error).__name__
    return OutsideError(f"the connection to {url} was lost ({reason}); try again")


def problem(answer: httpx.Response) -> GrangeError:
    """The error that an answer other than a success stands for; its body must have been read."""
    try:
        text = Problem.model_validate_json(answer.content).error
    except ValidationError:
        text = answer.content[:ERROR_BYTES_MAX].decode(errors="replace").strip()
        if "html" in answer.headers.get("content-type", ""):
            text = "a page for people, as no farm does; see that the URL is a farm's"
        text = f"{answer.request.url} answered {answer.status_code}: {text or 'nothing more'}"
    if answer.is_server_error:
        return OutsideError(text)
    return PeerError(text)


def lines_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole, non-empty lines; an unfinished last one is dropped, since its stream broke off."""
    rest = bytearray()
    for chunk in chunks:
        if b"\n" not in chunk:
            rest += chunk
            if len(rest) > LINE_BYTES_MAX:
                raise OutsideError(f"the farm sent a line of more than {LINE_BYTES_MAX} bytes")
            continue
        first, *lines = chunk.split(b"\n")
        rest += first
        last = lines.pop()
        yield from filter(None, (bytes(rest), *lines))
        rest = bytearray(last)
