"""Text for the machines around the autoscaler: HAProxy, clients' Nix, and new instances. Pure."""

from grange.autoscaler.wiring.haproxy import haproxy_config
from grange.autoscaler.wiring.ports import Wiring

__all__ = ["Wiring", "haproxy_config"]
