"""HAProxy, told over its runtime socket which address each slot's server has."""

from grange.cloud.haproxy.balancer import HaproxyBalancer, HaproxySettings

__all__ = ["HaproxyBalancer", "HaproxySettings"]
