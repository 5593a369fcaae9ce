"""Hooks that are URLs: the event is posted as JSON, and signed where they share a secret."""

import hmac
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from grange.coordinator.hooks.rules import HookRule
from grange.coordinator.hooks.sending import Call, DeliveryError
from grange.errors import OperatorError

ANSWER_BYTES: Final = 500  # of an answer, kept for whoever looks into a failure
WAIT_MAX_S: Final = 3600.0  # that an answer may ask for
SECRET_BYTES_MIN: Final = 16


class WebHook:
    """Implements `grange.coordinator.hooks.sending.Sender`."""

    def __init__(self, rule: HookRule) -> None:
        """Raises OperatorError for a secret that cannot be read."""
        self._rule = rule
        self._secret = None if rule.secret_file is None else _read_secret(rule, rule.secret_file)
        # Never the whole URL: those of chat rooms are secrets themselves.
        parts = urlsplit(rule.url)
        self._place = f"{parts.scheme}://{parts.hostname}"
        self._session: aiohttp.ClientSession | None = None

    async def send(self, call: Call) -> None:
        try:
            async with self._opened().post(
                self._rule.url,
                data=call.body,
                headers=self._headers(call),
                allow_redirects=False,
            ) as answer:
                if 200 <= answer.status < 300:
                    return
                text = (await answer.content.read(ANSWER_BYTES)).decode("utf-8", "replace")
                raise self._refusal(answer, text)
        except TimeoutError as error:
            text = f"{self._place} did not answer in {self._rule.timeout_s:g} s"
            raise DeliveryError(text) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # An error of aiohttp's may show the URL.
            raise DeliveryError(f"{self._place}: {_safe(error)}") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._rule.timeout_s),
                connector=aiohttp.TCPConnector(limit=self._rule.parallel),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _headers(self, call: Call) -> dict[str, str]:
        at = str(int(call.sent))
        headers = {
            "content-type": "application/json",
            "user-agent": "grange",
            "x-grange-event": call.event.kind.value,
            "x-grange-event-id": str(call.event.id),
            "x-grange-timestamp": at,
        }
        if self._secret is not None:
            headers["x-grange-signature"] = f"sha256={sign(self._secret, at, call.body)}"
        return headers

    def _refusal(self, answer: aiohttp.ClientResponse, text: str) -> DeliveryError:
        said = f"{self._place} answered {answer.status}"
        if 300 <= answer.status < 400:
            where = urlsplit(answer.headers.get("location", ""))
            to = f" to {where.scheme}://{where.hostname}" if where.hostname else ""
            said += f", a redirect{to}, which is not followed: name the final URL"
            return DeliveryError(said, is_final=True)
        if text.strip():
            said += f": {text.strip()}"
        is_passing = answer.status >= 500 or answer.status in (408, 425, 429)
        wait = answer.headers.get("retry-after", "")
        wait_s = min(WAIT_MAX_S, float(wait)) if wait.isascii() and wait.isdigit() else 0.0
        return DeliveryError(said, is_final=not is_passing, wait_s=wait_s)


def sign(secret: bytes, at: str, body: bytes) -> str:
    """HMAC-SHA-256 of "<timestamp>.<body>", in hexadecimal."""
    return hmac.new(secret, at.encode() + b"." + body, "sha256").hexdigest()


def _read_secret(rule: HookRule, path: Path) -> bytes:
    setting = f"hooks.{rule.name}.secret_file"
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise OperatorError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    if len(secret) < SECRET_BYTES_MIN:
        raise OperatorError(f"{setting}: {path} holds less than {SECRET_BYTES_MIN} bytes")
    return secret


def _safe(error: Exception) -> str:
    """What went wrong, without the URL: its path may be a secret."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error).__name__
    return type(error).__name__
