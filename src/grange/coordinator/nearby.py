"""Whether a request comes from a program of this machine, as far as it shows."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

# What proxies add. One that adds nothing cannot be told from a program: see security.md.
_PROXIED: Final = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


def is_nearby(address: str, headers: Mapping[str, str]) -> bool:
    """`headers`, or gRPC's metadata, have names in lower case.

    False for what a proxy on this machine passes on and says so, and for what a page of somewhere
    else has a browser of this machine send: that has another origin, or names another host.
    """
    if not _is_loopback(address) or any(name in headers for name in _PROXIED):
        return False
    named = [f"//{headers['host']}"] if "host" in headers else []
    named += [headers["origin"]] if "origin" in headers else []
    return all(map(_names_loopback, named))


def _names_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host == "localhost" or _is_loopback(host)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
