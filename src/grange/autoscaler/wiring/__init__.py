"""Text for the machines around the autoscaler: HAProxy, clients' Nix, and new instances. Pure."""

from grange.autoscaler.wiring.haproxy import haproxy_config
from grange.autoscaler.wiring.nix import NixClient, NixFiles, nix_machines
from grange.autoscaler.wiring.ports import Wiring
from grange.autoscaler.wiring.user_data import Builder, user_data

__all__ = [
    "Builder",
    "NixClient",
    "NixFiles",
    "Wiring",
    "haproxy_config",
    "nix_machines",
    "user_data",
]
